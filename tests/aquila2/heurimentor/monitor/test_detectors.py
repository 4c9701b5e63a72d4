"""Each detector finds its fault in a synthetic curve, names it, and leaves healthy curves alone."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from aquila2.heurimentor.monitor.detectors import (
    data_stall,
    divergence,
    middle_and_spread,
    no_better,
    no_wiser,
    noise,
    not_finite,
    overfit,
    plateau,
    spike,
    straggler,
    stuck_domains,
)
from aquila2.heurimentor.monitor.monitor import Alert, Monitor
from aquila2.training.finite import finite, numbers
from aquila2.training.options import MonitorOptions


def healthy(steps: int, seed: int = 0, noise: float = 0.05) -> list[float]:
    """A loss curve as it should be: a power law with noise, now and then of long tails."""
    rng = np.random.default_rng(seed)
    curve = 2.0 + 6.0 * (1.0 + np.arange(steps)) ** -0.4
    return list(curve + noise * rng.standard_t(5, steps))


def test_middle_and_spread_are_those_of_a_normal_distribution_without_its_outliers() -> None:
    values = np.random.default_rng(0).normal(3.0, 0.2, 2000)
    values[:100] = 1e6
    middle, spread = middle_and_spread([*values.tolist(), math.nan])
    assert middle == pytest.approx(3.0, abs=0.05) and spread == pytest.approx(0.2, abs=0.05)
    assert middle_and_spread([5.0] * 10)[1] == pytest.approx(5e-3)


def test_noise_is_told_from_a_slope_and_outliers() -> None:
    values = 5.0 - 0.01 * np.arange(400) + np.random.default_rng(0).normal(0.0, 0.05, 400)
    values[::40] = 1e6
    assert noise(values.tolist()) == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_spikes_are_found_and_healthy_curves_have_none(seed: int) -> None:
    curve = healthy(600, seed, noise=0.02)
    found = [step for step in range(1, 600) if spike("loss", curve[: step + 1])]
    assert len(found) <= 3  # long tails: once in some hundred steps
    for step in (60, 300, 599):
        jumped = [*curve[:step], curve[step] + 1.0]
        assert "the loss jumps to" in (spike("loss", jumped) or "")
        fallen = [*curve[:step], curve[step] - 1.0]
        assert spike("loss", fallen) is None
    assert spike("loss", [*curve[:8], 100.0]) is None  # too early to tell
    assert spike("loss", [*curve[:300], math.nan]) is None


def test_values_that_are_not_finite() -> None:
    assert not_finite("loss", math.nan) == "the loss is nan" and not_finite("loss", -math.inf)
    assert not_finite("loss", 1e30) is None


@pytest.mark.parametrize("seed", range(5))
def test_divergence(seed: int) -> None:
    curve = healthy(640, seed)
    assert all(divergence(curve[:end]) is None for end in range(64, 641, 64))
    rising = curve + [curve[-1] + 0.01 * step + 0.05 * math.sin(step) for step in range(128)]
    assert "the loss rises" in (divergence(rising) or "")
    one = [*curve[:630], 50.0, *curve[631:]]  # a spike alone is none
    assert divergence(one) is None


def test_plateau() -> None:
    falling = [4.0 * 0.97**i for i in range(20)]
    assert all(plateau(falling[:end]) is None for end in range(1, 21))
    flat = falling + [falling[-1] * (1 + 0.001 * (-1) ** i) for i in range(4)]
    assert plateau(flat[:-1]) is None
    assert "the held-out loss stays" in (plateau(flat) or "")


def test_stuck_domain() -> None:
    moving = [3.0 * 0.97**i for i in range(10)]
    curves = {"code": moving, "english": [2 * value for value in moving], "noise": [7.0, 7.01] * 5}
    assert list(stuck_domains(curves)) == ["noise"]
    assert stuck_domains({name: values[:3] for name, values in curves.items()}) == {}
    still = {"code": [3.0] * 10, "english": [2.9] * 10, "noise": [7.0] * 10}
    assert stuck_domains(still) == {} and stuck_domains({"alone": moving}) == {}


def test_overfit_domain() -> None:
    curve = [3.0, 2.5, 2.2, 2.1, 2.12, 2.15, 2.2, 2.3, 2.4]
    assert overfit("sums", curve[:6], 3.0) is None
    assert "sums is learnt by heart: held out 2.4 after 3.0 epochs" in (overfit("sums", curve, 3.0) or "")
    assert overfit("sums", curve, 0.5) is None  # what rises in the first epoch is not known by heart


def test_straggler() -> None:
    even = [[1.0 + 0.1 * (step % 3), 1.1, 1.0] for step in range(20)]
    assert straggler(even, [4, 4, 4]) is None
    slow = [[step[0], 2.0 * step[1], step[2]] for step in even]
    rank, sentence = straggler(slow, [4, 4, 4]) or (-1, "")
    assert rank == 1 and sentence.startswith("rank 1 takes 2.")
    assert straggler(slow, [4, 8, 4]) is None  # it has twice the rows
    assert straggler(slow[:5], [4, 4, 4]) is None and straggler([[1.0]] * 20, [4]) is None
    assert (straggler(slow, [4, 4, 0]) or (-1, ""))[0] == 1
    hiccup = [*even[:-1], [1.0, 30.0, 1.0]]
    assert straggler(hiccup, [4, 4, 4]) is None


def test_data_stall() -> None:
    assert data_stall([0.01] * 20, [1.0] * 20) is None
    assert data_stall([0.3] * 20, [1.0] * 20) == "steps wait for data for 30% of their time"
    assert data_stall([0.3] * 5, [1.0] * 5) is None


def test_a_successor_that_is_no_better() -> None:
    before = {"code": 2.0, "english": 3.0, "all": 2.5}
    assert no_better(before, {"code": 1.9, "english": 3.05, "all": 2.4, "new": 9.0}, ("a", "b")) is None
    assert "b is no better than a" in (no_better(before, {"code": 2.1, "english": 3.0}, ("a", "b")) or "")
    assert no_better(before, {"new": 1.0}, ("a", "b")) is None


def test_a_successor_that_answers_no_better() -> None:
    before = {"animals/acc": 0.5, "words/acc": 0.2}
    assert no_wiser(before, {"animals/acc": 0.45, "words/acc": 0.3, "new/acc": 0.0}, ("a", "b")) is None
    sentence = no_wiser(before, {"animals/acc": 0.5, "words/acc": 0.2}, ("a", "b"))
    assert sentence == "b answers no better than a: 35.0% right, 35.0% before"
    assert no_wiser(before, {"new/acc": 0.0}, ("a", "b")) is None


def test_the_monitor_compares_the_answers_of_stages() -> None:
    monitor = Monitor(MonitorOptions())
    assert not monitor.probed({"a/acc": 0.5}, "first")
    assert not monitor.probed({"a/acc": 0.1}, "first")  # within a stage answers may come and go
    monitor = continued(monitor, [])
    (alert,) = monitor.probed({"a/acc": 0.4}, "second")
    sentence = "its end answers no better than stage 'first''s beginning: 40.0% right, 50.0% before"
    assert alert == ("no_better", "first", sentence)
    assert not monitor.probed({"a/acc": 0.3}, "second")
    assert not monitor.probed({"a/acc": 0.6}, "third")


def step_record(loss: float, wait: float = 0.0) -> dict[str, float]:
    return {"loss": loss, "grad_norm": 1.0, "seconds": 1.0, "data_wait": wait}


def test_the_monitor_tells_once_until_it_is_over() -> None:
    monitor = Monitor(MonitorOptions(window=16))
    told = []
    for step in range(120):
        told += monitor.step(step_record(2.0, 0.5 if 30 <= step < 60 else 0.0), [1.0], [4])
    assert [alert.kind for alert in told] == ["data_stall"]
    told = []
    for _ in range(8):
        told += monitor.measured({"a": 2.0, "all": 2.0}, {}, "")
    assert [alert.kind for alert in told] == ["plateau"]
    assert [a.kind for a in monitor.measured({"a": 1.0, "all": 1.0}, {}, "")] == []
    assert [a.subject for a in monitor.measured({"a": 3.0, "all": 3.0}, {}, "second")] == [""]


def test_a_stall_around_the_limit_is_told_once() -> None:
    monitor = Monitor(MonitorOptions(window=16))
    told = []
    for step in range(200):
        told += monitor.step(step_record(2.0, 0.085 + 0.04 * math.sin(step / 8)), [1.0], [4])
    assert [alert.kind for alert in told] == ["data_stall"]


def test_a_continued_monitor_remembers() -> None:
    curve = healthy(64)
    records = [{"kind": "train", "step": i, **step_record(loss)} for i, loss in enumerate(curve)]
    monitor = Monitor(MonitorOptions(), [*records, {"kind": "heldout", "step": 64, "a": 2.0, "all": 2.0}])
    alert = monitor.judge(curve[-1] + 5.0, 1.0)
    assert alert is not None and (alert.kind, alert.subject) == ("spike", "loss")
    assert monitor.judge(curve[-1], 1.0) is None
    found = monitor.judge(curve[-1], math.inf)
    assert found is not None and found.kind == "not_finite"
    assert monitor.heldout == {"a": [2.0], "all": [2.0]}


def continued(monitor: Monitor, records: list[dict[str, Any]]) -> Monitor:
    """As a run that is taken up again makes it, from its metrics and a checkpoint's JSON."""
    return Monitor(monitor.options, records, numbers(json.loads(json.dumps(finite(monitor.state())))))


def test_a_continued_monitor_tells_nothing_twice() -> None:
    monitor = Monitor(MonitorOptions(window=16))
    records: list[dict[str, Any]] = []
    told: list[Alert] = []
    for step in range(40):
        record = step_record(2.0, 0.5)
        told += monitor.step(record, [1.0, 1.0, 3.0], [4, 4, 4])
        records.append({"kind": "train", "step": step, **record})
    for step in range(8):
        told += monitor.measured({"a": 2.0, "all": 2.0}, {}, "")
        records.append({"kind": "heldout", "step": step, "a": 2.0, "all": 2.0})
    assert [alert.kind for alert in told] == ["data_stall", "straggler", "plateau"]
    monitor, told = continued(monitor, records), []
    for _ in range(40):
        told += monitor.step(step_record(2.0, 0.5), [1.0, 1.0, 3.0], [4, 4, 4])
    told += monitor.measured({"a": 2.0, "all": 2.0}, {}, "")
    assert not told
    # A rank that keeps up for as long as one is looked at before it is called slow may be told again.
    for slow in (1.0, 3.0):
        for _ in range(40):
            told += monitor.step(step_record(2.0, 0.5), [1.0, 1.0, slow], [4, 4, 4])
    assert [(alert.kind, alert.subject) for alert in told] == [("straggler", "rank 2")]


def test_a_continued_monitor_compares_with_the_stage_s_beginning() -> None:
    monitor = Monitor(MonitorOptions())
    assert not monitor.measured({"a": 3.0, "all": 3.0}, {}, "nan")  # a stage may have any name
    monitor = continued(monitor, [{"kind": "heldout", "step": 0, "a": 3.0, "all": 3.0}])
    assert monitor.stage == ("nan", {"a": 3.0, "all": 3.0})
    assert not monitor.measured({"a": 2.0, "all": 2.0}, {}, "nan")
    assert not monitor.measured({"a": 2.5, "all": 2.5}, {}, "second")  # better than when the stage began
    (alert,) = monitor.measured({"a": 2.5, "all": 2.5}, {}, "third")
    assert (alert.kind, alert.subject) == ("no_better", "second")
