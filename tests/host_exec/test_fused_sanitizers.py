"""The fused ops under AddressSanitizer and ThreadSanitizer, and the faults that one of the builds must catch."""

from __future__ import annotations

import pytest

from tests.host_exec.runs import SEEDS, Done, Run, runs_of, with_runs

# Teams of part of a warp, of one and of several; rows that end inside a team's vectors; rows without whole vectors;
# rows wider than registers.
PROBLEMS = (
    "op=rms_norm rows=300 cols=24 dtype=bf16 weight=fp32",
    "op=rms_norm rows=5 cols=2312 stride=2320 dtype=fp16 weight=fp16",
    "op=rms_norm rows=7 cols=33 stride=37 dtype=bf16",
    "op=rms_norm rows=2 cols=24592 dtype=fp32",
    "op=swiglu rows=70 cols=88 stride=176 dtype=bf16",
    "op=swiglu rows=9 cols=59 stride=61 dtype=fp32",
    "op=cross_entropy rows=9 cols=300 dtype=bf16",
    "op=cross_entropy rows=5 cols=4097 stride=4103 dtype=fp16",
    "op=cross_entropy rows=600 cols=11 stride=12 dtype=fp32",
    "op=apply_rotary rows=5 heads=7 head_dim=80 half_dim=32 dtype=fp16 table=fp32",
    "op=apply_rotary rows=5 heads=3 head_dim=64 dtype=fp32 table=bf16 interleaved=1",
    "op=apply_rotary rows=5 heads=3 head_dim=50 half_dim=23 dtype=bf16",
)
SCHEDULES = ("seed=0 workers=2", "seed=1", "seed=2 workers=2")


# Wide rows take long and know one order.
@with_runs(
    run
    for problem in PROBLEMS
    for run in runs_of("run_fused", ("asan", "tsan"), [problem], SCHEDULES[: 1 if "cols=24592" in problem else 3])
)
def test_no_report(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


# (problem, fault) -> the build that must catch it, with what it says. Each problem is right without one.
VECTORS = "rows=3 cols=2312 dtype=bf16"
LOGITS = "rows=3 cols=2312 dtype=bf16"
HEADS = "rows=3 heads=5 head_dim=64 dtype=bf16 table=fp32"
FAULTS = {
    (f"op=rms_norm {VECTORS}", "missing_barrier"): ("tsan", "data race"),
    (f"op=rms_norm {VECTORS}", "stray_read"): ("asan", "heap-buffer-overflow"),
    (f"op=rms_norm {VECTORS}", "stray_write"): ("asan", "heap-buffer-overflow"),
    (f"op=rms_norm {VECTORS}", "wrong_row"): ("plain", "y error inf"),
    ("op=swiglu rows=3 cols=88 dtype=bf16", "stray_read"): ("asan", "heap-buffer-overflow"),
    ("op=swiglu rows=3 cols=88 dtype=bf16", "stray_write"): ("asan", "heap-buffer-overflow"),
    ("op=swiglu rows=3 cols=88 dtype=bf16", "wrong_row"): ("plain", "y error inf"),
    (f"op=cross_entropy {LOGITS}", "missing_barrier"): ("tsan", "data race"),
    (f"op=cross_entropy {LOGITS}", "missing_rescale"): ("plain", "loss error"),
    (f"op=cross_entropy {LOGITS}", "stray_read"): ("asan", "heap-buffer-overflow"),
    (f"op=cross_entropy {LOGITS}", "stray_write"): ("asan", "heap-buffer-overflow"),
    (f"op=cross_entropy {LOGITS}", "wrong_row"): ("plain", "dlogits error"),
    (f"op=apply_rotary {HEADS}", "missing_barrier"): ("tsan", "data race"),
    (f"op=apply_rotary {HEADS}", "stray_read"): ("asan", "heap-buffer-overflow"),
    (f"op=apply_rotary {HEADS}", "stray_write"): ("asan", "heap-buffer-overflow"),
    (f"op=apply_rotary {HEADS}", "wrong_row"): ("plain", "y error"),
}


# The same for the kernels that run after an op's first one, whose report would end the run: the fault is in one launch
# only. (problem, fault, launch), counted from 0. RMSNorm: forward, backward, the weight's gradient; SwiGLU: forward,
# backward; cross-entropy: rows, total, divisor, backward.
SWIGLU = "op=swiglu rows=3 cols=88 dtype=bf16"
LATER_FAULTS = {
    (f"op=rms_norm {VECTORS}", "missing_barrier", 1): ("tsan", "data race"),
    (f"op=rms_norm {VECTORS}", "missing_barrier", 2): ("tsan", "data race"),
    (f"op=rms_norm {VECTORS}", "stray_read", 1): ("asan", "heap-buffer-overflow"),
    (f"op=rms_norm {VECTORS}", "stray_write", 1): ("asan", "heap-buffer-overflow"),
    (f"op=rms_norm {VECTORS}", "wrong_row", 1): ("plain", "ds error inf"),
    (SWIGLU, "stray_read", 1): ("asan", "heap-buffer-overflow"),
    (SWIGLU, "stray_write", 1): ("asan", "heap-buffer-overflow"),
    (SWIGLU, "wrong_row", 1): ("plain", "dgate error inf"),
    (f"op=cross_entropy {LOGITS}", "missing_barrier", 1): ("tsan", "data race"),
    (f"op=cross_entropy {LOGITS}", "missing_barrier", 2): ("tsan", "data race"),
    (f"op=cross_entropy {LOGITS}", "stray_read", 3): ("asan", "heap-buffer-overflow"),
    (f"op=cross_entropy {LOGITS}", "stray_write", 3): ("asan", "heap-buffer-overflow"),
    (f"op=cross_entropy {LOGITS}", "wrong_row", 3): ("plain", "dlogits error"),
}


def runs_with_fault() -> list[tuple[Run, str]]:
    """(a run that must catch its fault, what it says)."""
    every = [(problem, fault, -1, *caught) for (problem, fault), caught in FAULTS.items()]
    later = [(*planted, *caught) for planted, caught in LATER_FAULTS.items()]
    return [
        (Run("run_fused", build, f"{problem} fault={fault} faulty_launch={launch}"), says)
        for problem, fault, launch, build, says in every + later
    ]


def planted() -> list[tuple[str, Run]]:
    """(fault, a run that must catch it), for the soak."""
    return [(run.arguments, run) for run, _ in runs_with_fault()]


@pytest.mark.parametrize(("run", "says"), runs_with_fault(), ids=str)
def test_planted_fault_is_caught(run: Run, says: str, done: Done) -> None:
    assert done.returncode != 0, f"the fault went unnoticed: {done.stdout}"
    assert says in done.stdout, done.stdout[:4000]
    if run.build != "plain" and "faulty_launch=-1" in run.arguments:
        assert "/cuda/" in done.stdout or "_kernel<" in done.stdout, "the report does not name the kernel"


@with_runs(runs_of("run_fused", ("plain", "tsan"), [f"{SWIGLU} fault=missing_barrier faulty_launch=7"]))
def test_fault_of_a_launch_that_does_not_come_is_not_planted(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


OF_THE_FAULTS = sorted({problem for problem, _ in FAULTS})


@with_runs(runs_of("run_fused", ("plain", "asan", "tsan"), OF_THE_FAULTS))
def test_the_problems_of_the_faults_are_right_without_one(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.slow
@with_runs(runs_of("run_fused", ["tsan"], OF_THE_FAULTS, SEEDS))
def test_no_false_alarm(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]
