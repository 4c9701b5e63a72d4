"""The source distribution holds what a build needs, and nothing that a build makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import flagattn

ROOT = Path(flagattn.__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not run from a checkout")
    # From a copy: setuptools writes its egg-info beside the sources.
    copy, output = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(output)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (archive,) = output.glob("flagattn-*.tar.gz")
    with tarfile.open(archive) as files:
        return {name.partition("/")[2] for name in files.getnames()}


def test_holds_every_source(names: set[str]) -> None:
    for folder in ("csrc", "cmake", "flagattn", "aquila2"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".so", ".pyc") and not path.name.endswith(".so.new"):
                assert str(path.relative_to(ROOT)) in names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_holds_nothing_that_is_made(names: set[str]) -> None:
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o")) or name.startswith(("build/", ".venv"))]
