"""A run of a minute or more ends with what each folder took (conftest.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_terminal_summary, seconds_by_folder


def test_sums_are_by_folder() -> None:
    durations = [
        ("tests/cuda/test_a.py::test[x/y]", 2.0),
        ("tests/cuda/deeper/test_b.py::test", 1.0),
        ("test_c.py::t", 4.0),
    ]
    assert seconds_by_folder(durations) == {"tests/cuda": 3.0, "": 4.0}


@pytest.mark.parametrize(("seconds", "told"), [(59.0, []), (66.0, ["   1.1 min  tests/cuda"])])
def test_long_runs_tell_them(seconds: float, told: list[str]) -> None:
    lines: list[str] = []
    report = SimpleNamespace(nodeid="tests/cuda/test_a.py::test", duration=seconds)
    reporter: Any = SimpleNamespace(
        stats={"passed": [report], "warnings": [SimpleNamespace(message="no duration")]},
        section=lambda title: None,
        write_line=lines.append,
    )
    pytest_terminal_summary(reporter)
    assert lines == told
