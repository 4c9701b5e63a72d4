"""Masks, their cut into runs, the division of work, and what joins the scores, in C++ against their definitions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The number of lanes and the height of a strip differ between the levels.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
LEVELS = {
    "scalar": [],
    "avx2": AVX2,
    "avx512f": [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
}


@pytest.mark.parametrize("check", ["mask_and_schedule", "score_terms"])
@pytest.mark.parametrize("level", LEVELS)
def test_mask_and_schedule(check: str, level: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    if level != "scalar" and level not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this host has no {level}")
    program = tmp_path / "check"
    source = str(HERE / f"{check}_check.cpp")
    flags = ["-O2", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{HERE.parents[1] / 'csrc'}", *LEVELS[level]]
    subprocess.run([compiler, *flags, source, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
