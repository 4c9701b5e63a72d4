"""Attention, forward and backward: the grid of lengths, head dims, dtypes and groups; short sequences; one head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench.cases import ATTENTION_GRID, DTYPES, ONE_HEAD, SHORT_SEQUENCES, TOLERANCE, AttentionShape
from bench.roofline import sgemm_probe
from bench.timing import Case, Peer, agree, race, sets_for

Operands = tuple[Tensor, Tensor, Tensor]
Thunk = Callable[[], Any]


def operands(shape: AttentionShape) -> Operands:
    """Random q, k, v in (batch, seqlen, heads, head_dim)."""
    dtype = DTYPES[shape.dtype]
    q = torch.randn(shape.batch, shape.seqlen, shape.heads_q, shape.head_dim).to(dtype)
    k, v = (torch.randn(shape.batch, shape.seqlen, shape.heads_k, shape.head_dim).to(dtype) for _ in range(2))
    return q, k, v


def many_operands(benchmark: Any, shape: AttentionShape, *, backward: bool = False) -> list[Operands]:
    return [operands(shape) for _ in range(sets_for(benchmark, shape.bytes(backward=backward)))]


def heads_first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in torch's own layout, (batch, heads, seqlen, head_dim)."""
    return [tensor.transpose(1, 2).contiguous() for tensor in tensors]


def ours(shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Any:
    return flagattn.flash_attn_func(q, k, v, causal=shape.causal)


def torch_sdpa(shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=shape.group > 1)


def ours_heads_first(shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What torch's function is called with, and what it returns."""
    return flagattn.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=shape.group > 1)


def forward_thunks(
    attention: Callable[..., Any], shape: AttentionShape, sets: Sequence[Sequence[Tensor]]
) -> list[Thunk]:
    return [partial(attention, shape, *qkv) for qkv in sets]


def backward_thunks(
    attention: Callable[..., Any],
    shape: AttentionShape,
    sets: Sequence[Sequence[Tensor]],
    douts: Sequence[Tensor],
    *,
    finish: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list,
) -> list[Thunk]:
    """Thunks of the gradients alone: the forward ran before and its graph is kept."""

    def one(qkv: Sequence[Tensor], dout: Tensor) -> Thunk:
        leaves = [tensor.detach().requires_grad_() for tensor in qkv]
        out = attention(shape, *leaves)
        return lambda: finish(torch.autograd.grad(out, leaves, dout, retain_graph=True))

    return [one(qkv, dout) for qkv, dout in zip(sets, douts, strict=True)]


def heads_last(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.transpose(1, 2) for tensor in tensors]


def race_forward(benchmark: Any, suite: str, shape: AttentionShape) -> None:
    sets = many_operands(benchmark, shape)
    theirs = forward_thunks(
        lambda s, *qkv: torch_sdpa(s, *qkv).transpose(1, 2), shape, [heads_first(qkv) for qkv in sets]
    )
    case = Case(suite, shape.class_name, shape.label, shape.flops(), shape.bytes())
    with torch.no_grad():
        peers = {"torch SDPA": Peer(theirs, agrees=agree(TOLERANCE[shape.dtype])), "sgemm": sgemm_probe()}
        race(benchmark, case, forward_thunks(ours, shape, sets), peers)


def race_backward(benchmark: Any, suite: str, shape: AttentionShape) -> None:
    sets = many_operands(benchmark, shape, backward=True)
    douts = [torch.randn_like(q) for q, _, _ in sets]
    theirs = backward_thunks(
        torch_sdpa, shape, [heads_first(qkv) for qkv in sets], heads_first(douts), finish=heads_last
    )
    peers = {"torch SDPA": Peer(theirs, agrees=agree(TOLERANCE[shape.dtype])), "sgemm": sgemm_probe()}
    if shape.dtype == "bf16":
        wide = [[tensor.float() for tensor in qkv] for qkv in sets]
        peers["our fp32"] = Peer(backward_thunks(ours, shape, wide, [dout.float() for dout in douts]))
    case = Case(suite, shape.class_name, shape.label, shape.flops(backward=True), shape.bytes(backward=True))
    race(benchmark, case, backward_thunks(ours, shape, sets, douts), peers)


def race_forward_heads_first(benchmark: Any, suite: str, shape: AttentionShape) -> None:
    """Both get the same tensors, in copies, so that neither finds the other's in the caches."""
    sets = [heads_first(qkv) for qkv in many_operands(benchmark, shape)]
    theirs = forward_thunks(torch_sdpa, shape, [[tensor.clone() for tensor in qkv] for qkv in sets])
    case = Case(suite, shape.class_name, shape.label, shape.flops(), shape.bytes())
    with torch.no_grad():
        peers = {"torch SDPA": Peer(theirs, agrees=agree(TOLERANCE[shape.dtype])), "sgemm": sgemm_probe()}
        race(benchmark, case, forward_thunks(ours_heads_first, shape, sets), peers)


def race_backward_heads_first(benchmark: Any, suite: str, shape: AttentionShape) -> None:
    sets = [heads_first(qkv) for qkv in many_operands(benchmark, shape, backward=True)]
    douts = [torch.randn_like(q) for q, _, _ in sets]
    theirs = backward_thunks(
        torch_sdpa, shape, [[tensor.clone() for tensor in qkv] for qkv in sets], [dout.clone() for dout in douts]
    )
    peers = {"torch SDPA": Peer(theirs, agrees=agree(TOLERANCE[shape.dtype])), "sgemm": sgemm_probe()}
    case = Case(suite, shape.class_name, shape.label, shape.flops(backward=True), shape.bytes(backward=True))
    race(benchmark, case, backward_thunks(ours_heads_first, shape, sets, douts), peers)


@pytest.mark.parametrize("shape", ATTENTION_GRID, ids=lambda shape: shape.name)
def bench_forward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    race_forward(benchmark, "attention forward", sized(shape))


@pytest.mark.parametrize("shape", ATTENTION_GRID, ids=lambda shape: shape.name)
def bench_backward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    race_backward(benchmark, "attention backward", sized(shape))


@pytest.mark.parametrize("shape", ATTENTION_GRID, ids=lambda shape: shape.name)
def bench_forward_heads_first(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    race_forward_heads_first(benchmark, "attention forward, torch's layout", sized(shape))


# In 16 bit torch takes ten times our time and the layout is no question.
@pytest.mark.parametrize("shape", [shape for shape in ATTENTION_GRID if shape.dtype == "fp32"], ids=lambda s: s.name)
def bench_backward_heads_first(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    race_backward_heads_first(benchmark, "attention backward, torch's layout", sized(shape))


@pytest.mark.parametrize("shape", SHORT_SEQUENCES, ids=lambda shape: shape.name)
def bench_short_forward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    race_forward(benchmark, "short sequences forward", sized(shape))


@pytest.mark.parametrize("shape", SHORT_SEQUENCES, ids=lambda shape: shape.name)
def bench_short_backward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    race_backward(benchmark, "short sequences backward", sized(shape))


def on_one_thread(thunk: Thunk) -> Thunk:
    """The same work on one thread; the thread count is back before the next contestant starts."""

    def run() -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return thunk()
        finally:
            torch.set_num_threads(threads)

    return run


@pytest.mark.parametrize("shape", ONE_HEAD, ids=lambda shape: shape.name)
def bench_one_head_forward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    shape = sized(shape)
    sets = many_operands(benchmark, shape)
    case = Case("one head forward", shape.class_name, shape.label, shape.flops(), shape.bytes())
    with torch.no_grad():
        thunks = forward_thunks(ours, shape, sets)
        race(benchmark, case, thunks, {"one thread": Peer([on_one_thread(t) for t in thunks], agrees=agree(0.0))})


@pytest.mark.parametrize("shape", ONE_HEAD, ids=lambda shape: shape.name)
def bench_one_head_backward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    shape = sized(shape)
    sets = many_operands(benchmark, shape, backward=True)
    douts = [torch.randn_like(q) for q, _, _ in sets]
    case = Case(
        "one head backward", shape.class_name, shape.label, shape.flops(backward=True), shape.bytes(backward=True)
    )
    thunks = backward_thunks(ours, shape, sets, douts)
    race(benchmark, case, thunks, {"one thread": Peer([on_one_thread(t) for t in thunks], agrees=agree(0.0))})
