"""The fused ops under AddressSanitizer and ThreadSanitizer, and the faults that one of the builds must catch."""

from __future__ import annotations

import pytest

from tests.host_exec.builds import run_program

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


@pytest.mark.parametrize("build", ["asan", "tsan"])
@pytest.mark.parametrize("index", range(len(PROBLEMS)), ids=[problem.replace(" ", ",") for problem in PROBLEMS])
def test_no_report(build: str, index: int) -> None:
    for schedule in SCHEDULES if "cols=24592" not in PROBLEMS[index] else SCHEDULES[:1]:
        done = run_program("run_fused", build, *PROBLEMS[index].split(), *schedule.split())
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


def planted() -> list[tuple[str, str, str]]:
    """(fault, build, arguments), for the soak."""
    every = [(*key, -1, build) for key, (build, _) in FAULTS.items()]
    later = [(*key, build) for key, (build, _) in LATER_FAULTS.items()]
    return [
        (f"{problem} {fault} {launch}", build, f"{problem} fault={fault} faulty_launch={launch}")
        for problem, fault, launch, build in every + later
    ]


@pytest.mark.parametrize(("problem", "fault", "launch"), LATER_FAULTS, ids=str)
def test_fault_planted_in_one_launch_is_caught(problem: str, fault: str, launch: int) -> None:
    build, says = LATER_FAULTS[problem, fault, launch]
    done = run_program("run_fused", build, *problem.split(), f"fault={fault}", f"faulty_launch={launch}")
    assert done.returncode != 0, f"{fault} went unnoticed: {done.stdout}"
    assert says in done.stdout, done.stdout[:4000]


def test_fault_of_a_launch_that_does_not_come_is_not_planted() -> None:
    for build in ("plain", "tsan"):
        done = run_program("run_fused", build, *SWIGLU.split(), "fault=missing_barrier", "faulty_launch=7")
        assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.parametrize(("problem", "fault"), FAULTS, ids=str)
def test_planted_fault_is_caught(problem: str, fault: str) -> None:
    build, says = FAULTS[problem, fault]
    done = run_program("run_fused", build, *problem.split(), f"fault={fault}")
    assert done.returncode != 0, f"{fault} went unnoticed: {done.stdout}"
    assert says in done.stdout, done.stdout[:4000]
    if build != "plain":
        assert "/cuda/" in done.stdout or "_kernel<" in done.stdout, "the report does not name the kernel"


@pytest.mark.parametrize("problem", sorted({problem for problem, _ in FAULTS}))
def test_the_problems_of_the_faults_are_right_without_one(problem: str) -> None:
    for build in ("plain", "asan", "tsan"):
        done = run_program("run_fused", build, *problem.split())
        assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 101))
def test_no_false_alarm(seed: int) -> None:
    for problem in {problem for problem, _ in FAULTS}:
        done = run_program("run_fused", "tsan", *problem.split(), f"seed={seed}", "workers=2")
        assert done.returncode == 0, done.stdout[:4000]
