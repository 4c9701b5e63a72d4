"""README's bars hide no stronger program and no missed bar; what missed attention bars ask is told of each of them."""

from __future__ import annotations

from typing import Any

import pytest

from bench import asks, report, results
from bench.bars import BARS, Bar, Verdict, judge
from docs import blocks

Row = dict[str, Any]


def row(suite: str, class_: str, shape: str, **peers: dict[str, float]) -> Row:
    work = {"flops": 1e9, "bytes": 0, "median_s": 0.01}
    return {"suite": suite, "class": class_, "shape": shape, "peers": peers, **work}


def made_up(*rows: Row, machine_rows: tuple[Row, ...] = ()) -> dict[str, dict[str, Any]]:
    conditions = {"cpu": "cpu", "microarchitecture": "x", "cores": 2, "threads": 2, "torch": "0", "python": "0"}
    facts = {"commit": "c", "date": "2026-01-01", "command": "command", "conditions": conditions}
    return {"attention": {**facts, "rows": list(rows), "machine_rows": list(machine_rows)}}


def against_others(verdict: Verdict) -> tuple[str, float]:
    return verdict.bar.what.split(" against ")[0], verdict.bar.bound


# -------------------------------------------------------------------------------------------------- README's summary


@pytest.mark.parametrize("strongest", ["torch SDPA", "rows as queries", "onnxruntime"])
def test_decoding_is_compared_with_the_strongest_program(strongest: str) -> None:
    ratios = {peer: {"times_ours": 0.9 if peer == strongest else 3.0} for peer in ("torch SDPA", "rows as queries")}
    ratios["onnxruntime"] = {"times_ours": 0.9 if strongest == "onnxruntime" else 4.0}
    files = made_up(row("decode", "fp32", "B 1 context 1024 GQA 4", **ratios))
    (verdict,) = blocks.summarised(files)
    assert verdict.bar.what == f"decode, fp32, context 1024, against {strongest}" and not verdict.met


def test_the_longest_of_two_times_is_the_strongest_program_where_less_is_better() -> None:
    bars = [Bar(f"x, time against {peer}", "x", "<=", 1.0, lambda row: 1.0) for peer in ("a", "b")]
    verdicts = [Verdict(bar, ratio, ratio, "", 1, 0.0) for bar, ratio in zip(bars, (0.8, 0.9), strict=True)]
    assert blocks.strongest(verdicts) == verdicts[1:]
    assert blocks.strongest(verdicts[::-1]) == verdicts[1:]


def test_a_share_of_the_read_bandwidth_is_shown_met_or_not() -> None:
    for share, met in ((0.9, True), (0.5, False)):
        files = made_up(row("decode", "fp32", "B 1 context 8192 GQA 4", read={"share": share}))
        (verdict,) = blocks.summarised(files)
        assert verdict.bar.what.endswith("share of the read bandwidth") and verdict.met is met


@pytest.mark.parametrize("machine", results.machines())
def test_every_missed_bar_against_others_is_in_readme(machine: str) -> None:
    files = results.read(results.RESULTS / machine)
    shown = blocks.summarised(files)
    missed = {against_others(verdict) for verdict in shown if not verdict.met}
    for verdict in report.verdicts(files):
        if verdict.bar.against == "machine":
            assert verdict in shown
        elif verdict.bar.against == "program" and not verdict.met:
            assert against_others(verdict) in missed, f"{verdict.bar.what} is missed, and README does not tell"


def test_bars_between_our_own_functions_say_so() -> None:
    ours = {bar.suite for bar in BARS if bar.against == "ours"}
    alone = {"decode, paged", "piecewise forward", "piecewise backward", "one head forward", "one head backward"}
    assert ours == alone | {"attention backward"}
    assert {bar.against for bar in BARS} == {"program", "machine", "ours"}


# ------------------------------------------------------------------------------------------- what the missed bars ask


def missed_attention_bars(rows: list[Row]) -> list[str]:
    """The bars of `asks` that were measured and missed; only those against other programs ask something of torch."""
    bars = [bar for bar in BARS if bar.suite in asks.SUITES and bar.against == "program"]
    verdicts = [verdict for bar in bars if (verdict := judge(bar, rows)) is not None]
    return [verdict.bar.what for verdict in verdicts if not verdict.met]


PEAK: Row = {**row("machine", "fma in registers", "2 threads"), "flops": 8e9, "median_s": 0.04}


def test_what_each_missed_bar_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"torch SDPA": {"times_ours": 0.5, "median_s": 0.005}}
    rows = [
        row(suite, f"{dtype} {mask}", f"B 1 S {length} D 64 Hq 12", **slow)
        for suite in asks.SUITES
        for dtype in ("fp32", "bf16")
        for mask in ("full", "causal")
        for length in (512, 2048)
    ]
    files = made_up(*rows, machine_rows=(PEAK,))
    monkeypatch.setattr(blocks, "_quoted", lambda: ("machine", files))
    missed = missed_attention_bars(rows)
    assert len(missed) == 12
    table = blocks.asked("en", "")
    for what in missed:
        assert f"\n| {what} | " in table


def test_without_the_peak_the_page_says_so_and_shows_no_empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    files = made_up(row("attention forward", "fp32 full", "S 512 D 64"))
    monkeypatch.setattr(blocks, "_quoted", lambda: ("machine", files))
    assert "was not measured" in blocks.asked("en", "") and "|" not in blocks.asked("en", "")


def test_the_committed_results_tell_what_each_missed_bar_asks() -> None:
    quoted = blocks._quoted()
    if quoted is None or not quoted[1]["attention"].get("machine_rows"):
        pytest.skip("attention.json holds no rates of its machine")
    content = quoted[1]["attention"]
    page = (results.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = page.split("<!-- generated: asked -->")[1].split("<!-- end -->")[0]
    for what in missed_attention_bars(content["rows"]):
        assert f"\n| {what} | " in table
