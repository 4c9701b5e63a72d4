"""linear_cross_entropy as CUDA runs it (flagattn/_linear_loss.py), here on the CPU, through the CPU op's own tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flagattn import _linear_loss, loss, reference
from tests.loss import test_linear_cross_entropy as cases

CHUNK = 16  # of the 21 rows that options are tried with 16 and 5


@pytest.fixture(autouse=True)
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_loss, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(_linear_loss, "_FEWEST_ROWS", CHUNK)
    monkeypatch.setattr(loss, "_ops", SimpleNamespace(linear_cross_entropy=_linear_loss.forward))
    monkeypatch.setattr(loss, "_linear_backward_op", _linear_loss.backward)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The definition with torch's products cut alike: how many rows a product has decides how its BLAS sums.

    Of five rows MKL sums the last in one long chain, with three times the error that it makes with 21.
    """
    logits = [F.linear(rows, weight) for rows in hidden.split(CHUNK)]
    return reference.cross_entropy(torch.cat(logits), targets, **options)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", cases.SHAPES[:-1], ids=str)
def test_oracle(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    cases.check(cases.operands(shape, dtype), cases.targets_of(shape[0], shape[2]), plain)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_options(dtype: torch.dtype, reduction: str) -> None:
    cases.check_options(dtype, reduction, plain)


def test_rows_that_are_left_out_may_hold_nan() -> None:
    tensors, targets = cases.operands((40, 24, 70), torch.float32), cases.targets_of(40, 70)
    options = (-100, 1, 0.0, 0.0, 0.0)
    clean = _linear_loss.forward(*tensors.values(), targets, None, *options, True, True)
    tensors["hidden"][targets == -100] = torch.nan
    for ours, expected in zip(
        _linear_loss.forward(*tensors.values(), targets, None, *options, True, True), clean, strict=True
    ):
        assert torch.equal(ours, expected)


def test_cuda_has_the_op() -> None:
    for op in ("linear_cross_entropy", "linear_cross_entropy_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"flagattn::{op}", "CUDA")
