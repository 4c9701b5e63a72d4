"""What is checked of a cache's values and where new rows are written, by brute force, in C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


def test_cache(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    program = tmp_path / "cache_check"
    sources = [str(HERE / "cache_check.cpp"), str(CSRC / "attention" / "cpu" / "cache.cpp")]
    flags = ["-O1", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
