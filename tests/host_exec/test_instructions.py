"""A small kernel for each wrapped instruction (instructions/*.cuh), on the runner in all three builds."""

from __future__ import annotations

import re

import pytest

from tests.host_exec.builds import ROOT, run_program
from tests.host_exec.runs import Done, Run, with_runs

CHECKS = (
    "shuffles",
    "partial_masks",
    "votes",
    "warp_exchange",
    "async_copies",
    "named_barriers",
    "global_accesses",
    "packed_pairs",
    "matrix_loads",
    "products_16_bit",
    "products_int8",
    "atomics",
    "blocks_in_order",
    "blocks_in_pairs",
    "matrix_stores",
    "products_float8",
    "elections",
    "ring",
    "bulk_stores",
    "tensor_loads",
    "tensor_stores",
    "warpgroup_shared_a",
    "warpgroup_register_a",
)
SEEDS = {"plain": "20", "asan": "3", "tsan": "4"}


def test_every_check_is_listed_here() -> None:
    assert run_program("instructions", "plain", "list").stdout.split() == list(CHECKS)


@with_runs(Run("instructions", build, f"{check} {SEEDS[build]}") for check in CHECKS for build in SEEDS)
def test_right_under_every_schedule(run: Run, done: Done) -> None:
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_no_false_alarm(check: str) -> None:
    done = run_program("instructions", "tsan", check, "100", timeout=1200)
    assert done.returncode == 0, done.stdout[:4000]


def number_of(fault: str) -> str:
    """Of an enumerator of csrc/arch/planted_fault.h."""
    text = (ROOT / "csrc/arch/planted_fault.h").read_text().split("enum class Fault {")[1].split("}")[0]
    return str(re.findall(r"\bk[A-Z]\w+", text).index(fault))


# (check, fault) -> the builds that must catch it, with what they say.
FAULTS = {
    ("warp_exchange", "kMissingWarpSync"): {"tsan": "data race"},
    ("async_copies", "kMissingCopyWait"): {"tsan": "data race"},
    ("async_copies", "kMissingBarrier"): {"tsan": "data race"},
    ("named_barriers", "kMissingBarrier"): {"tsan": "data race"},
    ("blocks_in_order", "kMissingGlobalWait"): {"tsan": "data race"},
    ("blocks_in_order", "kMissingSignal"): {"plain": "deadlock between blocks: block 4", "tsan": "deadlock between"},
    ("blocks_in_order", "kUnorderedSignal"): {"tsan": "data race"},
    ("ring", "kMissingCopyWait"): {"tsan": "data race"},
    ("ring", "kEarlySlotRelease"): {"tsan": "data race"},
    ("ring", "kMissingExpectation"): {"plain": "with seed 0", "tsan": "data race"},
    ("ring", "kMissingProxyFence"): {"plain": "has not called fence_mbarrier_init"},
    ("bulk_stores", "kMissingBarrier"): {"tsan": "data race"},
    ("bulk_stores", "kMissingCopyWait"): {"tsan": "data race"},
    ("bulk_stores", "kMissingProxyFence"): {"plain": "has written without fence_async_proxy"},
    ("warpgroup_shared_a", "kMissingProxyFence"): {"plain": "has written without fence_async_proxy"},
    ("warpgroup_register_a", "kMissingProductFence"): {"plain": "wgmma without wgmma_fence"},
    ("warpgroup_register_a", "kMissingCopyWait"): {"plain": "without having waited for", "tsan": "data race"},
}


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (Run("instructions", build, f"{check} 1 {number_of(fault)}"), says)
        for (check, fault), builds in FAULTS.items()
        for build, says in builds.items()
    ],
    ids=str,
)
def test_planted_fault_is_caught(run: Run, says: str, done: Done) -> None:
    assert done.returncode != 0 and says in done.stdout, done.stdout[:4000]
    if says == "data race":
        assert "tests/host_exec/instructions/" in done.stdout, "the report does not name the kernel's line"
