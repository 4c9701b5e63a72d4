"""Fixtures of the benches: thread count, seeds, and shapes that shrink when nothing is measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench import machine

THREADS = 2


@pytest.fixture(autouse=True)
def _same_conditions() -> Iterator[None]:
    """Two threads (the bars' condition) and the same random inputs in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _heap_with_pages(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("benchmark_enable"):
        machine.touch_heap()


@pytest.fixture
def sized(request: pytest.FixtureRequest) -> Any:
    """The case itself when it is measured, a small one of its kind when it only has to be right."""
    disabled = request.config.getoption("benchmark_disable") and not request.config.getoption("benchmark_enable")
    return (lambda shape: shape.shrunk()) if disabled else (lambda shape: shape)


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return machine.describe()


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    return {"id": machine.commit()}
