"""How contestants alternate and how ratios are formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import timing


class FakeBenchmark:
    """pytest-benchmark's fixture as far as `race` uses it, with a known time for every round."""

    def __init__(self, seconds: list[float]) -> None:
        self.enabled = True
        self.group = ""
        self.extra_info: dict[str, Any] = {}
        self.seconds = seconds
        self.stats: Any = type("Metadata", (), {"stats": type("Stats", (), {"data": seconds})()})()

    def pedantic(self, target: Any, setup: Any, rounds: int, warmup_rounds: int) -> Any:
        assert warmup_rounds == 0
        del self.seconds[rounds:]
        while len(self.seconds) < rounds:
            self.seconds.append(self.seconds[-1])
        result = None
        for _ in range(rounds):
            arguments, keywords = setup()
            result = target(*arguments, **keywords)
        return result


def thunks_of(name: str, count: int, order: list[str]) -> list[Any]:
    return [lambda index=index: order.append(f"{name}{index}") for index in range(count)]


def test_every_contestant_runs_once_per_round_on_its_next_buffers() -> None:
    order: list[str] = []
    benchmark = FakeBenchmark([1.0])
    case = timing.Case("suite", "class", "shape")
    peers = {"peer": timing.Peer(thunks_of("peer", 3, order))}
    timing.race(benchmark, case, thunks_of("ours", 2, order), peers, budget=0.0)
    assert order[:4] == ["peer0", "ours0", "peer1", "ours1"]  # the warm-up: the same sets, whose results are compared
    assert order[4:10] == ["peer2", "ours1", "peer0", "ours0", "peer1", "ours1"]  # ours is a set behind
    assert len(order) == 2 * (2 + timing.MIN_ROUNDS)
    assert benchmark.extra_info["suite"] == "suite"
    assert len(benchmark.seconds) == timing.MIN_ROUNDS


@pytest.mark.parametrize("peers", [1, 2, 3, 4])
@pytest.mark.parametrize("more_sets", [0, 1, 2, 9])
def test_no_contestant_follows_on_the_set_of_the_one_before(peers: int, more_sets: int) -> None:
    order: list[str] = []
    benchmark = FakeBenchmark([1.0])
    contestants = peers + 1
    sets = timing.sets_for(benchmark, 4 * timing.last_level_cache_bytes(), contestants) + more_sets
    others = {f"peer {i}": timing.Peer(thunks_of("set ", sets, order)) for i in range(peers)}
    timing.race(benchmark, timing.Case("", "", ""), thunks_of("set ", sets, order), others, budget=0.0)
    measured = order[2 * contestants :]
    assert len(measured) == contestants * timing.MIN_ROUNDS
    assert all(len({*measured[i : i + contestants]}) == contestants for i in range(len(measured) - contestants + 1))


def test_a_long_first_round_does_not_size_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def compiles_once() -> None:
        clock[0] += 0.1 if clock[0] else 60.0

    benchmark = FakeBenchmark([0.1])
    timing.race(benchmark, timing.Case("", "", ""), [lambda: None], {"p": timing.Peer([compiles_once])}, budget=1.0)
    assert len(benchmark.seconds) == 9


def test_a_warm_probe_runs_before_it_is_timed() -> None:
    order: list[str] = []
    peers = {"probe": timing.Peer(thunks_of("probe", 1, order), flops=1.0, warm=True)}
    timing.race(FakeBenchmark([1.0]), timing.Case("", "", ""), thunks_of("ours", 1, order), peers, warm_rounds=1)
    assert order[:6] == ["probe0", "probe0", "ours0"] * 2


def test_differing_results_end_a_measured_run() -> None:
    peers = {"peer": timing.Peer([lambda: torch.zeros(2)], agrees=timing.agree(1e-3))}
    with pytest.raises(AssertionError, match="result 0"):
        timing.race(FakeBenchmark([1.0]), timing.Case("", "", ""), [lambda: torch.ones(2)], peers)


def test_ratios_are_formed_inside_a_round() -> None:
    case = timing.Case("suite", "class", "shape", flops=1e9)
    peers = {"peer": timing.Peer([]), "probe": timing.Peer([], flops=4e9)}
    # The machine slows down fourfold in the last two rounds; the ratio of every round is the same.
    row = timing.summary(
        case, [1.0, 1.0, 4.0, 4.0], peers, {"peer": [2.0, 2.0, 8.0, 8.0], "probe": [2.0, 2.0, 8.0, 8.0]}
    )
    assert row["peers"]["peer"]["times_ours"] == 2.0
    assert row["peers"]["peer"]["spread"] == (2.0, 2.0)
    assert row["peers"]["probe"]["share"] == pytest.approx(2.0 / 4.0)


def test_differing_results_fail() -> None:
    check = timing.agree(1e-3)
    a = torch.ones(4, 4)
    check(a, a + 1e-5)
    check([a, a], (a, a))
    with pytest.raises(AssertionError, match="result 1"):
        check([a, a], [a, 2 * a])
    with pytest.raises(AssertionError):
        check(torch.full((2,), float("nan")), torch.ones(2))


@pytest.mark.parametrize(("seconds", "expected"), [(10.0, 3), (1.0, 5), (0.1, 9), (1e-9, 31), (0.0, 31)])
def test_rounds_fit_the_budget_and_are_odd(seconds: float, expected: int) -> None:
    assert timing.rounds_for(seconds, budget=1.0) == expected


def test_buffers_outgrow_the_caches() -> None:
    cache = timing.last_level_cache_bytes()
    assert timing.rotation_count(cache) == 2
    assert timing.rotation_count(cache / 4) == 8
    assert timing.rotation_count(1) == 16


def test_geometric_mean() -> None:
    assert timing.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
