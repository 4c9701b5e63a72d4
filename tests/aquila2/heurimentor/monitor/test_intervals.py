"""Confidence intervals of held-out losses: quantiles, and how often intervals hold what they should."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aquila2 import Aquila2ForCausalLM
from aquila2.heurimentor.data.segment import write_segment
from aquila2.heurimentor.monitor.intervals import NORMAL, Estimate, proportion, quantile, ratio
from aquila2.training.data import Batch, heldout_batches
from aquila2.training.metrics import heldout_loss
from aquila2.training.options import DataOptions, SourceOptions
from aquila2.training.sources import Document
from tests.aquila2.heurimentor.byte_tokenizer import ByteTokenizer


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (15, 2.131), (1000, 1.962)]
)
def test_quantiles_of_student(freedom: int, expected: float) -> None:
    assert quantile(freedom) == pytest.approx(expected, rel=2e-3)


def test_ratio_of_rows() -> None:
    assert ratio([4.0, 9.0], [2, 3]).mean == pytest.approx(13 / 5)
    one = ratio([4.0, 0.0], [2, 0])
    assert one.mean == 2.0 and one.half == math.inf
    assert all(math.isnan(value) for value in ratio([0.0], [0]))
    assert math.isnan(ratio([math.nan, 1.0], [1, 1]).half)
    assert ratio([2.0, 4.0, 6.0], [1, 2, 3]) == Estimate(2.0, 0.0)


@pytest.mark.parametrize("rows", [4, 16])
def test_intervals_hold_the_truth_in_95_of_100(rows: int) -> None:
    draw = np.random.default_rng(rows)
    held = 0
    for _ in range(1000):
        counts = draw.integers(20, 30, rows)
        level = 3.0 + draw.normal(0, 0.4, rows)  # what the tokens of a row have in common
        sums = [float(np.sum(draw.normal(mean, 1.0, count))) for mean, count in zip(level, counts, strict=True)]
        mean, half = ratio(sums, counts.tolist())
        held += abs(mean - 3.0) <= half
    assert 925 <= held <= 975


class Levels:
    """In the place of a model: every id has a loss, so that all tokens of a document are alike."""

    training = False

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def __init__(self, draw: np.random.Generator) -> None:
        self.levels = torch.from_numpy(3.0 + draw.normal(0, 0.4, 259))
        self.levels[:3] = 3.0

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.levels[ids] * (targets >= 0)


@pytest.mark.parametrize("rows", [16, 64])
def test_intervals_hold_the_truth_for_documents_of_many_rows(tmp_path: Path, rows: int) -> None:
    seq_len, documents = 24, []
    for number in range(90):  # each of ten rows, cut into two pieces
        documents += [Document(f"book:{number}#{piece}", chr(33 + number) * (5 * seq_len - 2)) for piece in (0, 1)]
    write_segment(tmp_path / "heldout" / "books", documents, ByteTokenizer(), source="books", tokenizer_id="bytes")
    options = DataOptions(sources=[SourceOptions(name="books", path="books")], seq_len=seq_len, heldout_rows=rows)
    batches = heldout_batches(tmp_path, options, 8)
    held = 0
    for seed in range(400):
        model: Any = Levels(np.random.default_rng(seed))
        mean, half = heldout_loss(model, batches, torch.device("cpu"))["books"]
        held += abs(mean - 3.0) <= half
    assert 0.92 * 400 <= held <= 0.98 * 400


def test_a_model_s_rows(tiny_model: Aquila2ForCausalLM) -> None:
    ids = torch.randint(0, 300, (3, 8))
    targets = ids.roll(-1, 1)
    targets[:, -1] = targets[2, 2:] = -100
    batch = Batch(ids, targets, torch.arange(0, 25, 8, dtype=torch.int32), 8, ["a"] * 3)
    found = heldout_loss(tiny_model, {"a": [batch], "b": [batch]}, torch.device("cpu"))
    each = tiny_model.loss(ids, targets, cu_seqlens=batch.cu_seqlens, max_seqlen=8, reduction="none")
    assert each.shape == (3, 8) and not each[2, 2:].any()
    assert found["a"] == found["b"]
    mean = tiny_model.loss(ids, targets, cu_seqlens=batch.cu_seqlens).item()
    assert found["a"].mean == pytest.approx(mean, rel=1e-5)
    assert found["a"].half == pytest.approx(ratio(each.double().sum(1).tolist(), [7, 7, 2]).half, rel=1e-6)
    assert found["all"].half == pytest.approx(found["a"].half / math.sqrt(2))


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (3, 7), (50, 100), (20, 20), (1, 1)])
def test_proportion_reaches_the_shares_that_would_still_be_believed(hits: int, count: int) -> None:
    """Wilson's bounds are the shares x whose own deviation z sqrt(x (1 - x) / n) just reaches what was seen."""
    p, half = proportion(hits, count)
    assert p == hits / count
    far = [x for x in np.linspace(0, 1, 100_001) if abs(p - x) <= NORMAL * math.sqrt(x * (1 - x) / count)]
    assert half == pytest.approx(max(p - far[0], far[-1] - p), abs=2e-5)


def test_proportion_of_nothing() -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        proportion(0, 0)
    with pytest.raises(ValueError, match="got 3 and 2"):
        proportion(3, 2)
