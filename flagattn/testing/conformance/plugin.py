"""The pytest plugin of a conformance run: draws the cases, runs them as if the CPU were a GPU, writes the outcomes."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import random
import subprocess
import sys
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

import flagattn
from flagattn import compat
from flagattn.testing.conformance.device import CudaMeansCpu, answer_for_cuda
from flagattn.testing.conformance.suites import Suite, size_of


class ConformancePlugin:
    """`chosen` names the cases of the sample; every result is appended to `record` as one JSON line."""

    def __init__(self, suite: Suite, source: Path, cases: int, seed: int, largest: int, record: Path) -> None:
        self.suite, self.source = suite, source
        self.cases, self.seed, self.largest, self.record = cases, seed, largest, record
        self.seconds, self.stop_at = math.inf, math.inf
        self.ours = our_version()
        self.collected = self.larger = self.eligible = 0
        self.reasons: Counter[str] = Counter()
        self.emptied: set[str] = set()
        self.chosen: set[str] = set()
        self.counts: dict[str, Any] = {}

    def prepare(self) -> None:
        """Before the test files are imported."""
        os.environ.update(self.suite.environment)
        answer_for_cuda(self.suite.capability)
        if self.suite.installs:
            compat.install(*self.suite.installs)
        sys.path[:0] = [str(self.source / path) for path in self.suite.paths]
        for name in self.suite.stand_ins:
            sys.modules.setdefault(name, types.ModuleType(name))
        if self.suite.prepare is not None:
            self.suite.prepare()
        if self.suite.references:
            self._load_references()

    def _load_references(self) -> None:
        """`flag_attn.testing` holds the checkout's own reference implementations, beside our functions."""
        package = sys.modules.get("flag_attn") or __import__("flag_attn")
        testing = types.ModuleType("flag_attn.testing")
        for name, path in self.suite.references.items():
            spec = spec_from_file_location(f"flag_attn.testing.{name}", self.source / path)
            if spec is None or spec.loader is None:
                raise FileNotFoundError(f"{self.source / path} is missing")
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            setattr(testing, f"{name}_attention", module.attention)
        testing.recompute_mask = None  # type: ignore[attr-defined]
        package.testing = testing  # type: ignore[attr-defined]
        sys.modules["flag_attn.testing"] = testing

    # ---- which cases ----

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> Iterator[None]:
        """Thins out the cases of a test before pytest makes an object of each: some tests have a hundred thousand."""
        result = yield
        test = metafunc.definition.originalname
        eligible: list[Any] = []
        calls = metafunc._calls
        for call in calls:
            covering = next((d for d in self.suite.deselected if d.covers(test, call.params)), None)
            if covering is not None:
                self.reasons[covering.reason] += 1
            elif size_of(call.params) > self.largest:
                self.larger += 1
            else:
                eligible.append(call)
        if calls:
            self.collected += len(calls)
            self.eligible += len(eligible)
            # A test that has no case left still gets one, which is taken out below.
            calls[:] = drawn(eligible, self.cases, f"{self.seed} {test}") or calls[:1]
            self.emptied.update([test] if not eligible else [])
        return result

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        by_test: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in items:
            test = getattr(item, "originalname", item.name)
            if test in self.emptied:
                continue
            if not hasattr(item, "callspec"):
                self.collected += 1
                covering = next((d for d in self.suite.deselected if d.covers(test, {})), None)
                if covering is not None:
                    self.reasons[covering.reason] += 1
                    continue
                self.eligible += 1
            by_test[test].append(item)
        shares = even_shares({test: len(items) for test, items in by_test.items()}, self.cases)
        chosen = [item for test, items in by_test.items() for item in drawn(items, shares[test], f"{self.seed}")]
        self.counts = {
            "collected": self.collected,
            "deselected": dict(self.reasons),
            "larger": self.larger,
            "eligible": self.eligible,
            "sampled": len(chosen),
        }
        self.chosen = {item.nodeid for item in chosen}
        done = {line["case"] for line in self.outcomes()}
        items[:] = [item for item in chosen if item.nodeid not in done]

    def outcomes(self) -> list[dict[str, Any]]:
        """What the record says of the sample, an earlier run's cases included."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [line for line in map(json.loads, lines) if line["case"] in self.chosen]

    # ---- running them ----

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        default_dtype = torch.get_default_dtype()
        try:
            with CudaMeansCpu():
                return (yield)
        finally:
            torch.set_default_dtype(default_dtype)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[Any]:
        with CudaMeansCpu():
            return (yield)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for name in self.suite.stand_ins:  # the test files have them; torch would ask a Triton that it finds for more
            if getattr(sys.modules.get(name), "__file__", None) is None:
                sys.modules.pop(name, None)
        self.stop_at = time.monotonic() + self.seconds
        if self.seconds <= 0:
            session.items.clear()

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if time.monotonic() > self.stop_at:
            item.session.shouldstop = "the time is over; the next run goes on here"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        line: dict[str, Any] = {"case": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        line["ours"] = self.ours
        if report.outcome == "failed":
            line["error"] = str(report.longrepr)[-2000:]
        elif report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            line["reason"] = report.longrepr[2].removeprefix("Skipped: ")
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")


def git(folder: Path, *arguments: str) -> str:
    """What git says in a folder; "unknown" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def our_version() -> str:
    """The commit of the checkout that flagattn is imported from, or of an installed one its version."""
    root = Path(flagattn.__file__).parents[1]
    if not (root / ".git").exists():
        return importlib.metadata.version("flagattn")
    return git(root, "describe", "--always", "--abbrev=10", "--dirty", "--exclude=*")


def drawn(items: list[Any], count: int, seed: str) -> list[Any]:
    """`count` of the items in their order, always the same ones for a seed; 0, or more than there are, means all."""
    if count <= 0 or count >= len(items):
        return items
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]


def even_shares(sizes: dict[str, int], cases: int) -> dict[str, int]:
    """How many cases each test gives: as many as every other, or all it has; 0 cases means all of every test."""
    if cases <= 0:
        return sizes
    shares: dict[str, int] = {}
    left = cases
    for index, (test, size) in enumerate(sorted(sizes.items(), key=lambda entry: (entry[1], entry[0]))):
        shares[test] = min(size, left // (len(sizes) - index))
        left -= shares[test]
    return shares
