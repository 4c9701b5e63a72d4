"""What a bar against torch asks of the machine: its ratio times torch's rate, beside the rate of multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.bars import BARS, SDPA, Bar
from bench.timing import geometric_mean

Row = dict[str, Any]

SUITES = ("attention forward", "attention backward", "short sequences forward", "short sequences backward")


@dataclass(frozen=True)
class Ask:
    """FLOP/s, geometric means over the rows of one bar and one sequence length; a worst-case bar has one row."""

    what: str
    shape: str
    torch: float
    ours: float
    asked: float
    peak: float


def fma_peak(rows: Sequence[Row], threads: int = 2) -> float:
    """FLOP/s of multiply-adds in registers; 0 where the machine's rows lack it."""
    rates = [
        row["flops"] / row["median_s"]
        for row in rows
        if row["suite"] == "machine" and row["class"].startswith("fma") and row["shape"] == f"{threads} threads"
    ]
    return float(rates[0]) if rates else 0.0


def asks(rows: Sequence[Row]) -> list[Ask]:
    """For each attention bar against torch that was measured, what it asks, by sequence length."""
    peak = fma_peak(rows)
    found = []
    for bar in BARS:
        if bar.suite not in SUITES or "against torch" not in bar.what or not peak:
            continue
        valued = [
            (value, row) for row in rows if row["suite"] == bar.suite and (value := bar.value_of(row)) is not None
        ]
        for shape, group in _groups(bar, valued):
            torch = geometric_mean([row["flops"] / row["peers"][SDPA]["median_s"] for row in group])
            ours = geometric_mean([row["flops"] / row["median_s"] for row in group])
            found.append(Ask(bar.what, shape, torch, ours, torch * bar.bound, peak))
    return found


def _groups(bar: Bar, valued: Sequence[tuple[float, Row]]) -> list[tuple[str, list[Row]]]:
    if not valued:
        return []
    if bar.over == "worst case":
        _, row = min(valued, key=lambda pair: pair[0])
        return [(f"{row['class']}, {row['shape']}", [row])]
    lengths: dict[str, list[Row]] = {}
    for _, row in valued:
        lengths.setdefault(row["shape"].split(" D ")[0], []).append(row)
    return list(lengths.items())
