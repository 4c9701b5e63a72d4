"""What hardware would refuse, and the runner cannot see: a launch with more threads than its kernel is compiled for."""

from __future__ import annotations

import re

from tests.host_exec.builds import ROOT

SOURCES = sorted(path for pattern in ("*.cuh", "*.cu", "*.cu.in") for path in (ROOT / "csrc").rglob(pattern))
KERNEL = re.compile(r"FLAGATTN_KERNEL\(([^()]*), \d+\)\s+(\w+)\(")
LAUNCH = re.compile(r"ptx::launch<[^()]*?>\(\s*(\w+)(?:<[^()]*?>)?,")

# Threads that a plan chooses; it stays below the bound (row_plan.h, tested in test_row_plan).
PLANNED = {"arguments.plan.threads()", "choice.plan.threads()", "plan.threads()"}
# A launch may name a variable that holds one of these kernels.
VARIABLES = {"kernel": "rms_norm_kernel"}


def arguments_from(text: str, begin: int) -> list[str]:
    """The arguments of the call whose first one begins there."""
    parts, depth, current = [], 1, ""
    for letter in text[begin:]:
        depth += letter in "(<[{"
        depth -= letter in ")>]}"
        if depth == 0:
            break
        if letter == "," and depth == 1:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()]


def plain(expression: str) -> str:
    return re.sub(r"ptx::kWarpSize", "32", re.sub(r"\s", "", expression))


def test_launches_have_the_threads_that_kernels_are_compiled_for() -> None:
    texts = {path: re.sub(r"//.*", "", path.read_text(encoding="utf-8")) for path in SOURCES}
    bounds = {name: plain(bound) for text in texts.values() for bound, name in KERNEL.findall(text)}
    launched = set()
    for path, text in texts.items():
        for found in LAUNCH.finditer(text):
            kernel = VARIABLES.get(found[1], found[1])
            assert kernel in bounds, f"{path.relative_to(ROOT)} launches {kernel}, whose bound was not found"
            launched.add(kernel)
            threads = plain(arguments_from(text, found.start(1))[2])
            if threads in PLANNED:
                assert "kMostRowThreads" in bounds[kernel], f"{kernel} is bound to {bounds[kernel]}"
            else:
                assert threads == bounds[kernel], f"{kernel} is bound to {bounds[kernel]}, launched with {threads}"
    assert launched == set(bounds), f"no launch of {set(bounds) - launched} was found"
