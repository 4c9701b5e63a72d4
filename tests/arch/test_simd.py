"""The SIMD wrapper, the row-wise kernels and Philox against plain C++, at each ISA level; AVX-512 also emulated."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
AMX = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
LEVELS = {
    "scalar": ([], ""),
    "avx2": (AVX2, "avx2"),
    "avx512": (AVX512, "avx512bw"),
    "amx": (AMX, "amx_bf16"),
    "avx512-emulated": ([*AVX2, "-D__AVX512F__=1", "-Wno-psabi", f"-I{HERE / 'avx512_emulation'}"], "avx2"),
}


def host_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


def run_program(name: str, flags: list[str], needed: str, folder: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    if needed and needed not in host_flags():
        pytest.skip(f"this host has no {needed}")
    program = folder / name
    base = [compiler, "-O1", "-std=c++20", "-ffp-contract=off", "-fno-math-errno", *flags]
    subprocess.run([*base, f"-I{HERE.parents[1] / 'csrc'}", str(HERE / f"{name}.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("program_name", ["simd_check", "fused_ops_check", "philox_check"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str, program_name: str, tmp_path: Path) -> None:
    run_program(program_name, *LEVELS[level], tmp_path)


@pytest.mark.parametrize("level", ["amx", "amx-twin", "amx-emulated"])
def test_tiles(level: str, tmp_path: Path) -> None:
    twin = ["-DTILE_TWIN", f"-I{HERE / 'tile_emulation'}"]
    emulated, emulated_needs = LEVELS["avx512-emulated"]
    flags, needed = {
        "amx": LEVELS["amx"],
        "amx-twin": ([*AMX, *twin], "avx512_bf16"),
        "amx-emulated": ([*emulated, "-D__AMX_BF16__=1", *twin], emulated_needs),
    }[level]
    run_program("tile_check", flags, needed, tmp_path)
