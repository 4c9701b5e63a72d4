"""RMSNorm against torch, eager and compiled, and against the time of copying the bytes it must move."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench.cases import DTYPES, NORM, TOLERANCE, RowsShape
from bench.peers import compiled
from bench.roofline import copy_probe, elementwise_bytes
from bench.timing import Case, Peer, Thunk, agree, race, sets_for

EPS = 1e-5


def ours(x: Tensor, weight: Tensor) -> Tensor:
    return flagattn.rms_norm(x, weight, EPS)


def eager(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def plain(x: Tensor, weight: Tensor) -> Tensor:
    """As the Llama of transformers writes it; what torch.compile is given."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def both(op: Any, operands: tuple[Tensor, Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(op(*operands), operands, dy)


def operands(shape: RowsShape, *, gradient: bool) -> tuple[Tensor, Tensor]:
    dtype = DTYPES[shape.dtype]
    x = torch.randn(shape.rows, shape.features).to(dtype)
    weight = (1 + 0.1 * torch.randn(shape.features)).to(dtype)
    return x.requires_grad_(gradient), weight.requires_grad_(gradient)


@pytest.mark.parametrize("shape", NORM, ids=lambda shape: shape.name)
def bench_forward(benchmark: Any, sized: Any, shape: RowsShape) -> None:
    shape = sized(shape)
    moved = elementwise_bytes(shape.elements, shape.itemsize, reads=1, writes=1)
    sets = [operands(shape, gradient=False) for _ in range(sets_for(benchmark, moved, contestants=4))]

    def thunks(op: Any) -> list[Thunk]:
        return [partial(op, *o) for o in sets]

    check = agree(TOLERANCE[shape.dtype])
    peers = {"torch eager": Peer(thunks(eager), agrees=check), "copy": copy_probe(moved)}
    if benchmark.enabled:
        peers["torch.compile"] = Peer(thunks(compiled(plain)), agrees=check)
    with torch.no_grad():
        race(benchmark, Case("rms_norm forward", shape.dtype, shape.label, bytes=moved), thunks(ours), peers)


@pytest.mark.parametrize("shape", NORM, ids=lambda shape: shape.name)
def bench_forward_backward(benchmark: Any, sized: Any, shape: RowsShape) -> None:
    shape = sized(shape)
    moved = elementwise_bytes(shape.elements, shape.itemsize, reads=3, writes=2)  # x; x, dy; y; dx
    sets = [operands(shape, gradient=True) for _ in range(sets_for(benchmark, moved, contestants=4))]
    gradients = [torch.randn_like(x) for x, _ in sets]

    def thunks(op: Any) -> list[Thunk]:
        return [partial(both, op, o, dy) for o, dy in zip(sets, gradients, strict=True)]

    check = agree(TOLERANCE[shape.dtype])
    peers = {"torch eager": Peer(thunks(eager), agrees=check), "copy": copy_probe(moved)}
    if benchmark.enabled:
        peers["torch.compile"] = Peer(thunks(compiled(plain)), agrees=check)
    race(benchmark, Case("rms_norm forward+backward", shape.dtype, shape.label, bytes=moved), thunks(ours), peers)
