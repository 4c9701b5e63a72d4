"""SwiGLU against torch, eager and compiled, and against the time of copying the bytes it must move."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench.cases import ACTIVATION, DTYPES, TOLERANCE, RowsShape
from bench.peers import compiled
from bench.roofline import copy_probe, elementwise_bytes
from bench.timing import Case, Peer, Thunk, agree, race, sets_for


def plain(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def operands(shape: RowsShape) -> tuple[Tensor, Tensor]:
    gate, up = (torch.randn(shape.rows, shape.features).to(DTYPES[shape.dtype]) for _ in range(2))
    return gate, up


@pytest.mark.parametrize("shape", ACTIVATION, ids=lambda shape: shape.name)
def bench_forward(benchmark: Any, sized: Any, shape: RowsShape) -> None:
    shape = sized(shape)
    moved = elementwise_bytes(shape.elements, shape.itemsize, reads=2, writes=1)
    sets = [operands(shape) for _ in range(sets_for(benchmark, moved, contestants=4))]

    def thunks(op: Any) -> list[Thunk]:
        return [partial(op, *o) for o in sets]

    check = agree(TOLERANCE[shape.dtype])
    peers = {"torch eager": Peer(thunks(plain), agrees=check), "copy": copy_probe(moved)}
    if benchmark.enabled:
        peers["torch.compile"] = Peer(thunks(compiled(plain)), agrees=check)
    with torch.no_grad():
        case = Case("swiglu forward", shape.dtype, shape.label, bytes=moved)
        race(benchmark, case, thunks(flagattn.swiglu), peers)


@pytest.mark.parametrize("shape", ACTIVATION, ids=lambda shape: shape.name)
def bench_backward(benchmark: Any, sized: Any, shape: RowsShape) -> None:
    shape = sized(shape)
    moved = elementwise_bytes(shape.elements, shape.itemsize, reads=3, writes=2)
    sets = [operands(shape) for _ in range(sets_for(benchmark, moved, contestants=4))]
    gradients = [torch.randn_like(gate) for gate, _ in sets]

    def thunks(op: Any) -> list[Thunk]:
        def one(gate: Tensor, up: Tensor, dy: Tensor) -> Thunk:
            leaves = [gate.detach().requires_grad_(), up.detach().requires_grad_()]
            y = op(*leaves)
            return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

        return [one(*o, dy) for o, dy in zip(sets, gradients, strict=True)]

    check = agree(TOLERANCE[shape.dtype])
    peers = {"torch eager": Peer(thunks(plain), agrees=check), "copy": copy_probe(moved)}
    if benchmark.enabled:
        peers["torch.compile"] = Peer(thunks(compiled(plain)), agrees=check)
    case = Case("swiglu backward", shape.dtype, shape.label, bytes=moved)
    race(benchmark, case, thunks(flagattn.swiglu), peers)
