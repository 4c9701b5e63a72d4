"""The kernels under AddressSanitizer and ThreadSanitizer, and the faults that one of the builds must catch."""

from __future__ import annotations

from itertools import product

import pytest

from tests.host_exec.runs import SEEDS, Done, Run, runs_of, with_runs

PROBLEMS = (
    "dtype=bf16 head_dim=64 heads_q=2 heads_k=1 lengths=100:190 right=0",
    "dtype=fp16 head_dim=128 heads_q=2 heads_k=2 lengths=131:150",
    "dtype=fp16 head_dim=64 heads_q=4 heads_k=2 lengths=130:190,65:65,0:5,7:0,90:33 packed=1 right=0",
    "dtype=bf16 head_dim=80 head_dim_v=40 heads_q=2 heads_k=2 lengths=129:140 left=20 right=3 softcap=5",
    "dtype=bf16 head_dim=64 heads_q=2 heads_k=2 lengths=70:131 bias=1 keep=1 alibi=1 sinks=1 dropout=0.3",
    "dtype=fp16 head_dim=192 heads_q=2 heads_k=1 lengths=70:101 right=0 bias=1 dropout=0.5",
    "dtype=bf16 head_dim=96 heads_q=1 heads_k=1 lengths=130:201 right=0 threshold=77 sinks=1",
)
SCHEDULES = ("seed=0 copies=lazy workers=2", "seed=1 copies=eager", "seed=2 copies=random workers=2")


@with_runs(runs_of("run_forward", ("asan", "tsan"), PROBLEMS, SCHEDULES))
def test_no_report(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


PROBLEM_OF_FAULTS = "dtype=bf16 head_dim=64 lengths=100:190,5:0 packed=1 right=0"

# Fault -> the builds that must catch it, with what they say. A race may by luck give right numbers, and a stray access
# may hit memory that exists: some faults are certain in one build only.
FAULTS = {
    "missing_barrier": {"tsan": "data race"},
    "missing_part_barrier": {"tsan": "data race"},
    "missing_copy_wait": {"plain": "without having waited for its cp.async", "tsan": "data race"},
    "early_slot_release": {"tsan": "data race"},
    "missing_warp_sync": {"tsan": "data race"},
    "stray_read": {"asan": "heap-buffer-overflow"},
    "stray_write": {"asan": "heap-buffer-overflow"},
    "wrong_swizzle": {"plain": "out error"},
    "wrong_mask_edge": {"plain": "out error"},
    "missing_rescale": {"plain": "out error"},
    "divergent_collective": {"plain": "the warp diverges"},
}


def with_fault(fault: str) -> str:
    # Two tiles of near keys: the first far values go where the last near ones are read.
    return f"{PROBLEM_OF_FAULTS}{' threshold=20' if fault == 'missing_part_barrier' else ''} fault={fault}"


def planted() -> list[tuple[str, Run]]:
    """(fault, a run that must catch it)."""
    return [
        (fault, Run("run_forward", build, with_fault(fault))) for fault, builds in FAULTS.items() for build in builds
    ]


@pytest.mark.parametrize(("fault", "run"), planted(), ids=str)
def test_planted_fault_is_caught(fault: str, run: Run, done: Done) -> None:
    assert done.returncode != 0, f"{fault} went unnoticed: {done.stdout}"
    assert FAULTS[fault][run.build] in done.stdout, done.stdout[:4000]
    if run.build != "plain":
        assert "csrc/attention/cuda/sm80/" in done.stdout, "the report does not name the kernel's line"


@with_runs(runs_of("run_forward", ("plain", "asan", "tsan"), [PROBLEM_OF_FAULTS], ("", "threshold=20")))
def test_the_problem_of_the_faults_is_right_without_one(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


SOAKED = "dtype=bf16 head_dim=64 heads_q=2 heads_k=1 lengths=100:190,5:0,33:70 packed=1 right=0"


@pytest.mark.slow
@with_runs(runs_of("run_forward", ["tsan"], [SOAKED], SEEDS))
def test_no_false_alarm(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


# Offsets of two sequences of 70 rows in all that point outside, fall, or exceed the longest length.
WRONG_OFFSETS = ("0:1000:70", "-5:40:70", "0:40:20", "60:10:1073741824", "0:40:2147483647", "-2147483648:40:70")
OF_WRONG_OFFSETS = "dtype=bf16 head_dim=64 lengths=40:40,30:30 packed=1 right=0"


BOTH = ("run_forward", "run_backward")
WHICH = ("offsets_q", "offsets_k")


@with_runs(
    Run(program, "asan", f"{OF_WRONG_OFFSETS} {which}={offsets}")
    for program, which, offsets in product(BOTH, WHICH, WRONG_OFFSETS)
)
def test_wrong_offsets_reach_no_memory_outside(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


@with_runs(
    Run(program, "asan", f"{OF_WRONG_OFFSETS} {which}=0:40:140 fault=unclamped_offsets")
    for program, which in product(BOTH, WHICH)
)
def test_offsets_that_are_not_clamped_are_seen(run: Run, done: Done) -> None:
    assert done.returncode == 66 and "heap-buffer-overflow" in done.stdout, done.stdout[:4000]
