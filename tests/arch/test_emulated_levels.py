"""The AVX-512 and AMX kernels on a host without them: op tests against a build over tests/arch/*_emulation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import flagattn

ROOT = Path(__file__).resolve().parents[2]
TILE_SUITES = ["tests/attention", "tests/linear"]
SUITES = {
    "avx512": [*TILE_SUITES, "tests/norm", "tests/activation", "tests/rotary", "tests/loss"],
    "amx": [*TILE_SUITES, "tests/loss/test_linear_cross_entropy.py"],
}


@pytest.fixture(scope="module")
def library() -> Path:
    if "avx2" not in flagattn.testing.available_cpu_levels():
        pytest.skip("the emulation needs AVX2")
    build = ROOT / "build" / sysconfig.get_platform()
    if not (build / "build.ninja").exists():
        pytest.skip("the project was not built in this checkout")
    cmake = Path(sysconfig.get_path("scripts")) / "cmake"
    command = [cmake if cmake.exists() else "cmake", "--build", build, "--target", "_C_emulated"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-4000:]
    return build / "lib" / "_C_emulated.so"


def test_every_intrinsic_is_emulated() -> None:
    sources = [ROOT / "csrc" / "arch" / "simd" / name for name in ("avx512.h", "tiles.h")]
    used = {name for path in sources for name in re.findall(r"\b_mm512_\w+", path.read_text())}
    emulation = (ROOT / "tests" / "arch" / "avx512_emulation" / "immintrin.h").read_text()
    assert used and used <= set(re.findall(r"#define (_mm512_\w+)", emulation))


def unless_the_host_has(level: str) -> pytest.MarkDecorator:
    has = level in flagattn.testing.available_cpu_levels()
    return pytest.mark.skipif(has, reason=f"this host has {level}: its own tests cover it")


@pytest.mark.parametrize("level", [pytest.param(level, marks=unless_the_host_has(level)) for level in SUITES])
def test_op_suites(library: Path, level: str) -> None:
    environment = os.environ | {"FLAGATTN_LIBRARY": str(library)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", level, *SUITES[level]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
