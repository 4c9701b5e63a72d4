"""Builds the programs that ask a GPU about single instructions and launches, and runs them.

`python -m tests.cuda.programs` builds all of them ahead, for a GPU machine that has no compiler; with --run it also
runs them there and exits with 1 if something is wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda_programs"

# name -> its source, the architecture it is compiled for and more options of nvcc. sm_80's also runs on later chips, by
# its PTX; sm_90a's on the H100 and H200 alone.
PROGRAMS = {
    "instructions_sm_80": (
        "tests/host_exec/instructions/instructions.cu",
        "arch=compute_80,code=[sm_80,compute_80]",
        ["-DFLAGATTN_INSTRUCTIONS_SM80"],
    ),
    "instructions_sm_90a": ("tests/host_exec/instructions/instructions.cu", "arch=compute_90a,code=sm_90a", []),
    "launches": ("tests/cuda/launches.cu", "arch=compute_80,code=[sm_80,compute_80]", []),
    "launches_without_gpu": (
        "tests/cuda/launches.cu",
        "arch=compute_80,code=sm_80",
        ["-cudart", "none", str(ROOT / "tests/cuda/fake_runtime.cpp")],
    ),
}


def _sources() -> list[Path]:
    folders = ("csrc/arch", "tests/host_exec/instructions", "tests/cuda")
    return [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".h", ".cuh", ".cu", ".cpp")
    ]


def built(name: str) -> Path | None:
    """The program's path, compiled if it is missing or older than a source; None if that takes a missing compiler."""
    program = BUILD / name
    nvcc = shutil.which("nvcc")
    if program.exists() and (nvcc is None or program.stat().st_mtime > max(p.stat().st_mtime for p in _sources())):
        return program
    if nvcc is None:
        return None
    source, architecture, more = PROGRAMS[name]
    command = [nvcc, "-std=c++20", "-gencode", architecture, "--expt-relaxed-constexpr", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-O1", *more, f"-I{ROOT / 'csrc'}", f"-I{ROOT}", str(ROOT / source)]
    BUILD.mkdir(parents=True, exist_ok=True)
    temporary = program.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    temporary.replace(program)
    return program


def of_this_gpu() -> list[str]:
    """The programs that the first GPU can run."""
    import torch

    is_hopper = torch.cuda.get_device_capability() == (9, 0)
    return ["launches", "instructions_sm_80", *(["instructions_sm_90a"] if is_hopper else [])]


def run(program: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)


def main(arguments: list[str]) -> int:
    runs = "--run" in arguments
    failures = 0
    for name in of_this_gpu() if runs else PROGRAMS:
        program = built(name)
        if program is None:
            print(f"{name}: there is no CUDA compiler, and it was not built ahead")
            failures += 1
        elif runs:
            print(f"== {name}", flush=True)
            try:
                failures += subprocess.run([str(program)], timeout=60).returncode != 0
            except subprocess.TimeoutExpired:
                print("it did not end within a minute; the check behind the last line hangs", flush=True)
                failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
