"""Runs of the programs, as parameters of tests: those of the tests to come start while a test waits for its own.

A test with a parameter `run` takes the fixture `done` (conftest.py): how that run ended.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import pytest

from tests.host_exec.builds import command_of, end_of

Done = subprocess.CompletedProcess
SEEDS = [f"seed={seed} copies=random workers=2" for seed in range(1, 101)]  # of the soaks


class Run(NamedTuple):
    program: str
    build: str  # plain, asan or tsan
    arguments: str  # as on the command line

    def __str__(self) -> str:
        return f"{self.build} {self.arguments}".replace(" ", ",")


def runs_of(program: str, builds: Iterable[str], *choices: Iterable[str]) -> list[Run]:
    """A run for every build and every way to take one piece of the arguments from each of `choices`."""
    return [Run(program, build, " ".join(arguments)) for build, *arguments in product(builds, *choices)]


def with_runs(runs: Iterable[Run]) -> pytest.MarkDecorator:
    """Parametrizes a test by `run`."""
    return pytest.mark.parametrize("run", list(runs), ids=str)


class Ahead:
    """As many programs at a time as there are cores, in the order in which their tests come."""

    def __init__(self, tests: Sequence[pytest.Item]) -> None:
        self._tests = [test for test in tests if _will_run(test)]
        self._places = {test: place for place, test in enumerate(self._tests)}
        self._cores = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._cores)
        self._built: set[tuple[str, str]] = set()
        self._started: dict[pytest.Item, Future[Done[str]]] = {}

    def done(self, test: pytest.Item) -> Done[str]:
        """How the test's run ended. A program is built, or its tests are skipped, by the first test that needs it."""
        _command(_run_of(test))
        self._built.add(_run_of(test)[:2])
        place = self._places[test]
        for other in self._tests[place : place + 2 * self._cores]:
            run = _run_of(other)
            if other not in self._started and run[:2] in self._built:
                self._started[other] = self._pool.submit(end_of, _command(run))
        return self._started.pop(test).result()

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _will_run(test: pytest.Item) -> bool:
    return "ahead" in getattr(test, "fixturenames", ()) and test.get_closest_marker("skip") is None


def _run_of(test: pytest.Item) -> Run:
    return test.callspec.params["run"]  # type: ignore[attr-defined]


def _command(run: Run) -> list[str]:
    return command_of(run.program, run.build, *run.arguments.split())
