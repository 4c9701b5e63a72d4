"""Every wrapper of csrc/arch/ptx compiles for the architectures that have its instruction (compiled, not run)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_wrappers_compile(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no CUDA compiler")
    only_sm80 = ["-DFLAGATTN_INSTRUCTIONS_SM80"] if architecture == "sm_80" else []
    command = [nvcc, "-std=c++20", f"-arch={architecture}", "--expt-relaxed-constexpr", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-O1", *only_sm80, f"-I{ROOT / 'csrc'}", f"-I{ROOT}", "-cubin"]
    source = ROOT / "tests/host_exec/instructions/instructions.cu"
    done = subprocess.run([*command, "-o", str(tmp_path / "out.cubin"), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
