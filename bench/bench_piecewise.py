"""Piecewise attention against our plain attention, whose arithmetic it should equal, and against two calls merged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from bench.bench_attention import Thunk
from bench.cases import DTYPES, PIECEWISE, TOLERANCE, AttentionShape
from bench.roofline import sgemm_probe
from bench.timing import Case, Peer, agree, race, sets_for


def operands(shape: AttentionShape) -> list[Tensor]:
    """Random q1, k1, q2, k2, v in (batch, seqlen, heads, head_dim)."""

    def random(heads: int) -> Tensor:
        return torch.randn(shape.batch, shape.seqlen, heads, shape.head_dim).to(DTYPES[shape.dtype])

    return [random(heads) for heads in (shape.heads_q, shape.heads_k, shape.heads_q, shape.heads_k, shape.heads_k)]


def piecewise(shape: AttentionShape, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Any:
    return flagattn.piecewise_attn_func(q1, k1, q2, k2, v, shape.dist_threshold, causal=shape.causal)


def plain(shape: AttentionShape, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Any:
    return flagattn.flash_attn_func(q1, k1, v, causal=shape.causal)


def two_calls_merged(shape: AttentionShape, q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Tensor:
    """Near keys by a window, far keys by a causal call on the shifted operands, joined by their log-sum-exps.

    Only rows from dist_threshold on have far keys, and only those rows are merged.
    """
    w = shape.dist_threshold
    window = (w - 1, 0 if shape.causal else -1)
    attention: Any = partial(flagattn.flash_attn_func, return_lse=True)
    near, near_lse = attention(q1, k1, v, causal=shape.causal, window_size=window)
    far, far_lse = attention(q2[:, w:], k2[:, :-w], v[:, :-w], causal=True)
    merged, _ = flagattn.merge_attention_states([near[:, w:], far], [near_lse[:, :, w:], far_lse])
    return torch.cat([near[:, :w], merged], dim=1)


def backward(attention: Any, shape: AttentionShape, tensors: Sequence[Tensor], dout: Tensor) -> Thunk:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attention(shape, *leaves)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("shape", PIECEWISE, ids=lambda shape: shape.name)
def bench_forward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    shape = sized(shape)
    sets = [operands(shape) for _ in range(sets_for(benchmark, 1.5 * shape.bytes(), contestants=4))]
    with torch.no_grad():
        thunks = {
            attention: [partial(attention, shape, *tensors) for tensors in sets]
            for attention in (piecewise, plain, two_calls_merged)
        }
        peers = {
            "our plain attention": Peer(thunks[plain]),
            "two calls merged": Peer(thunks[two_calls_merged], agrees=agree(TOLERANCE[shape.dtype])),
            "sgemm": sgemm_probe(),
        }
        case = Case("piecewise forward", shape.class_name, shape.label, shape.flops(), 1.5 * shape.bytes())
        race(benchmark, case, thunks[piecewise], peers)


@pytest.mark.parametrize("shape", PIECEWISE, ids=lambda shape: shape.name)
def bench_backward(benchmark: Any, sized: Any, shape: AttentionShape) -> None:
    shape = sized(shape)
    sets = [operands(shape) for _ in range(sets_for(benchmark, 1.5 * shape.bytes(backward=True), contestants=4))]
    douts = [torch.randn_like(tensors[0]) for tensors in sets]

    def thunks(attention: Any) -> list[Thunk]:
        return [backward(attention, shape, tensors, dout) for tensors, dout in zip(sets, douts, strict=True)]

    peers = {
        "our plain attention": Peer(thunks(plain)),
        "two calls merged": Peer(thunks(two_calls_merged), agrees=agree(TOLERANCE[shape.dtype])),
        "sgemm": sgemm_probe(),
    }
    flops, moved = shape.flops(backward=True), 1.5 * shape.bytes(backward=True)
    case = Case("piecewise backward", shape.class_name, shape.label, flops, moved)
    race(benchmark, case, thunks(piecewise), peers)
