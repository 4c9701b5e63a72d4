"""Names of machines, which are folders of results."""

from __future__ import annotations

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
    ],
)
def test_machine_slug(cpu: dict[str, str], cores: int, expected: str) -> None:
    assert machine.machine_slug(cpu, cores) == expected


def test_a_description_names_no_host_and_no_user() -> None:
    description = machine.describe()
    assert description["machine"] == machine.this_machine()
    assert not {"node", "user", "hostname"} & set(description)
