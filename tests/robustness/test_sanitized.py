"""The op suites under AddressSanitizer and UndefinedBehaviorSanitizer, at every CPU level of the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = 66  # the exit status of a process that a sanitizer ends
OPTIONS = {
    # Torch and Python hold on to memory until they end, and keep what other libraries define as well.
    "ASAN_OPTIONS": f"detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1:exitcode={REPORT}",
    "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={REPORT}",
    "OMP_NUM_THREADS": "2",
}

# Every op and every kind of operand; of the attention cases all shapes in fp32, some of bf16 where it has kernels of
# its own, and those that differ in their loads in 16 bits. What checks numbers only, or starts processes, adds nothing.
SUITES = {
    "attention": [
        "tests/attention/test_attention_oracle.py",
        "-k",
        "float32 or layouts or packed or 59 or gqa or (bfloat16-amx and "
        "(window_left or off_by_one or dim_40 or dim_256 or bias_hides or window_softcap))",
    ],
    "edges": ["tests/attention/test_attention_edges.py", "tests/torch", "tests/robustness/test_layouts.py"],
    "masks": ["tests/attention/test_masks.py", "-k", "not opcheck and not compil and not checkpoint"],
    "caches": [
        "tests/attention/test_kvcache.py",
        "tests/attention/test_kvcache_append.py",
        "tests/attention/test_kvcache_properties.py",
        "tests/attention/test_varlen_pages.py",
        "-k",
        "not opcheck and not compile",
    ],
    "fused ops": [
        *("tests/norm", "tests/activation", "tests/rotary", "tests/linear"),
        *("-k", "not opcheck and not compile"),
    ],
    "losses": ["tests/loss", "tests/robustness/test_layouts_of_losses.py", "-k", "not opcheck and not compil"],
    "values and empties": [
        "tests/robustness/test_wild_values.py",
        "tests/robustness/test_empty.py",
        "tests/robustness/test_layouts_of_caches_and_scores.py",
        "-k",
        "not opcheck and not compil",
    ],
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a process needs to run over the sanitized library, which is built here."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the sanitizers are GCC's, and g++ is missing")
    libraries = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"{name} is missing")
        libraries.append(found)
    build = ROOT / "build" / sysconfig.get_platform()
    if not (build / "build.ninja").exists():
        pytest.skip("the project was not built in this checkout")
    cmake = Path(sysconfig.get_path("scripts")) / "cmake"
    command = [cmake if cmake.exists() else "cmake", "--build", build, "--target", "_C_sanitized"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-4000:]
    library = build / "lib" / "_C_sanitized.so"
    # The tiles' twin is slow under the sanitizers: where a test does not name the level amx, the one below it runs.
    level = {"FLAGATTN_CPU_LEVEL": "avx512"}
    return os.environ | OPTIONS | level | {"LD_PRELOAD": " ".join(libraries), "FLAGATTN_LIBRARY": str(library)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


# An operand that claims one element more than its buffer has.
CONTROL = """
import numpy, torch, flagattn
buffer = numpy.ones(4095 + {missing}, numpy.float32)
weight = torch.from_numpy(numpy.lib.stride_tricks.as_strided(buffer, (4096,), (4,)))
flagattn.rms_norm(torch.ones(2, 4096), weight)
"""


def test_a_read_behind_an_operand_is_reported(environment: dict[str, str]) -> None:
    assert run(environment, "-c", CONTROL.format(missing=1)).returncode == 0
    done = run(environment, "-c", CONTROL.format(missing=0))
    assert done.returncode == REPORT and "heap-buffer-overflow" in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("suite", SUITES)
def test_suite(environment: dict[str, str], suite: str) -> None:
    done = run(environment, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUITES[suite])
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
