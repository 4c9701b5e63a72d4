"""What bars ask: rates by hand, the grouping, and nothing where the machine's peak was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from bench.asks import asks, fma_peak

Row = dict[str, Any]

PEAK: Row = {"suite": "machine", "class": "fma in registers", "shape": "2 threads", "flops": 8e9, "median_s": 0.04}


def row(shape: str, ours: float, torchs: float, suite: str = "attention forward", class_: str = "fp32 full") -> Row:
    peers = {"torch SDPA": {"median_s": torchs, "times_ours": torchs / ours}}
    return {"suite": suite, "class": class_, "shape": shape, "flops": 1e9, "median_s": ours, "peers": peers}


def test_rates_are_geometric_means_over_a_bars_rows_of_one_length() -> None:
    rows = [
        PEAK,
        row("S 512 D 64 Hq 12", 0.01, 0.02),
        row("S 512 D 128 Hq 12", 0.04, 0.08),
        row("S 2048 D 64", 0.1, 0.1),
    ]
    found = [ask for ask in asks(rows) if ask.what == "attention forward, fp32 full, against torch"]
    assert [ask.shape for ask in found] == ["S 512", "S 2048"]
    assert found[0].ours == pytest.approx(50e9) and found[0].torch == pytest.approx(25e9)
    assert found[0].asked == pytest.approx(1.35 * 25e9) and found[0].peak == pytest.approx(200e9)


def test_a_worst_case_bar_tells_of_its_worst_row() -> None:
    name = "short sequences forward"
    rows = [PEAK, row("B 4 S 128", 0.01, 0.03, name), row("B 4 S 128", 0.01, 0.015, name, "bf16 causal")]
    (ask,) = [ask for ask in asks(rows) if ask.what.startswith(name)]
    assert ask.shape == "bf16 causal, B 4 S 128" and ask.asked == pytest.approx(2 * 1e9 / 0.015)


def test_without_the_machines_peak_nothing_is_said() -> None:
    assert fma_peak([]) == 0.0
    assert asks([row("S 512 D 64", 0.01, 0.02)]) == []
