"""`python -m flagattn`, FLAGATTN_CPU_LEVEL and `build_info()`."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flagattn
from flagattn.build_info import CPU_LEVELS
from flagattn.testing import available_cpu_levels

ROOT = Path(flagattn.__file__).parents[1]


@functools.cache
def report(**environment: str) -> dict[str, str]:
    """The rows that `python -m flagattn` prints, by their first column."""
    done = subprocess.run(
        [sys.executable, "-m", "flagattn"],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [line.split("  ", 1) for line in done.stdout.splitlines()]
    return {name.strip(): value.strip() for name, value in rows}


def test_report_names_versions_libraries_and_levels() -> None:
    rows = report(FLAGATTN_CPU_LEVEL="")
    assert torch.__version__ in rows["torch"]
    assert rows["library"].endswith("_C.so")
    assert rows["CPU level"].startswith(f"{available_cpu_levels()[-1]}: the host supports")
    assert {"flagattn", "python", "compiler", "CUDA library", "CUDA archs", "GPUs"} <= rows.keys()


def test_report_says_why_cuda_is_off() -> None:
    rows = report(FLAGATTN_CPU_LEVEL="")
    if torch.version.cuda is None:
        assert rows["off: CUDA kernels"] == f"torch {torch.__version__} has no CUDA"
    elif not torch.cuda.is_available():
        assert rows["off: CUDA kernels"]


@pytest.mark.parametrize("level", available_cpu_levels())
def test_cpu_level_can_be_lowered(level: str) -> None:
    assert report(FLAGATTN_CPU_LEVEL=level)["CPU level"].startswith(f"{level}: FLAGATTN_CPU_LEVEL asks for {level}")


def test_unknown_cpu_level_is_ignored_and_said() -> None:
    line = report(FLAGATTN_CPU_LEVEL="neon9")["CPU level"]
    assert line.startswith(f"{available_cpu_levels()[-1]}: FLAGATTN_CPU_LEVEL is 'neon9', not one of")


def test_level_above_the_host_falls_back_and_is_said() -> None:
    if available_cpu_levels()[-1] == CPU_LEVELS[-1]:
        pytest.skip("this host has every level")
    assert "which this host lacks" in report(FLAGATTN_CPU_LEVEL=CPU_LEVELS[-1])["CPU level"]


def test_build_info_agrees_with_the_machine() -> None:
    info = flagattn.build_info()
    assert info.cpu_level == flagattn.cpu_level()
    assert info.cpu_level in info.cpu_levels
    assert set(available_cpu_levels()) <= set(info.cpu_levels)
    assert info.torch == torch.__version__
    assert Path(info.library).exists()


def test_the_version_is_the_package_s() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert flagattn.__version__ == version


def test_compat_comes_with_the_package() -> None:
    program = "import flagattn; flagattn.compat.install('flash_attn'); import flash_attn"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
