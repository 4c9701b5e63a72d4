"""An in-place build leaves its own libraries in the package, whatever lay there."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import setuptools
from torch.utils import cpp_extension

import flagattn

ROOT = Path(flagattn.__file__).parents[1]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The in-place build command of a checkout in tmp_path that has nothing but setup.py."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not run from a checkout")
    shutil.copy(ROOT / "setup.py", tmp_path)
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(tmp_path / "setup.py"))
    for folder in ("flagattn", "build/linux/lib"):
        (tmp_path / folder).mkdir(parents=True)
    built = given["cmdclass"]["build_ext"](setuptools.Distribution())
    built.inplace = True
    return built


def test_the_library_of_another_build_is_replaced(command: Any, tmp_path: Path) -> None:
    ours, copy = tmp_path / "build/linux/lib/_C.so", tmp_path / "flagattn/_C.so"
    ours.write_bytes(b"our build")
    command.place_libraries(tmp_path / "build/linux")
    assert copy.read_bytes() == b"our build"
    placed = copy.stat().st_ino
    command.place_libraries(tmp_path / "build/linux")
    assert copy.stat().st_ino == placed
    with copy.open("rb") as mapped:
        (tmp_path / "other").write_bytes(b"isolated!")  # of the same size, and newer
        (tmp_path / "other").replace(copy)
        command.place_libraries(tmp_path / "build/linux")
        assert mapped.read() == b"our build"
    assert copy.read_bytes() == b"our build"
    assert [path.name for path in (tmp_path / "flagattn").iterdir()] == ["_C.so"]


def test_a_library_that_this_build_does_not_make_goes(command: Any, tmp_path: Path) -> None:
    (tmp_path / "flagattn/_C_cuda.so").write_bytes(b"of another build")
    command.place_libraries(tmp_path / "build/linux")
    assert list((tmp_path / "flagattn").iterdir()) == []


def test_a_build_without_cuda_leaves_no_cuda_library_of_an_earlier_one(command: Any, tmp_path: Path) -> None:
    tools = runpy.run_path(str(tmp_path / "setup.py"))
    try:
        tools["check_compiler"]()
        cmake, ninja = tools["find_tool"]("cmake"), tools["find_tool"]("ninja")
    except SystemExit as missing:
        pytest.skip(str(missing))
    build = tmp_path / "build/linux"
    for stale in (build / "lib/_C_cuda.so", tmp_path / "flagattn/_C_cuda.so"):
        stale.write_bytes(b"of an earlier build")
    settings = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "FLAGATTN_CUDA": "OFF",
        "FLAGATTN_TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
        "FLAGATTN_TORCH_LIBRARY_DIRS": ";".join(cpp_extension.library_paths()),
    }
    definitions = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *definitions], check=True, capture_output=True)
    command.place_libraries(build)
    assert list((tmp_path / "flagattn").iterdir()) == []
