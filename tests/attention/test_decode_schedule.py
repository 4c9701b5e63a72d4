"""How the decode kernel's work is cut, by brute force, in C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_decode_schedule(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    program = tmp_path / "decode_schedule_check"
    source = HERE / "decode_schedule_check.cpp"
    flags = ["-O1", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
