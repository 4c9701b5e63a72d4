"""A pytest plugin: one line of JSON for each test as it ends, so that a run that is cut off loses nothing.

`GPU_TEST_RESULTS=FILE pytest -p bench.gpu_test_results` appends to FILE; several runs may share it.
"""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    is_call = report.when == "call"
    if not is_call and report.outcome == "passed":
        return  # of setup and teardown only what went wrong, or that the test was skipped
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.outcome != "passed":
        row["reason"] = report.longreprtext[-2000:] if report.failed else str(report.longrepr)[-300:]
    line = json.dumps(row) + "\n"
    descriptor = os.open(os.environ["GPU_TEST_RESULTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
