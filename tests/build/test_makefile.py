"""What `make` would run, without running it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import flagattn
from flagattn.testing.conformance.suites import SUITES

ROOT = Path(flagattn.__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def dry_run(*arguments: str, cwd: Path = ROOT) -> str:
    command = ["make", "--no-print-directory", "--dry-run", *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_pytest_arguments_pass_on() -> None:
    commands = dry_run("test", "VENV=none", "PYTEST_ARGS=tests/attention -k causal")
    assert "python3 -m pytest tests/attention -k causal" in commands


def test_existing_environment_is_left_alone() -> None:
    assert "pip" not in dry_run("test", "VENV=none")


def test_torch_is_installed_first_and_alone(tmp_path: Path) -> None:
    commands = dry_run("environment", f"VENV={tmp_path}/new", "TORCH=torch==2.14.1").splitlines()
    installs = [line for line in commands if "pip install" in line]
    assert "'torch==2.14.1'" in installs[0]
    assert "-e '.[dev]'" in installs[1]


def test_check_ends_with_pytest() -> None:
    assert "-m pytest tests" in dry_run("check", "VENV=none").strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("SUITE=nope", f"SRC={ROOT}"), "SUITE is 'nope'; it must be one of " + " ".join(SUITES)),
        (("SUITE=liger",), "SRC is ''; it must be the folder of a checkout of liger"),
    ],
)
def test_conformance_looks_at_its_arguments_before_it_builds(arguments: tuple[str, ...], words: str) -> None:
    command = ["make", "--no-print-directory", "conformance", "VENV=none", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode and ended.stdout == "" and ended.stderr.splitlines()[0] == words


def test_ci_runs_the_check() -> None:
    assert "make check" in (ROOT / ".ci" / "run").read_text()


def test_the_format_of_all_cpp_files_is_checked_without_git_too(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    names = {f"{folder}/part.{suffix}" for folder in ("csrc", "tests", "bench") for suffix in ("h", "cpp", "cu", "cuh")}
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    checks = dry_run("lint", "VENV=none", cwd=tmp_path).splitlines()[-1].split()
    assert checks[:3] == ["clang-format", "--dry-run", "--Werror"] and set(checks[3:]) == names
