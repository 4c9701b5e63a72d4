"""batch_invariant_linear against torch's linear, whose sums depend on the number of rows and threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench.cases import DTYPES, LINEAR, TOLERANCE, LinearShape
from bench.timing import Case, Peer, Thunk, agree, race, sets_for


@pytest.mark.parametrize("shape", LINEAR, ids=lambda shape: shape.name)
def bench_linear(benchmark: Any, sized: Any, shape: LinearShape) -> None:
    shape = sized(shape)
    dtype = DTYPES[shape.dtype]
    moved = float(dtype.itemsize * (shape.rows * (shape.features + shape.outputs) + shape.features * shape.outputs))
    sets: list[tuple[Tensor, Tensor]] = [
        (torch.randn(shape.rows, shape.features).to(dtype), torch.randn(shape.outputs, shape.features).to(dtype))
        for _ in range(sets_for(benchmark, moved, contestants=2))
    ]

    def thunks(op: Any) -> list[Thunk]:
        return [partial(op, *operands) for operands in sets]

    case = Case(
        "linear",
        shape.dtype,
        shape.label,
        flops=2.0 * shape.rows * shape.features * shape.outputs,
        bytes=moved,
    )
    with torch.no_grad():
        peers = {"F.linear": Peer(thunks(F.linear), agrees=agree(TOLERANCE[shape.dtype]))}
        race(benchmark, case, thunks(flagattn.batch_invariant_linear), peers)
