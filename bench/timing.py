"""Alternating measurement: in every round each contestant runs once, ours last, each on its next set of buffers.

A machine has fast and slow minutes. Two medians taken one after the other compare the minutes as much as the code, so a
ratio is formed inside each round and the median of those ratios is what the report quotes. Where contestants are given
the same sets of buffers, each takes another one in a round, so that nobody finds in the caches what another just read.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.machine import last_level_cache_bytes

Thunk = Callable[[], Any]

MIN_ROUNDS = 5
FEWEST_ROUNDS = 3  # where a round takes longer than LONG_ROUND seconds
LONG_ROUND = 2.0
MAX_ROUNDS = 31
SECONDS_PER_CASE = 0.8


@dataclass(frozen=True)
class Peer:
    """What ours is measured against. `buffers` are thunks of the same work, each on buffers of its own.

    With `flops` or `bytes` it is a probe of the machine: the report then also gives our rate as a share of its rate.
    """

    buffers: Sequence[Thunk]
    flops: float = 0.0
    bytes: float = 0.0
    agrees: Callable[[Any, Any], None] | None = None  # (ours, theirs): raises where the results differ
    warm: bool = False  # runs once more before it is timed: a rate on operands that are in the caches


@dataclass
class Case:
    """One row of the report: which suite and class it belongs to, its shape, and the work it does."""

    suite: str
    group: str
    shape: str
    flops: float = 0.0
    bytes: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def rotation_count(bytes_per_call: float, rounds: int = MAX_ROUNDS) -> int:
    """How many sets of buffers it takes that a set has left the caches when its turn comes again."""
    return max(2, min(rounds, 16, math.ceil(2 * last_level_cache_bytes() / max(1.0, bytes_per_call))))


def sets_for(benchmark: Any, bytes_per_call: float, contestants: int = 1) -> int:
    """How many sets of buffers a bench makes: one where nothing is measured.

    Contestants that share the sets need one more than they are, so that none follows on the set of the one before.
    """
    return max(rotation_count(bytes_per_call), contestants + 1) if benchmark.enabled else 1


def rounds_for(seconds_per_round: float, budget: float = SECONDS_PER_CASE) -> int:
    """An odd number of rounds that fits the budget, so that the median is a value that was measured."""
    fewest = FEWEST_ROUNDS if seconds_per_round > LONG_ROUND else MIN_ROUNDS
    rounds = max(fewest, min(MAX_ROUNDS, int(budget / max(seconds_per_round, 1e-9))))
    return rounds if rounds % 2 else rounds - 1


class _Alternation:
    """Runs the peers before each of our rounds and keeps their times, round by round."""

    def __init__(self, peers: dict[str, Peer], ours: Sequence[Thunk]) -> None:
        self.peers = peers
        self.ours = ours
        self.turn = 0
        self.recording = False
        self.samples: dict[str, list[float]] = {name: [] for name in peers}
        self.results: dict[str, Any] = {}

    def before_ours(self) -> tuple[tuple[Thunk], dict[str, Any]]:
        for place, (name, peer) in enumerate(self.peers.items()):
            thunk = self._of(peer.buffers, place)
            self.results.pop(name, None)  # frees the last result outside the timed part
            if peer.warm:
                thunk()
            start = time.perf_counter()
            result = thunk()
            seconds = time.perf_counter() - start
            if self.recording:
                self.samples[name].append(seconds)
            self.results[name] = result
        thunk = self._of(self.ours, len(self.peers))
        self.turn += 1
        return (thunk,), {}

    def _of(self, buffers: Sequence[Thunk], place: int) -> Thunk:
        """The set of this turn; while it is measured, later contestants of a round are as far behind as there are sets.

        A set then comes back to the next contestant after a whole round at least.
        """
        behind = place * max(1, len(buffers) // (len(self.peers) + 1)) if self.recording else 0
        return buffers[(self.turn - behind) % len(buffers)]

    def warm_up(self, rounds: int) -> float:
        """Untimed rounds on the same sets for all, whose results are compared; returns the seconds of the last.

        The first may hold a compilation, so only the second tells how long a round takes.
        """
        seconds = 0.0
        for _ in range(rounds):
            start = time.perf_counter()
            (thunk,), _ = self.before_ours()
            result = thunk()
            seconds = time.perf_counter() - start
        self.compare(result)
        self.recording = True
        return seconds

    def compare(self, ours: Any) -> None:
        """Raises where a peer's last result differs from ours."""
        for name, peer in self.peers.items():
            if peer.agrees is not None:
                peer.agrees(ours, self.results[name])


def race(
    benchmark: Any,
    case: Case,
    ours: Sequence[Thunk],
    peers: dict[str, Peer],
    *,
    budget: float = SECONDS_PER_CASE,
    warm_rounds: int = 2,
) -> Any:
    """Measures `ours` with pytest-benchmark and the peers between its rounds; checks results; fills `extra_info`."""
    if not benchmark.enabled:  # only results count then
        peers = {name: peer for name, peer in peers.items() if not (peer.flops or peer.bytes)}
    alternation = _Alternation(peers, ours)
    rounds = rounds_for(alternation.warm_up(warm_rounds), budget) if benchmark.enabled else 1
    benchmark.group = f"{case.suite} {case.group}"
    busy = _CpuShare()
    result = benchmark.pedantic(_call, setup=alternation.before_ours, rounds=rounds, warmup_rounds=0)
    if not benchmark.enabled:
        alternation.compare(result)
    else:
        times = benchmark.stats.stats.data
        benchmark.extra_info.update(
            summary(case, times, peers, alternation.samples), others_cpu=round(busy.others(), 3)
        )
    return result


def summary(
    case: Case, times: Sequence[float], peers: dict[str, Peer], samples: dict[str, list[float]]
) -> dict[str, Any]:
    """The numbers of one row; `times` and `samples[name]` belong together round by round."""
    rows: dict[str, Any] = {}
    for name, peer in peers.items():
        ratios = [theirs / ours for theirs, ours in zip(samples[name], times, strict=True)]
        row: dict[str, Any] = {
            "median_s": statistics.median(samples[name]),
            "times_ours": statistics.median(ratios),
            "spread": quartiles(ratios),
        }
        if peer.flops and case.flops:
            row["share"] = row["times_ours"] * case.flops / peer.flops
            row["gflops"] = peer.flops / row["median_s"] / 1e9
        if peer.bytes and case.bytes:
            row["share"] = row["times_ours"] * case.bytes / peer.bytes
            row["gbps"] = peer.bytes / row["median_s"] / 1e9
        rows[name] = row
    return {
        "suite": case.suite,
        "class": case.group,
        "shape": case.shape,
        "flops": case.flops,
        "bytes": case.bytes,
        "median_s": statistics.median(times),
        "peers": rows,
        **case.facts,
    }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def agree(tolerance: float) -> Callable[[Any, Any], None]:
    """A check that every tensor of ours equals the peer's within `tolerance`, relative, in the L2 norm."""

    def check(ours: Any, theirs: Any) -> None:
        for index, (a, b) in enumerate(zip(_tensors(ours), _tensors(theirs), strict=True)):
            a, b = a.detach().double(), b.detach().double()
            error = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
            assert error <= tolerance, (
                f"result {index}: relative L2 distance {error:.2e} to the peer, over {tolerance:.0e}"
            )

    return check


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _call(thunk: Thunk) -> Any:
    return thunk()


class _CpuShare:
    """The share of the machine's processor time that went to other processes since construction."""

    def __init__(self) -> None:
        self.start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        try:
            ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
        except OSError:
            return 0.0, 1.0, 0.0
        idle = ticks[3] + ticks[4]
        return float(sum(ticks) - idle), float(sum(ticks)), time.process_time()

    def others(self) -> float:
        busy, total, own = (now - then for now, then in zip(self._read(), self.start, strict=True))
        ticks_per_second = 100.0
        return max(0.0, (busy - own * ticks_per_second) / total) if total > 0 else 0.0
