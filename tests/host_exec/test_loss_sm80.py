"""The sm_80 cross-entropy kernels, executed on the CPU, through the CPU's own tests; bits, counts, wrong targets."""

from __future__ import annotations

import pytest
import torch

import flagattn
from tests.host_exec import kernels, kernels_loss
from tests.loss import test_cross_entropy as cases

SCHEDULES = [{"seed": seed, "workers": workers} for seed, workers in ((0, 2), (1, 1), (2, 2))]
OWN_SHAPES = ((2, 8), (3, 512), (2, 50_257))  # whole rows; odd ones that start anywhere


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.set_schedule()
    monkeypatch.setattr(flagattn, "cross_entropy", kernels_loss.cross_entropy)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(cases.SHAPES + OWN_SHAPES)), ids=map(str, cases.SHAPES + OWN_SHAPES))
def test_oracle(index: int, dtype: torch.dtype) -> None:
    kernels.set_schedule(**SCHEDULES[index % 3])
    cases.test_oracle("sm80", (cases.SHAPES + OWN_SHAPES)[index], dtype)


@pytest.mark.parametrize("options", cases.OPTIONS, ids=str)
def test_options(options: dict) -> None:
    cases.test_options("sm80", options)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_extremes(dtype: torch.dtype) -> None:
    cases.test_large_logits("sm80", dtype)
    cases.test_ignored_rows_are_not_looked_at("sm80", dtype)
    cases.test_nan_shows_in_its_row_only("sm80", dtype)
    cases.test_layouts("sm80", dtype)


def test_few_classes_rows_and_losses() -> None:
    cases.test_classes_of_minus_infinity("sm80")
    cases.test_confident_rows_keep_their_small_losses("sm80")
    cases.test_nothing_to_learn()
    cases.test_empty("sm80")


@pytest.mark.parametrize("cols", [1500, 1501])
def test_the_gradient_may_overwrite_the_logits(cols: int) -> None:
    logits, targets = cases.logits_of((6, cols), torch.bfloat16), cases.targets_of((6, cols))
    options = (-100, 1, 0.0, 0.0, 0.0)
    parts = kernels_loss.forward(logits, targets, None, *options)[2]
    upstream = (torch.ones(()), torch.randn(6), logits, targets, None, parts, *options)
    expected = kernels_loss.backward(*upstream)
    assert torch.equal(kernels_loss.backward(*upstream, inplace=True), expected)
    assert torch.equal(logits, expected)


def test_bits_do_not_depend_on_the_schedule_or_the_other_rows() -> None:
    logits, targets = cases.logits_of((9, 3001), torch.bfloat16), cases.targets_of((9, 3001), ignored=False)
    results = []
    for schedule in SCHEDULES:
        kernels.set_schedule(**schedule)
        results.append(kernels_loss.forward(logits, targets, None, -100, 0, 5.0, 0.1, 0.1))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))
    alone = kernels_loss.forward(logits[8:], targets[8:], None, -100, 0, 5.0, 0.1, 0.1)
    assert torch.equal(alone[0], results[0][0][8:])


def test_wrong_targets_count_as_the_nearest() -> None:
    logits = cases.logits_of((4, 30), torch.float32)
    wrong, nearest = torch.tensor([-1, 30, 2**40, -(2**62)]), torch.tensor([0, 29, 29, 0])
    ours, expected = (
        kernels_loss.cross_entropy(logits, targets, reduction="none", ignore_index=-7) for targets in (wrong, nearest)
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("classes", [8192, 1000, 50_257])
def test_each_logit_is_read_once_and_written_once(classes: int, dtype: torch.dtype) -> None:
    """The forward adds a target and a logit a row, and writes three numbers; the backward reads four beside."""
    rows, size = 5, torch.finfo(dtype).bits // 8
    logits, targets = cases.logits_of((rows, classes), dtype), torch.arange(rows)
    options = (-100, 0, 0.0, 0.0, 0.0)
    parts = kernels_loss.forward(logits, targets, None, *options)[2]
    done = kernels.counters()
    lanes = kernels.host_exec_module().loss_plan_sm80(classes, kernels_loss.dtype_of(logits))[0]
    assert done["global_bytes_read"] == rows * (classes * size + 8 * lanes + size)
    assert done["global_bytes_written"] == rows * 4 * 4
    assert done["bank_conflicts"] == 0
    upstream = (torch.ones(rows), None, logits, targets, None, parts, *options)
    kernels_loss.backward(*upstream)
    done = kernels.counters()
    assert done["global_bytes_read"] == rows * (classes * size + (8 + 4 * 3) * lanes)
    assert done["global_bytes_written"] == rows * classes * size
    if classes * size % 32 == 0:
        assert done["global_sectors_written"] == done["global_bytes_written"] // 32
