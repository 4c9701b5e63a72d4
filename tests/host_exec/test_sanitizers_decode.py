"""Attention over caches under AddressSanitizer and ThreadSanitizer, and the faults that either or the numbers show."""

from __future__ import annotations

import pytest

from tests.host_exec.runs import SEEDS, Done, Run, runs_of, with_runs

PROBLEMS = (
    "lengths=1:600,1:40 heads_q=8 heads_k=1 right=0",
    "lengths=3:530 dtype=fp16 head_dim=128 page_size=24 left=520 right=0 alibi=1 sinks=1",
    "lengths=2:530,20:70,1:5 packed=1 heads_q=8 page_size=7 right=0 sinks=1",
    "lengths=4:90,4:33 head_dim=96 append=4 half_dim=20 right=0 page_size=16",
    "lengths=2:560 head_dim=192 threshold=77 right=0 heads_q=2 heads_k=2 append=2",
)
SCHEDULES = ("seed=0 copies=lazy workers=2", "seed=1 copies=eager", "seed=2 copies=random workers=2")


# A problem has one or two of the schedules.
@with_runs(
    run
    for index, problem in enumerate(PROBLEMS)
    for run in runs_of("run_decode", ("asan", "tsan"), [problem], SCHEDULES[index % 3 :: 2])
)
def test_no_report(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


# Fault -> (problem, the builds that must catch it, with what they say). Each problem is right without one.
AT_ONCE = "lengths=3:190 heads_q=16 head_dim=64 right=0"
SPLIT = "lengths=2:600 head_dim=64 right=0"
PAGES = "lengths=2:90 page_size=16 right=0"
FAULTS = {
    "missing_barrier": (SPLIT, {"tsan": "data race"}),
    "missing_part_barrier": (SPLIT + " threshold=300", {"tsan": "data race"}),
    "missing_copy_wait": (AT_ONCE, {"plain": "without having waited for its cp.async", "tsan": "data race"}),
    "early_slot_release": (SPLIT, {"tsan": "data race"}),
    "missing_warp_sync": (AT_ONCE, {"tsan": "data race"}),
    "stray_read": (AT_ONCE, {"asan": "heap-buffer-overflow"}),
    "stray_write": (AT_ONCE, {"asan": "heap-buffer-overflow"}),
    "wrong_swizzle": (SPLIT, {"plain": "out error"}),
    "wrong_mask_edge": (AT_ONCE, {"plain": "out error"}),
    "wrong_row": (PAGES, {"plain": "out error"}),
}


def planted() -> list[tuple[str, Run]]:
    """(fault, a run that must catch it)."""
    return [
        (fault, Run("run_decode", build, f"{problem} fault={fault}"))
        for fault, (problem, says) in FAULTS.items()
        for build in says
    ]


@pytest.mark.parametrize(("fault", "run"), planted(), ids=str)
def test_planted_fault_is_caught(fault: str, run: Run, done: Done) -> None:
    assert done.returncode != 0, f"{fault} went unnoticed: {done.stdout}"
    assert FAULTS[fault][1][run.build] in done.stdout, done.stdout[:4000]
    if run.build != "plain":
        assert "csrc/attention/cuda/sm80/" in done.stdout or "_kernel<" in done.stdout, "the report names no kernel"


@with_runs(runs_of("run_decode", ("plain", "asan", "tsan"), sorted({problem for problem, _ in FAULTS.values()})))
def test_the_problems_of_the_faults_are_right_without_one(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.slow
@with_runs(runs_of("run_decode", ["tsan"], (AT_ONCE, SPLIT, PAGES), SEEDS))
def test_no_false_alarm(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]
