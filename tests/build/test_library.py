"""What the shipped libraries may contain: no Python, no unstable torch symbol, no exported symbol, no bulk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import flagattn
from flagattn.build_info import CPU_LEVELS

FOLDER = Path(flagattn.__file__).parent
MEGABYTE = 2**20
SIZE_LIMITS = {"_C.so": 12 * MEGABYTE, "_C_cuda.so": 35 * MEGABYTE}
SYSTEM_LIBRARIES = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"}
SYSTEM_LIBRARIES |= {"librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=SIZE_LIMITS)
def library(request: pytest.FixtureRequest) -> Path:
    path = FOLDER / request.param
    if not path.exists():
        pytest.skip(f"{request.param} is not built: {flagattn.build_info().off.get('CUDA kernels', '')}")
    if shutil.which("nm") is None:
        pytest.skip("binutils is not installed")
    return path


def symbols(library: Path, which: str) -> list[str]:
    return [line.split()[-1] for line in run("nm", "-D", which, library).splitlines()]


def test_needs_torch_cpu_and_system_libraries_only(library: Path) -> None:
    lines = [line for line in run("readelf", "-d", library).splitlines() if "(NEEDED)" in line]
    needed = {line.split("[")[1].rstrip("]") for line in lines}
    assert "libtorch_cpu.so" in needed
    assert needed - SYSTEM_LIBRARIES == {"libtorch_cpu.so"}


def test_has_no_search_path_of_the_build_machine(library: Path) -> None:
    dynamic = run("readelf", "-d", library)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_exports_nothing(library: Path) -> None:
    assert symbols(library, "--defined-only") == []


def test_undefined_symbols_are_the_stable_shim_and_the_c_library(library: Path) -> None:
    # Versioned names belong to libc and libstdc++; _ZNSt are those of libstdc++ that libtorch_cpu offers too.
    own = [name for name in symbols(library, "--undefined-only") if "@" not in name and not name.startswith("_ZNSt")]
    weak_hooks = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}
    strangers = [name for name in own if not name.startswith(("aoti_torch_", "torch_")) and name not in weak_hooks]
    assert strangers == []
    assert not [name for name in own if name.startswith(("Py", "_Py"))]


def test_asks_for_no_cuda_symbol_of_torch(library: Path) -> None:
    # torch loads libtorch_cuda with local scope: an undefined symbol of it would keep the library from loading.
    assert not [name for name in symbols(library, "--undefined-only") if "cuda" in name]


def test_is_small_when_stripped(library: Path, tmp_path: Path) -> None:
    stripped = tmp_path / library.name
    run("strip", "-o", stripped, library)
    assert stripped.stat().st_size < SIZE_LIMITS[library.name]


def objects_of(*targets: str) -> list[Path]:
    folders = (FOLDER.parent / "build").glob("linux-*/CMakeFiles")
    found = [path for folder in folders for target in targets for path in folder.glob(f"{target}.dir/**/*.o")]
    if not found or shutil.which("objdump") is None:
        pytest.skip("no build folder, or no objdump")
    return sorted(found)


def test_baseline_code_uses_no_avx() -> None:
    """The dispatchers and op wrappers run on every x86-64: no AVX instruction outside the *_isa.cpp objects."""
    for path in objects_of("flagattn_cpu", "flagattn_scalar", "_C"):
        assert "%ymm" not in run("objdump", "-d", "--no-show-raw-insn", path), path


def test_isa_objects_share_no_inline_function() -> None:
    """Of an inline function that several objects hold the linker keeps one copy; it must not be the AVX-512 one."""
    for level in CPU_LEVELS:
        for path in objects_of(f"flagattn_{level}"):
            lines = run("nm", "-C", "--defined-only", path).splitlines()
            weak = [line.split(maxsplit=2)[2] for line in lines if line.split()[1] in "WVu"]
            # A pointer to the C++ runtime's routine for unwinding, which every object with a destructor holds.
            weak = [name for name in weak if name != "DW.ref.__gxx_personality_v0"]
            assert [name for name in weak if f"flagattn::{level}::" not in name] == [], path
