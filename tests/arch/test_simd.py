"""The SIMD wrapper, the row-wise kernels and Philox against plain C++, at each ISA level; AVX-512 also emulated."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
LEVELS = {
    "scalar": ([], ""),
    "avx2": (AVX2, "avx2"),
    "avx512": (AVX512, "avx512bw"),
    "avx512-emulated": ([*AVX2, "-D__AVX512F__=1", "-Wno-psabi", f"-I{HERE / 'avx512_emulation'}"], "avx2"),
}


def host_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


@pytest.mark.parametrize("program_name", ["simd_check", "fused_ops_check", "philox_check"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str, program_name: str, tmp_path: Path) -> None:
    flags, needed = LEVELS[level]
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    if needed and needed not in host_flags():
        pytest.skip(f"this host has no {needed}")
    program = tmp_path / program_name
    base = [compiler, "-O1", "-std=c++20", "-ffp-contract=off", "-fno-math-errno", f"-I{HERE.parents[1] / 'csrc'}"]
    subprocess.run([*base, *flags, str(HERE / f"{program_name}.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
