"""Every environment variable the project reads: the one list that README's table is made from and tests compare."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentVariable:
    """`read_at` says when it counts: "import", "first call" or "build"."""

    name: str
    read_at: str
    values: str
    default: str
    meaning: str


ENVIRONMENT = (
    EnvironmentVariable(
        "FLAGATTN_CPU_LEVEL",
        "first call",
        "scalar, avx2, avx512, amx",
        "the best the host has",
        "Instruction set of the CPU kernels. A level the host lacks is not used; `python -m flagattn` says so.",
    ),
    EnvironmentVariable(
        "FLAGATTN_LIBRARY",
        "import",
        "a path",
        "the built `flagattn/_C.so`",
        "Another build of the CPU library to load, such as one with sanitizers.",
    ),
    EnvironmentVariable(
        "FLAGATTN_CHECK",
        "first call",
        "1",
        "off",
        "Values that CUDA kernels only keep inside memory (offsets, lengths, pages, positions, targets) are looked at "
        "before every call and refused where they are wrong, as the CPU always does. Each call then waits for the GPU.",
    ),
    EnvironmentVariable(
        "FLAGATTN_CUDA",
        "build",
        "AUTO, ON, OFF",
        "AUTO",
        "Whether the CUDA library is built. AUTO builds it where nvcc is found; no GPU is needed.",
    ),
    EnvironmentVariable(
        "FLAGATTN_CUDA_ARCHS",
        "build",
        "CMake's notation, such as 80-real",
        "every arch that has kernels",
        "CUDA architectures to build for.",
    ),
    EnvironmentVariable(
        "FLAGATTN_WERROR", "build", "ON, OFF", "OFF; make sets ON", "Whether a compiler's warning ends the build."
    ),
    EnvironmentVariable("MAX_JOBS", "build", "a number", "the number of cores", "Compile jobs at once."),
    EnvironmentVariable("CMAKE_ARGS", "build", "CMake arguments", "none", "Passed on to CMake."),
    EnvironmentVariable("CXX", "build", "a C++ compiler", "c++", "The compiler."),
)
