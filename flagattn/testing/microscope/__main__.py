"""One block's life on a page: `python -m flagattn.testing.microscope KERNEL CASE`, from a checkout of the repository.

The kernel is executed on the CPU by the host runner, which the first call builds.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from flagattn.testing.microscope.page import page
from flagattn.testing.microscope.picture import picture
from flagattn.testing.microscope.recording import Recording
from flagattn.testing.microscope.timeline import Timeline

LANDING = {"eager": "at once", "lazy": "as late as they may", "random": "at random"}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        runs: Any = importlib.import_module("tests.host_exec.recordings")
    except ModuleNotFoundError as error:
        print(f"the microscope runs in a checkout of flagattn: {error}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(runs.names()))
        return 0
    try:
        recordings = [
            Recording.of(fields)
            for fields in runs.record(
                options.kernel,
                options.case,
                dtype=options.dtype,
                block=options.block,
                seed=options.seed,
                copies=options.copies,
                fault=options.fault,
            )
        ]
    except (ValueError, runs.Unavailable) as error:
        print(error, file=sys.stderr)
        return 2
    if not recordings:
        print(f"no launch of {options.kernel} has a block {options.block}", file=sys.stderr)
        return 2
    recording = _chosen(recordings, options.launch)
    case = " ".join(filter(None, (options.case, options.dtype, options.fault and f"with {options.fault}")))
    title = f"{options.kernel}, {case}"
    subtitle = (
        f"{recording.name}: block {recording.block} of {recording.blocks}, {recording.threads} threads, "
        f"{recording.shared_bytes:,} bytes of shared memory. Copies land {LANDING[options.copies]}; "
        f"{f'schedule {options.seed}' if options.seed else 'warps run in turn'}."
    )
    output = options.output or Path(f"{options.kernel}-{options.case}.html")
    output.write_text(page(recording, title, subtitle), encoding="utf-8")
    if options.svg:
        options.svg.write_text(picture(Timeline(recording), 960), encoding="utf-8")
    print(f"{output}: {', '.join(f'{value} {name}' for name, value in Timeline(recording).facts.items())}")
    return 0


def _chosen(recordings: list[Recording], launch: int | None) -> Recording:
    """By number; else the first in which something went wrong, or the busiest."""
    if launch is not None:
        return recordings[launch]
    ill = [recording for recording in recordings if recording.failure or recording.races]
    return ill[0] if ill else max(recordings, key=lambda recording: sum(map(len, recording.warps)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flagattn.testing.microscope", description=__doc__)
    parser.add_argument("kernel", nargs="?", default="attention_forward", help="see --list")
    parser.add_argument("case", nargs="?", default="odd_square_causal", help="see --list")
    parser.add_argument("-o", "--output", type=Path, help="the page (default: KERNEL-CASE.html)")
    parser.add_argument("--svg", type=Path, help="also the picture alone")
    parser.add_argument("--fault", default="", help="a mistake of csrc/arch/planted_fault.h, such as missing_barrier")
    parser.add_argument("--block", type=int, default=0, help="which block of the grid (default 0)")
    parser.add_argument("--launch", type=int, help="which of the op's launches, from 0 (default: the busiest)")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule; 0 takes warps in turn (default)")
    parser.add_argument("--copies", choices=("eager", "lazy", "random"), default="lazy", help="when copies land")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--list", action="store_true", help="list kernels and cases")
    return parser


if __name__ == "__main__":
    sys.exit(main())
