"""Names of machines, which are folders of results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench import machine


@pytest.mark.parametrize(
    ("cpu", "cores", "expected"),
    [
        (
            {"vendor_id": "AuthenticAMD", "model name": "AMD EPYC", "cpu family": "25", "model": "1", "stepping": "1"},
            2,
            "amd-epyc-zen3-2c",
        ),
        (
            {
                "vendor_id": "GenuineIntel",
                "model name": "Intel(R) Xeon(R) CPU @ 2.80GHz",
                "cpu family": "6",
                "model": "85",
                "stepping": "7",
            },
            2,
            "intel-xeon-cascade-lake-2c",
        ),
        ({"model name": "Odd & New"}, 4, "odd-new-4c"),
        ({"model name": "Odd & New", "flags": "avx2 avx512f avx512bw amx_bf16 amx_tile"}, 4, "odd-new-amx-4c"),
    ],
)
def test_machine_slug(cpu: dict[str, str], cores: int, expected: str) -> None:
    assert machine.machine_slug(cpu, cores) == expected


def test_a_description_names_no_host_and_no_user() -> None:
    description = machine.describe()
    assert description["machine"] == machine.this_machine()
    assert not {"node", "user", "hostname"} & set(description)


def test_most_results_land_on_pages_that_are_there() -> None:
    """What defeats a heap that only keeps its memory: small objects at the edges of the holes."""
    program = """
import resource, torch
from bench import machine

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
machine.touch_heap(768 << 20)
before = faults()
kept, small = [None] * 3, []
for turn in range(30):
    kept[turn % 3] = torch.empty(16 << 20, dtype=torch.uint8).fill_(1)
    small.append(torch.empty(3))
print(faults() - before)
"""
    environment = os.environ | {"GLIBC_TUNABLES": machine.GLIBC_TUNABLES}
    command = [sys.executable, "-c", program]
    faults = subprocess.run(command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, check=True)
    # Of thirty results at most the four that are alive at once meet new pages; on an untouched heap nearly
    # all do. The heap has room for each of them at an address of its own, which is what some layouts make of it.
    assert int(faults.stdout) < 5 * (16 << 20) // os.sysconf("SC_PAGE_SIZE")
