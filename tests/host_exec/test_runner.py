"""The runner itself, on kernels of a few lines (runner_check.cpp), in all three builds."""

from __future__ import annotations

import pytest

from tests.host_exec.builds import run_program
from tests.host_exec.runs import Done, Run, runs_of, with_runs

ALLOWED = (
    "shuffles_exchange_lanes",
    "blocks_all_run",
    "named_barriers_hand_over",
    "matrices_multiply",
    "copies_fill_with_zeros",
    "approximations_flush_denormals",
    "global_sectors_are_counted",
    "bank_conflicts_are_counted",
    "matrix_conflicts_are_counted",
    "instructions_are_counted",
)
STOPPED = (
    "deadlock_is_named",
    "divergence_is_named",
    "returned_lanes_are_named",
    "copies_must_be_waited_for",
    "misaligned_copies_stop",
    "shared_memory_has_an_end",
    "odd_blocks_are_refused",
    "shared_memory_has_the_limit_of_the_chip",
    "lanes_of_a_mask_must_agree",
    "masks_hold_the_caller",
    "shuffles_read_inside_the_mask",
    "blocks_must_be_resident_together",
)
RACES = (
    "race_between_warps",
    "race_between_blocks",
    "race_between_blocks_1_apart",
    "race_between_blocks_2_apart",
    "race_between_blocks_4_apart",
    "race_between_blocks_5_apart",
    "race_between_blocks_2_apart_of_two_workers",
    "race_between_blocks_4_apart_of_two_workers",
    "race_between_blocks_with_barriers",
    "race_with_copy",
)


def test_every_check_is_listed_here() -> None:
    assert sorted(run_program("runner_check", "plain", "list").stdout.split()) == sorted(ALLOWED + STOPPED + RACES)


@with_runs(runs_of("runner_check", ("plain", "asan", "tsan"), ALLOWED, ("0", "5")))
def test_allowed(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


@with_runs(runs_of("runner_check", ("plain", "asan"), STOPPED))
def test_stopped(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.parametrize("attempt", range(10))  # whichever thread comes first
@with_runs(runs_of("runner_check", ["tsan"], RACES))
def test_races_are_reported_by_thread_sanitizer(run: Run, done: Done, attempt: int) -> None:
    assert done.returncode == 66 and "data race" in done.stdout, done.stdout[:4000]
