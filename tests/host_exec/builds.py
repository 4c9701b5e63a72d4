"""Builds tests/host_exec/CMakeLists.txt on demand and runs its programs."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "host_exec"

# Kernels that were stopped leak; 66 tells a sanitizer's report from other ends.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "TSAN_OPTIONS": "exitcode=66:report_thread_leaks=0:history_size=4",
}


def _tool(name: str) -> str:
    own = Path(sysconfig.get_path("scripts")) / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command[:4])} ... failed:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


@cache
def built(target: str) -> Path:
    """Configures once, brings `target` up to date, and returns its path."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("the host runner switches contexts on x86-64 Linux only")
    if not any(shutil.which(name) for name in os.environ.get("CXX", "c++ g++ clang++").split()):
        pytest.skip("there is no C++ compiler to build the host runner with")
    pybind11 = pytest.importorskip("pybind11")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    settings = {
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "FLAGATTN_PYTHON_INCLUDES": f"{sysconfig.get_path('include')};{pybind11.get_include()}",
        "FLAGATTN_PYTHON_SUFFIX": suffix,
    }
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        definitions = [f"-D{name}={value}" for name, value in settings.items()]
        _run([_tool("cmake"), "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", *definitions])
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        _run([_tool("cmake"), "--build", str(BUILD), "--target", target, "--parallel", jobs])
    return BUILD / (target + suffix if target == "_host_exec" else target)


@cache
def host_exec_module() -> ModuleType:
    """`_host_exec`: our CUDA kernels on CPU memory."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("Python.h is missing, so _host_exec cannot be built (apt install python3-dev)")
    spec = importlib.util.spec_from_file_location("_host_exec", built("_host_exec"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_host_exec"] = module
    spec.loader.exec_module(module)
    return module


@cache
def _fixed_addresses() -> tuple[list[str], str]:
    """How to run a program without address randomisation, or why that is impossible here."""
    setarch = shutil.which("setarch")
    if setarch is None:
        return [], "setarch is missing"
    if subprocess.run([setarch, "-R", "true"], capture_output=True).returncode != 0:
        return [], "this machine forbids setarch -R"
    return [setarch, "-R"], ""


def command_of(name: str, build: str, *arguments: str) -> list[str]:
    """The command line that runs program `name` of the plain, asan or tsan build, which is built before."""
    prefix, hindrance = ([], "") if build == "plain" else _fixed_addresses()
    if build == "tsan" and hindrance:  # GCC 12's libtsan does not start where addresses are randomised widely
        pytest.skip(f"ThreadSanitizer needs fixed addresses, but {hindrance}")
    return [*prefix, str(built(f"{name}_{build}")), *arguments]


def end_of(command: list[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """How the command ended; its stdout holds stderr as well."""
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=os.environ | SANITIZER_OPTIONS,
    )


def run_program(name: str, build: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs program `name` of the plain, asan or tsan build; its stdout holds stderr as well."""
    return end_of(command_of(name, build, *arguments), timeout)
