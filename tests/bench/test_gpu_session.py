"""What of a GPU session can be tried without a GPU: the plan and its limits, the timing's order, the rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_compare, gpu_timing
from flagattn.testing import DENSE_CASES, PIECEWISE_CASES, attention_by_op, make_inputs

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 540  # seconds of a call, by default


def planned(*arguments: str) -> dict[str, int]:
    command = ["bash", str(ROOT / "bench/gpu_session.sh"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PLAN": "1", "PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stderr
    return {name: int(seconds) for name, seconds in (line.split() for line in done.stdout.splitlines())}


def test_instructions_come_first_and_the_steps_of_a_prepared_session_fit_its_budget() -> None:
    steps = planned("out", "check", "tests", "bench")
    assert next(iter(steps)) == "instructions"
    assert sum(seconds for name, seconds in steps.items() if name != "record") <= BUDGET
    assert set(planned("out", "build")) == {"programs", "build"}


@pytest.mark.parametrize("chunk", ["build", "check", "tests", "bench"])
def test_the_steps_of_a_chunk_alone_fit_the_budget(chunk: str) -> None:
    assert 0 < sum(planned("out", chunk).values()) <= BUDGET


def test_unknown_chunks_are_refused() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "bench/gpu_session.sh"), "out", "benches"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no chunk is named benches" in done.stderr


class FakeCuda:
    """Writes down in which order it is asked."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self) -> None:
        self.log.append("wait")

    def _sleep(self, cycles: int) -> None:
        assert cycles > 0
        self.log.append("pause")

    def Event(self, enable_timing: bool) -> Any:
        log = self.log

        class Event:
            def record(self) -> None:
                log.append("event")

            def elapsed_time(self, end: object) -> float:
                return 1.0

        return Event()


def test_calls_are_queued_behind_a_pause_and_nobody_waits_between() -> None:
    cuda = FakeCuda()
    assert gpu_timing.queued_times_ms(lambda i: cuda.log.append("call"), 5, cuda) == [1.0] * 5
    timed = cuda.log[cuda.log.index("pause") + 1 :]
    assert timed == ["event", "call", "event"] * 5 + ["wait"]


TASKS = [
    (next(case for case in DENSE_CASES if case.causal), torch.bfloat16, True),
    (PIECEWISE_CASES[0], torch.float16, False),
]


def recorded(path: Path) -> Path:
    results = {
        gpu_compare.key_of(task): attention_by_op(task[0], make_inputs(*task[:2]), gradients=task[2]) for task in TASKS
    }
    torch.save(results, path)
    return path


def test_comparison_passes_what_is_right_and_tells_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "compare.json"
    assert gpu_compare.compare(recorded(tmp_path / "host.pt"), out, TASKS, device="cpu")
    result = json.loads(out.read_text())
    assert result["wrong"] == [] and result["recorded"] == 2
    gradients, forward_only = result["cases"]
    assert {"out", "lse", "dq", "dk", "dv"} <= set(gradients) and "dq" not in forward_only
    assert gradients["dq"]["gpu_minus_host"] == 0.0 and gradients["dq"]["plain_error"] > 0.0


@pytest.mark.parametrize("name", ["out", "lse", "dk"])
def test_comparison_finds_errors_of_less_than_an_eps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bf16 numbers of any size: an absolute allowance of one eps would let them pass."""

    def wrong_op(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        results = attention_by_op(*arguments, **options)
        return results | ({name: results[name] * 1.04} if name in results else {})

    monkeypatch.setattr(gpu_compare, "attention_by_op", wrong_op)
    out = tmp_path / "compare.json"
    assert not gpu_compare.compare(tmp_path / "nothing.pt", out, TASKS[:1], device="cpu")
    assert "exceeds" in json.loads(out.read_text())["cases"][0][name]["wrong"]


def test_the_plan_has_every_kind_of_case() -> None:
    tasks = gpu_compare.plan()
    assert {with_gradients for *_, with_gradients in tasks} == {False, True}
    assert any(case.is_piecewise for case, *_ in tasks) and any(case.is_masked for case, *_ in tasks)
    assert len({gpu_compare.key_of(task) for task in tasks}) == len(tasks), "names are keys of the record"
