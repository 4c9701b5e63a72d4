"""Markers, threads and CPU levels for every test; what was skipped and why, and where the time of a run went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch

from flagattn.testing import available_cpu_levels, set_cpu_level


@pytest.fixture(params=available_cpu_levels())
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for every instruction set that this machine has."""
    with set_cpu_level(request.param):
        yield request.param


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_gpu = torch.cuda.is_available()
    wants_slow = "slow" in config.option.markexpr
    for item in items:
        if "gpu" in item.keywords and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "slow" in item.keywords and not wants_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


def seconds_by_folder(durations: Iterable[tuple[str, float]]) -> Counter[str]:
    """Of (node id, seconds): sums by the first two parts of the path, or one where the second is a file."""
    sums: Counter[str] = Counter()
    for node, seconds in durations:
        *folders, _ = node.partition("::")[0].split("/")
        sums["/".join(folders[:2])] += seconds  # type: ignore[assignment]
    return sums


LEAST_SECONDS = 60  # of a run whose shares are told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in skipped
    )
    if reasons:
        terminalreporter.section("skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:6d}  {reason}")
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "duration")]
    sums = seconds_by_folder((report.nodeid, report.duration) for report in reports)
    if sum(sums.values()) >= LEAST_SECONDS:
        terminalreporter.section("time, by folder")
        for folder, seconds in sums.most_common():
            terminalreporter.write_line(f"{seconds / 60:6.1f} min  {folder}")
