"""One clear sentence where building or importing is impossible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flagattn

ROOT = Path(flagattn.__file__).parents[1]


def run(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def fake_torch(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a torch that is too old."""
    package = tmp_path / "fake" / "torch"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.10.1+cpu'\n")
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "cpp_extension.py").write_text("")
    return package.parent


@pytest.fixture
def no_torch(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that hides torch."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('No module named torch')\n")
    return folder


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """A folder with the package's Python files and no library."""
    shutil.copytree(ROOT / "flagattn", tmp_path / "flagattn", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
    return tmp_path


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_import_before_the_build(unbuilt: Path) -> None:
    line = last_line(run("-c", "import flagattn", cwd=unbuilt))
    assert line.startswith("ImportError: flagattn is not built:")
    assert "make build" in line


def test_import_under_an_old_torch(unbuilt: Path, fake_torch: Path) -> None:
    line = last_line(run("-c", "import flagattn", cwd=unbuilt, PYTHONPATH=str(fake_torch)))
    assert line == "ImportError: flagattn needs torch >= 2.11, but torch 2.10.1+cpu is installed."


def test_import_without_torch(unbuilt: Path, no_torch: Path) -> None:
    line = last_line(run("-c", "import flagattn", cwd=unbuilt, PYTHONPATH=str(no_torch)))
    assert line == "ImportError: flagattn needs torch >= 2.11, and no torch is installed in this environment."


def test_a_broken_library_names_itself(unbuilt: Path) -> None:
    (unbuilt / "flagattn" / "_C.so").write_bytes(b"not a library")
    line = last_line(run("-c", "import flagattn", cwd=unbuilt))
    assert line.startswith("ImportError: flagattn's library ")
    assert "cannot be loaded under torch" in line


def test_build_under_an_old_torch(fake_torch: Path) -> None:
    line = last_line(run("setup.py", "-q", "build_ext", PYTHONPATH=str(fake_torch)))
    assert line == "flagattn: building needs torch >= 2.11, but this environment has 2.10.1+cpu."


def test_build_without_torch(no_torch: Path) -> None:
    line = last_line(run("setup.py", "-q", "build_ext", PYTHONPATH=str(no_torch)))
    assert line.startswith("flagattn: building needs torch >= 2.11 in this environment")
    assert "pip install" in line


def test_build_without_a_compiler(tmp_path: Path) -> None:
    line = last_line(run("setup.py", "-q", "build_ext", PATH=str(tmp_path), CXX=""))
    assert line.startswith("flagattn: no C++ compiler was found")
    assert "apt install g++" in line


def test_build_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "build").write_text("a file where the build folder would be, which stops root too\n")
    done = run("setup.py", "-q", "build_ext", cwd=tmp_path)
    assert last_line(done).startswith(f"flagattn: building needs to write to {tmp_path / 'build'}")
    assert "Traceback" not in done.stderr


def test_metadata_needs_no_torch(no_torch: Path) -> None:
    done = run("setup.py", "-q", "--version", PYTHONPATH=str(no_torch))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "0.1.0"
