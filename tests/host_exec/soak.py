"""The soak: right kernels under many schedules, where nothing may be reported, and every planted fault, which must be.

`python -m tests.host_exec.soak -o soak.json [--seeds 100] [--seconds 600]` runs what the file does not hold yet, seed
after seed, until it is done or the time is up; run it again to go on. It prints what is left and fails where something
is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.host_exec import (
    test_fused_sanitizers,
    test_sanitizers,
    test_sanitizers_backward,
    test_sanitizers_decode,
)
from tests.host_exec.builds import run_program

PROGRAMS = {
    "run_forward": test_sanitizers,
    "run_backward": test_sanitizers_backward,
    "run_decode": test_sanitizers_decode,
    "run_fused": test_fused_sanitizers,
}
LATE = "copies=random workers=2"


def quiet_runs(seeds: int, programs: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """(name, program, build, arguments) of runs that must report nothing: a seed for every problem, then the next."""
    for seed in range(1, seeds + 1):
        for program in programs:
            for problem in PROGRAMS[program].PROBLEMS:
                if seed > 1 and "cols=24592" in problem:  # wide rows take long and know one order
                    continue
                yield f"{program} {problem} seed={seed}", program, "tsan", f"{problem} seed={seed} {LATE}"


def faulty_runs(programs: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """The same of faults that must be caught, as the tests of the sanitizers plant them."""
    for program in programs:
        for name, run in PROGRAMS[program].planted():
            yield f"{program} {name} {run.build}", *run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.host_exec.soak", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a JSON file, read first if it is there")
    parser.add_argument("--seeds", type=int, default=100, help="schedules of every problem (default 100)")
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long (default 600)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    runs = [(*run, False) for run in quiet_runs(options.seeds, options.programs)]
    runs = [*((*run, True) for run in faulty_runs(options.programs)), *runs]
    left = [run for run in runs if run[0] not in results]
    end = time.monotonic() + options.seconds
    while left and time.monotonic() < end:
        name, program, build, arguments, is_faulty = left.pop(0)
        done = run_program(program, build, *arguments.split())
        is_right = (done.returncode != 0) == is_faulty
        results[name] = {"planted": is_faulty, "right": is_right, "said": "" if is_right else done.stdout[:2000]}
        options.output.write_text(json.dumps(results, indent=1))
    wrong = [name for name, result in results.items() if not result["right"]]
    quiet, caught = (sum(r["planted"] == planted and r["right"] for r in results.values()) for planted in (False, True))
    print(f"{caught} faults caught, {quiet} runs without a report, {len(wrong)} wrong, {len(left)} left")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
