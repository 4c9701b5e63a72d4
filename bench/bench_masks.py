"""scaled_dot_product_attention under masks and a learned bias, and what ALiBi, sinks and dropout cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench.bench_attention import backward_thunks
from bench.cases import DTYPES, MASKED, TOLERANCE, AttentionShape
from bench.timing import Case, Peer, agree, race, sets_for

MASKS = ("padding", "gaps", "documents", "causal", "bias")


def mask_of(kind: str, shape: AttentionShape, dtype: torch.dtype) -> Tensor:
    """A quarter of the keys masked at the end or anywhere, four documents, a lower triangle, a bias."""
    keys = torch.arange(shape.seqlen)
    if kind == "padding":
        return (keys < shape.seqlen * 3 // 4).expand(shape.batch, 1, 1, shape.seqlen)
    if kind == "gaps":
        return (torch.rand(shape.batch, 1, 1, shape.seqlen) >= 0.25).contiguous()
    if kind == "documents":
        document = keys * 4 // shape.seqlen
        return document[:, None] == document
    if kind == "causal":
        return keys[:, None] >= keys
    return torch.randn(1, shape.heads_q, shape.seqlen, shape.seqlen).to(dtype)


def ours(mask: Tensor, shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flagattn.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def torchs(mask: Tensor, shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def operands(benchmark: Any, shape: AttentionShape, *, backward: bool = False) -> list[list[Tensor]]:
    size = (shape.batch, shape.heads_q, shape.seqlen, shape.head_dim)
    sets = sets_for(benchmark, shape.bytes(backward=backward), contestants=2)
    return [[torch.randn(size).to(DTYPES[shape.dtype]) for _ in range(3)] for _ in range(sets)]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", MASKED, ids=lambda shape: shape.name)
def bench_masked_forward(benchmark: Any, sized: Any, shape: AttentionShape, kind: str) -> None:
    shape = sized(shape)
    sets, mask = operands(benchmark, shape), mask_of(kind, shape, DTYPES[shape.dtype])
    case = Case("masked forward", f"{shape.dtype} {kind}", shape.label, shape.flops(), shape.bytes())

    def thunks(attention: Callable[..., Tensor]) -> Sequence[Callable[[], Any]]:
        return [partial(attention, mask, shape, *qkv) for qkv in sets]

    with torch.no_grad():
        race(benchmark, case, thunks(ours), {"torch SDPA": Peer(thunks(torchs), agrees=agree(TOLERANCE[shape.dtype]))})


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", MASKED, ids=lambda shape: shape.name)
def bench_masked_backward(benchmark: Any, sized: Any, shape: AttentionShape, kind: str) -> None:
    shape = sized(shape)
    sets, mask = operands(benchmark, shape, backward=True), mask_of(kind, shape, DTYPES[shape.dtype])
    douts = [torch.randn_like(q) for q, _, _ in sets]
    name = f"{shape.dtype} {kind}"
    case = Case("masked backward", name, shape.label, shape.flops(backward=True), shape.bytes(backward=True))
    theirs = backward_thunks(partial(torchs, mask), shape, sets, douts)
    peers = {"torch SDPA": Peer(theirs, agrees=agree(TOLERANCE[shape.dtype]))}
    race(benchmark, case, backward_thunks(partial(ours, mask), shape, sets, douts), peers)


@pytest.mark.parametrize("what", ["alibi", "sinks", "dropout"])
@pytest.mark.parametrize("shape", MASKED, ids=lambda shape: shape.name)
def bench_what_it_costs(benchmark: Any, sized: Any, shape: AttentionShape, what: str) -> None:
    shape = sized(shape)
    sets = [[t.transpose(1, 2).contiguous() for t in qkv] for qkv in operands(benchmark, shape)]
    heads = shape.heads_q
    options: dict[str, Any] = {"alibi_slopes": torch.rand(heads)} if what == "alibi" else {"sinks": torch.randn(heads)}
    if what == "dropout":
        options = {"dropout_p": 0.1}
    case = Case(f"attention with {what}", shape.class_name, shape.label, shape.flops(), shape.bytes())
    attention: Callable[..., Any] = flagattn.flash_attn_func
    with torch.no_grad():
        plain = [partial(attention, *qkv) for qkv in sets]
        race(
            benchmark,
            case,
            [partial(attention, *qkv, **options) for qkv in sets],
            {"our plain attention": Peer(plain)},
        )
