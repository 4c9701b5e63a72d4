"""From pytest-benchmark's JSON to result files, tables, bars and charts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import charts, report, results
from bench.bars import BARS, Bar, faster_than, judge, share_of, time_against


def row(suite: str, class_: str, shape: str, seconds: float, peers: dict[str, Any], **work: float) -> dict[str, Any]:
    defaults = {"flops": 0.0, "bytes": 0.0}
    return {"suite": suite, "class": class_, "shape": shape, "median_s": seconds, "peers": peers, **defaults, **work}


def sdpa(ratio: float, share: float, seconds: float = 1e-3) -> dict[str, Any]:
    return {
        "torch SDPA": {"median_s": seconds * ratio, "times_ours": ratio, "spread": [ratio, ratio]},
        "sgemm": {"median_s": 1e-2, "times_ours": 1.0, "spread": [1.0, 1.0], "share": share, "gflops": 200.0},
    }


@pytest.fixture
def files() -> dict[str, dict[str, Any]]:
    conditions = {
        "machine": "test-2c", "cpu": "Test CPU", "microarchitecture": "zen3", "cores": 2, "threads": 2,
        "torch": "2.13.0", "python": "3.11",
    }  # fmt: skip
    head = {
        "schema": 1,
        "command": "python -m bench",
        "date": "2026-01-01T00:00:00",
        "commit": "abc",
        "conditions": conditions,
    }
    attention = [
        row("attention forward", class_, f"S {seqlen} D 64 Hq 12 GQA 4", 1e-3, sdpa(ratio, 0.97), flops=2e8, bytes=1e6)
        for class_, ratio in (("fp32 full", 1.5), ("fp32 causal", 2.0), ("bf16 full", 1.3), ("bf16 causal", 2.5))
        for seqlen in (512, 2048)
    ]
    machine = [
        row("machine", "copy 64 MiB", "2 threads", 1e-2, {}, bytes=1e8),
        row("machine", "sgemm 1024", "2 threads", 1e-2, {}, flops=2e9),
    ]
    copy = {"copy": {"median_s": 1e-3, "times_ours": 0.8, "spread": [0.8, 0.8], "share": 0.8}}
    norm = [row("rms_norm forward", "fp32", "2048 x 4096", 1e-3, copy, bytes=6e6)]
    return {
        "attention": {**head, "machine_rows": machine, "rows": attention},
        "machine": {**head, "machine_rows": [], "rows": machine},
        "norm": {**head, "machine_rows": [], "rows": norm},
    }


def test_pytest_benchmark_json_becomes_one_file_per_module(tmp_path: Path) -> None:
    entry = {
        "name": "bench_forward[x]",
        "fullname": "bench/bench_attention.py::bench_forward[x]",
        "extra_info": row("attention forward", "fp32 full", "S 8", 0.123456789, {}),
        "stats": {"rounds": 5, "min": 0.1, "iqr": 0.01},
    }
    foreign = {**entry, "extra_info": {}}
    raw = {
        "benchmarks": [entry, foreign],
        "datetime": "2026-01-01T10:11:12.5",
        "commit_info": {"id": "abc"},
        "machine_info": {"machine": "m"},
    }
    probe = row("machine", "copy 64 MiB", "2 threads", 1e-2, {}, bytes=1e8)
    files = results.split_by_module(raw, "python -m bench", [probe])
    assert list(files) == ["attention"]
    results.write(files, tmp_path)
    read = results.read(tmp_path)
    assert read == json.loads(json.dumps(files))
    (only,) = read["attention"]["rows"]
    assert only["median_s"] == 0.123457
    assert read["attention"]["date"] == "2026-01-01T10:11:12"


def test_results_of_another_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "attention.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema 0"):
        results.read(tmp_path)


def test_the_roofline_share_uses_the_machine_rows(files: dict[str, dict[str, Any]]) -> None:
    flops, moved = report.machine_rates(report.measured_beside(files["attention"]))
    assert (flops, moved) == (2e11, 1e10)
    assert report.machine_rates(report.measured_beside(files["norm"])) == (0.0, 0.0)  # measured in another run
    compute = files["attention"]["rows"][0]
    assert report.roofline_share(compute, flops, moved) == pytest.approx(1.0)
    memory = files["norm"]["rows"][0]
    assert report.roofline_share(memory, flops, moved) == pytest.approx(0.6)
    assert report.roofline_share(memory, 0.0, 0.0) is None


def test_bars_take_the_mean_or_the_worst(files: dict[str, dict[str, Any]]) -> None:
    rows = report.all_rows(files)
    mean = judge(Bar("mean", "attention forward", ">=", 1.45, faster_than("torch SDPA", "fp32 full")), rows)
    assert mean is not None and mean.met and mean.measured == pytest.approx(1.5) and mean.rows == 2
    worst = judge(Bar("worst", "attention forward", ">=", 1.4, faster_than("torch SDPA"), "worst case"), rows)
    assert worst is not None and not worst.met and worst.worst_shape.startswith("bf16 full")
    share = judge(Bar("share", "attention forward", ">=", 0.95, share_of("sgemm", "full", "S 2048")), rows)
    assert share is not None and share.met and share.rows == 2
    copy = judge(Bar("copy", "rms_norm forward", "<=", 1.3, time_against("copy")), rows)
    assert copy is not None and copy.met and copy.measured == pytest.approx(1.25)
    assert judge(Bar("absent", "swiglu forward", "<=", 1.3, time_against("copy")), rows) is None


def test_a_busy_machine_meets_no_bar_and_what_was_not_measured_is_said() -> None:
    bar = next(bar for bar in BARS if bar.what == "training step, against HF Llama eager")
    row = {"suite": bar.suite, "class": "fp32", "shape": "S 512", "peers": {"HF Llama eager": {"times_ours": 9.0}}}
    for others, words in ((0.05, "yes"), (0.46, "doubtful: other processes took 46 %")):
        verdict = judge(bar, [row | {"others_cpu": others}])
        assert verdict is not None and verdict.in_words == words
        _, lines = report.bars_table({"step": {"rows": [row | {"others_cpu": others}]}})
        assert [line[-1] for line in lines if line[0] == bar.what] == [words]
        assert [line[-1] for line in lines].count("not measured") == len(BARS) - 1


def test_a_worst_case_misses_as_its_own_row_does_and_is_met_by_all() -> None:
    loud = {"suite": "s", "class": "a", "shape": "", "peers": {"p": {"times_ours": 2.0}}, "others_cpu": 0.4}
    quiet = {"suite": "s", "class": "b", "shape": "", "peers": {"p": {"times_ours": 1.1}}, "others_cpu": 0.02}
    worst = judge(Bar("worst", "s", ">=", 1.2, faster_than("p"), "worst case"), [loud, quiet])
    assert worst is not None and worst.in_words == "NO"
    met = judge(Bar("worst", "s", ">=", 1.0, faster_than("p"), "worst case"), [loud, quiet])
    assert met is not None and met.in_words == "doubtful: other processes took 40 %"  # quietly, `a` might be worse
    mean = judge(Bar("mean", "s", ">=", 1.2, faster_than("p")), [loud, quiet])
    assert mean is not None and mean.in_words == "doubtful: other processes took 40 %"


def test_every_bar_names_a_suite_once() -> None:
    names = [bar.what for bar in BARS]
    assert len(names) == len(set(names))
    assert all(bar.op in (">=", "<=") and bar.over in ("geometric mean", "worst case") for bar in BARS)


def test_the_text_report_shows_rows_means_and_bars(files: dict[str, dict[str, Any]]) -> None:
    text = report.text_report(files)
    assert "geometric mean" in text
    assert "x torch SDPA" in text and "% of sgemm" in text
    assert "commit abc" in text and "python -m bench" in text
    assert "NO" in text  # the bf16 full bar of 1.4 is missed by 1.3
    lines = [line for line in text.splitlines() if line.startswith("fp32 full")]
    assert len({len(line.rstrip()) for line in lines if "geometric" not in line}) == 1


def test_charts_are_well_formed_and_carry_their_conditions(files: dict[str, dict[str, Any]]) -> None:
    captions = {name: report.conditions(content) for name, content in files.items()}
    drawn = charts.draw_all(files, captions)
    assert set(drawn) == {"attention_forward.svg", "ratios.svg"}
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        words = " ".join(root.itertext())
        assert "commit abc" in words and "torch 2.13.0" in words and "Test CPU zen3" in words
        assert "prefers-color-scheme: dark" in svg
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for shape in root.iter("{http://www.w3.org/2000/svg}rect"):
            x, y, w, h = (float(shape.attrib[name]) for name in ("x", "y", "width", "height"))
            assert min(x, y, w, h) >= 0 and x + w <= width and y + h <= height
