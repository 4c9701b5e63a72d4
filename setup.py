"""Builds the C++ and CUDA libraries with CMake and Ninja; pyproject.toml holds everything else.

Environment: FLAGATTN_CUDA=AUTO|ON|OFF, FLAGATTN_WERROR=ON|OFF,
FLAGATTN_CUDA_ARCHS (CMake's notation), MAX_JOBS, CMAKE_ARGS.
"""

import fcntl
import filecmp
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit(
        "flagattn: building needs setuptools >= 77; run `pip install -U setuptools` and try again."
    ) from None

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 11)


def import_torch():
    """torch, only when something is compiled: metadata and sdist work without it."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            f"flagattn: building needs torch >= 2.11 in this environment ({error}); install torch first, then "
            "`pip install --no-build-isolation .`, or let pip fetch one with `pip install .`."
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        raise SystemExit(f"flagattn: building needs torch >= 2.11, but this environment has {torch.__version__}.")
    return torch, cpp_extension


def find_tool(name):
    """The environment's own cmake or ninja (from pip) first, then whatever PATH has."""
    own = Path(sysconfig.get_path("scripts")) / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"flagattn: {name} is missing; run `pip install {name}` and try again.")
    return found


def check_compiler():
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compiler):
        raise SystemExit(
            f"flagattn: no C++ compiler was found (looked for {', '.join(compiler)}); "
            "on Debian or Ubuntu run `apt install g++`, or point CXX at one."
        )


def open_lock(folder):
    """The build folder, made if needed, with a file in it that one build at a time locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / ".lock", "w")
    except OSError as error:
        raise SystemExit(
            f"flagattn: building needs to write to {folder} ({error.strerror}); build from a copy of the sources that "
            "you may write to."
        ) from None


class CMakeBuild(build_ext):
    """One CMake build serves both libraries; `flagattn._C` only stands for them towards setuptools."""

    def run(self):
        torch, cpp_extension = import_torch()
        check_compiler()
        # One stable folder per platform keeps every build incremental. Under build isolation torch, cmake and ninja lie
        # in a folder that pip deletes afterwards: a folder of its own, or else `ninja` in the usual one would break.
        isolated = not Path(torch.__file__).is_relative_to(sys.prefix)
        folder = ROOT / "build" / (sysconfig.get_platform() + ("-isolated" if isolated else ""))
        with open_lock(folder) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.build_libraries(folder, torch, cpp_extension)
            self.place_libraries(folder)

    def build_libraries(self, folder, torch, cpp_extension):
        cmake = find_tool("cmake")
        settings = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "FLAGATTN_TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
            "FLAGATTN_TORCH_LIBRARY_DIRS": ";".join(cpp_extension.library_paths()),
            "FLAGATTN_TORCH_VERSION": torch.__version__,
            "FLAGATTN_COPY_TO": str(ROOT / "flagattn") if self.is_in_place() else "",
            "FLAGATTN_CUDA": os.environ.get("FLAGATTN_CUDA", "AUTO").upper(),
            "FLAGATTN_WERROR": os.environ.get("FLAGATTN_WERROR", "OFF").upper(),
        }
        if "FLAGATTN_CUDA_ARCHS" in os.environ:
            settings["FLAGATTN_CUDA_ARCHS"] = os.environ["FLAGATTN_CUDA_ARCHS"]
        # -U: an override of an earlier build must not outlive it in CMake's cache.
        definitions = ["-UFLAGATTN_CUDA_ARCHS", *(f"-D{name}={value}" for name, value in settings.items())]
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        self.run_step([cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *definitions, *extra])
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        self.run_step([cmake, "--build", str(folder), "--parallel", jobs])

    def place_libraries(self, folder):
        """Wheels get stripped copies. An in-place build has been copied by its link step, so that `ninja` suffices; but
        where nothing was linked, the copy may be that of another build, e.g. of pip's isolated one."""
        if not self.is_in_place():
            target = Path(self.build_lib).resolve() / "flagattn"
            self.run_step([find_tool("cmake"), "--install", str(folder), "--strip", "--prefix", str(target)])
            return
        for name in ("_C.so", "_C_cuda.so"):
            library, copy = folder / "lib" / name, ROOT / "flagattn" / name
            if not library.exists():
                copy.unlink(missing_ok=True)
            elif not (copy.exists() and filecmp.cmp(library, copy, shallow=False)):
                # By a rename, so that running processes keep the file that they have mapped.
                shutil.copy2(library, copy.with_suffix(".so.new"))
                copy.with_suffix(".so.new").replace(copy)

    def is_in_place(self):
        return self.inplace or self.editable_mode

    def run_step(self, command):
        if subprocess.run(command).returncode != 0:
            raise SystemExit(f"flagattn: `{shlex.join(command[:3])} ...` failed; its messages stand above.")

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class PlatformWheel(bdist_wheel):
    """The libraries use no Python C API: one wheel per platform serves every Python 3."""

    def run(self):
        # What an earlier wheel gathered there, a module deleted since included, would go into this one.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("flagattn._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
