"""Rotary embedding against torch, eager and compiled, and against the time of copying the bytes it must move."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from bench.cases import DTYPES, ROTARY, TOLERANCE, RotaryShape
from bench.peers import compiled
from bench.roofline import copy_probe, elementwise_bytes
from bench.timing import Case, Peer, Thunk, agree, race, sets_for


def plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As the Llama of transformers writes it, with tables of half the width."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@pytest.mark.parametrize("shape", ROTARY, ids=lambda shape: shape.name)
def bench_forward(benchmark: Any, sized: Any, shape: RotaryShape) -> None:
    shape = sized(shape)
    moved = elementwise_bytes(shape.elements, DTYPES[shape.dtype].itemsize, reads=1, writes=1)
    angles = torch.rand(shape.seqlen, shape.head_dim // 2) * 6.28
    cos, sin = angles.cos(), angles.sin()
    size = (1, shape.seqlen, shape.heads, shape.head_dim)
    sets = [torch.randn(size).to(DTYPES[shape.dtype]) for _ in range(sets_for(benchmark, moved, contestants=4))]

    def thunks(op: Any) -> list[Thunk]:
        return [partial(op, x, cos, sin) for x in sets]

    check = agree(TOLERANCE[shape.dtype])
    peers = {"torch eager": Peer(thunks(plain), agrees=check), "copy": copy_probe(moved)}
    if benchmark.enabled:
        peers["torch.compile"] = Peer(thunks(compiled(plain)), agrees=check)
    with torch.no_grad():
        case = Case("rotary forward", shape.dtype, shape.label, bytes=moved)
        race(benchmark, case, thunks(flagattn.apply_rotary), peers)
