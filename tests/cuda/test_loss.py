"""Cross-entropy on a GPU: against the CPU op, on another stream, in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn.testing import run_with_gradients
from tests.loss import test_cross_entropy as cases

pytestmark = pytest.mark.gpu

SHAPES = (*cases.SHAPES, (5, 50_257))


def results(logits: Tensor, targets: Tensor, **options: Any) -> dict[str, Tensor]:
    return run_with_gradients(
        lambda logits: flagattn.cross_entropy(logits, targets, return_lse=True, **options), {"logits": logits}
    )


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_agrees_with_the_cpu(shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> None:
    logits, targets = cases.logits_of(shape, dtype), cases.targets_of(shape)
    for options in ({}, {"softcap": 5.0, "z_loss": 1e-2, "label_smoothing": 0.1}):
        there = results(logits.cuda(), targets.cuda(), reduction=reduction, **options)
        here = results(logits, targets, reduction=reduction, **options)
        eps = torch.finfo(dtype).eps
        for name, expected in here.items():
            got, tolerance = there[name].cpu(), max(2 * eps if name.startswith("d") else 0.0, 1e-5)
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_in_a_graph_and_on_another_stream() -> None:
    logits, targets = cases.logits_of((64, 3001), torch.bfloat16).cuda(), cases.targets_of((64, 3001)).cuda()
    expected = flagattn.cross_entropy(logits, targets)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        again = flagattn.cross_entropy(logits, targets)
    torch.cuda.synchronize()
    assert torch.equal(again, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flagattn.cross_entropy(logits, targets)
    logits.copy_(logits.flip(0))
    graph.replay()
    assert torch.equal(captured, flagattn.cross_entropy(logits, targets))
