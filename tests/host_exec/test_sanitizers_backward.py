"""The attention backward under AddressSanitizer and ThreadSanitizer, and the faults that one build must catch."""

from __future__ import annotations

import pytest

from tests.host_exec.runs import SEEDS, Done, Run, runs_of, with_runs

PROBLEMS = (
    "dtype=bf16 head_dim=64 heads_q=2 heads_k=1 lengths=140:290 right=0",
    "dtype=fp16 head_dim=128 heads_q=2 heads_k=2 lengths=131:150",
    "dtype=fp16 head_dim=64 heads_q=4 heads_k=2 lengths=130:190,65:65,0:5,7:0,90:33 packed=1 right=0",
    "dtype=bf16 head_dim=80 head_dim_v=40 heads_q=2 heads_k=2 lengths=129:300 left=140 right=3 softcap=5",
    "dtype=bf16 head_dim=64 heads_q=2 heads_k=1 lengths=130:190,65:65 packed=1 right=0 threshold=40",
    "dtype=bf16 head_dim=40 heads_q=2 heads_k=1 lengths=70:150,70:150 right=3 softcap=5 terms=1",
    "dtype=fp16 head_dim=256 heads_q=2 heads_k=1 lengths=70:130 right=0",
    "dtype=bf16 head_dim=256 heads_q=2 heads_k=1 lengths=70:100 right=0 capability=89",
    "dtype=fp16 head_dim=128 heads_q=2 heads_k=1 lengths=70:150 left=90 right=3 terms=1 capability=89",
)


SCHEDULES = ("seed=0 copies=lazy workers=2", "seed=2 copies=random workers=2")


@with_runs(runs_of("run_backward", ("asan", "tsan"), PROBLEMS, SCHEDULES))
def test_no_report(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


# Fault -> the builds that must catch it, with what they say.
FAULTS = {
    "missing_barrier": {"tsan": "data race"},
    "missing_part_barrier": {"tsan": "data race"},
    "missing_release_barrier": {"tsan": "data race"},
    "missing_scores_barrier": {"tsan": "data race"},
    "missing_copy_wait": {"plain": "without having waited for its cp.async", "tsan": "data race"},
    "early_slot_release": {"tsan": "data race"},
    "missing_global_wait": {"tsan": "data race"},
    "missing_signal": {"plain": "stopped"},
    "missing_warp_sync": {"tsan": "data race"},
    "wrong_order": {"plain": "stopped"},
    "wrong_swizzle": {"plain": "dq error"},
    "wrong_mask_edge": {"plain": "dq error"},
    "stray_read": {"asan": "heap-buffer-overflow"},
    "stray_write": {"asan": "heap-buffer-overflow"},
}
# These meet in memory that was written by another block: of inlined accesses a report may not tell the kernel's line.
BETWEEN_BLOCKS = ("missing_global_wait", "missing_warp_sync")
# Blocks start in order, and a GPU may hold one at a time: a block that waits for a later one waits forever.
OF_THE_FAULTS = "dtype=bf16 head_dim=64 heads_q=4 lengths=100:190,5:0 packed=1 right=0 resident=1"
ALSO = {"missing_part_barrier": "threshold=50", "missing_release_barrier": "head_dim=256"}
# Those of the smallest tile, whose products are dealt to four warps.
SMALL_TILE = "head_dim=256 capability=89"
OF_SMALL_TILE = (
    "missing_release_barrier",
    "missing_scores_barrier",
    "missing_copy_wait",
    "wrong_swizzle",
    "stray_write",
)


def with_fault(fault: str) -> str:
    resident = "resident=0 workers=2 seed=1" if fault in BETWEEN_BLOCKS else ""
    return f"{OF_THE_FAULTS} {resident} {ALSO.get(fault, '')} fault={fault}"


def planted() -> list[tuple[str, Run]]:
    """(fault, a run that must catch it)."""
    runs = [(fault, build, with_fault(fault)) for fault, builds in FAULTS.items() for build in builds]
    runs += [
        (fault, build, f"{OF_THE_FAULTS} {SMALL_TILE} fault={fault}")
        for fault in OF_SMALL_TILE
        for build in FAULTS[fault]
    ]
    return [(fault, Run("run_backward", build, arguments)) for fault, build, arguments in runs]


@pytest.mark.parametrize(("fault", "run"), planted(), ids=str)
def test_planted_fault_is_caught(fault: str, run: Run, done: Done) -> None:
    assert done.returncode != 0, f"{fault} went unnoticed: {done.stdout}"
    assert FAULTS[fault][run.build] in done.stdout, done.stdout[:4000]
    if run.build != "plain" and fault not in BETWEEN_BLOCKS:
        assert "/cuda/" in done.stdout or "_kernel<" in done.stdout, "the report does not name the kernel"


@with_runs(runs_of("run_backward", ("plain", "asan", "tsan"), [OF_THE_FAULTS], ("", SMALL_TILE)))
def test_the_problem_of_the_faults_is_right_without_one(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


SOAKED = "dtype=bf16 head_dim=64 heads_q=2 heads_k=1 lengths=140:190,5:0,33:70 packed=1 right=0"


@pytest.mark.slow
@with_runs(runs_of("run_backward", ["tsan"], [SOAKED], SEEDS))
def test_no_false_alarm(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]
