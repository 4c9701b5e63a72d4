"""Weights and attention from inside: moments, the Fréchet distance and attention scores against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aquila2 import Aquila2ForCausalLM
from aquila2.heurimentor.monitor import weights
from aquila2.heurimentor.monitor.speed import llama2_speed
from aquila2.heurimentor.monitor.weights import frechet, pooled, trajectory, weight_moments
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from tests.aquila2.heurimentor.runs import options_for, write_texts


def walks(n: int, m: int) -> Iterator[list[tuple[int, int]]]:
    """All ways along two curves of n and m points."""
    if n == m == 1:
        yield [(0, 0)]
        return
    for a, b in ((n - 1, m), (n, m - 1), (n - 1, m - 1)):
        if a and b:
            for walk in walks(a, b):
                yield [*walk, (n - 1, m - 1)]


def test_frechet_is_the_best_of_all_walks() -> None:
    torch.manual_seed(1)
    for n, m in itertools.product((1, 2, 4, 5), (1, 3, 5)):
        a, b = (3 * torch.randn(n)).tolist(), (3 * torch.randn(m)).tolist()
        best = min(max(math.hypot(i - j, a[i] - b[j]) for i, j in walk) for walk in walks(n, m))
        assert frechet(a, b) == frechet(b, a) == pytest.approx(best)
    assert frechet([1.0, 2.0], [1.0, 2.0]) == 0.0
    with pytest.raises(ValueError, match="at least one point"):
        frechet([], [1.0])
    assert trajectory({"q": [0.1, 0.1]}, {"q": [0.1, 0.3], "k": [1.0]}, 500_000_000) == {"q": pytest.approx(0.4)}


def test_moments_of_the_nine_kinds(tiny_model: Aquila2ForCausalLM) -> None:
    found = weight_moments(tiny_model)
    assert list(found) == list(weights.KINDS) and len(found) == 9
    for kind, name in weights.KINDS.items():
        stacked = torch.stack([dict(layer.named_parameters())[name] for layer in tiny_model.model.layers]).double()
        assert len(found[kind]) == len(tiny_model.model.layers)
        expected = (stacked.mean().item(), stacked.std(correction=0).item())
        assert pooled(found[kind]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_run_writes_them_at_every_measurement(tmp_path: Path) -> None:
    write_texts(tmp_path)
    trainer.train(options_for(tmp_path, tmp_path / "run", run={"eval_every": 6, "save_every": 6}))
    records = read_metrics(tmp_path / "run")
    looks = {kind: [r for r in records if r["kind"] == kind] for kind in ("weights", "attention", "trajectory")}
    assert [r["step"] for r in looks["weights"]] == [r["step"] for r in looks["attention"]] == [0, 6, 12]
    assert [r["step"] for r in looks["trajectory"]] == [6, 12]
    assert [r["tokens"] for r in looks["weights"]] == [0, 6 * 4 * 24, 12 * 4 * 24]
    assert all(math.isfinite(r["layer_0"]) for r in looks["attention"])
    first, last = looks["weights"][1:]
    expected = frechet(first["layers"]["q"], last["layers"]["q"]) * 1e9 / (6 * 4 * 24)
    assert looks["trajectory"][1]["q"] == pytest.approx(expected) and expected > 0
    # A continued run compares with what was before it.
    (tmp_path / "run" / "checkpoints" / "step-00000012").rename(tmp_path / "away")
    trainer.train(options_for(tmp_path, tmp_path / "run", run={"eval_every": 6, "save_every": 6}))
    assert [r for r in read_metrics(tmp_path / "run") if r["kind"] == "trajectory"] == looks["trajectory"]


@pytest.mark.parametrize(("size", "speed"), [(6.74e9, 3014.1), (33.7e9, 535.0), (69.0e9, 322.9), (6.74e8, 30141)])
def test_the_pace_of_llama2(size: float, speed: float) -> None:
    assert llama2_speed(size) == pytest.approx(speed, rel=1e-3)
    assert llama2_speed(0.9 * size) > llama2_speed(size) > llama2_speed(1.1 * size)
