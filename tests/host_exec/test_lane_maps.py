"""Which lane holds which element: the runner's maps against CuTe's traits (package nvidia-cutlass, CUDA headers)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def cutlass_include() -> Path:
    try:
        files = importlib.metadata.files("nvidia-cutlass") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("CuTe's headers are not installed (pip install --no-deps nvidia-cutlass)")
    for file in files:
        if str(file).endswith("include/cute/tensor.hpp"):
            return Path(str(file.locate())).parents[1]
    pytest.skip("the installed nvidia-cutlass holds no CuTe headers")


def cuda_include() -> Path:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    homes.append(str(Path(nvcc).resolve().parents[1]) if nvcc else None)
    for home in homes:
        if home and Path(home, "include", "cuda_runtime.h").exists():
            return Path(home, "include")
    pytest.skip("CUDA's headers are not here")


def test_lane_maps_are_cutes(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    cuda = cuda_include()
    includes = [cutlass_include(), cuda, cuda / "cccl"]
    program = tmp_path / "lane_maps"
    command = [
        compiler,
        "-std=c++20",
        "-O0",
        "-w",
        f"-I{HERE.parents[1] / 'csrc'}",
        *(f"-isystem{i}" for i in includes),
    ]
    compiled = subprocess.run(
        [*command, str(HERE / "lane_maps.cpp"), "-o", str(program)], capture_output=True, text=True
    )
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
