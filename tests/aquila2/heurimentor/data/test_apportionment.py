"""Apportionment: exact shares, close at every place, reachable anywhere, and fair over changes of the weights."""

from __future__ import annotations

from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquila2.heurimentor.data.apportionment import UNITS, Apportionment, integer_weights

weights_lists = st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(any)


@given(weights=weights_lists, debts=st.data())
def test_shares_are_exact_and_every_question_has_the_same_answer(weights: list[int], debts: st.DataObject) -> None:
    total = sum(weights)
    owed = debts.draw(st.lists(st.integers(-2 * total, 2 * total), min_size=len(weights), max_size=len(weights)))
    shares = Apportionment(weights, owed)
    who, turn = shares.receivers(np.arange(2 * total + 3))
    counts = [0] * len(weights)
    for place, (receiver, number) in enumerate(zip(who.tolist(), turn.tolist(), strict=True)):
        assert shares.counts(place) == counts
        assert number == counts[receiver]
        assert shares.place_of(receiver, number) == place
        counts[receiver] += 1
        if place + 1 == total:
            assert counts == weights


@given(weights=weights_lists)
def test_counts_stay_close_to_the_shares(weights: list[int]) -> None:
    total = sum(weights)
    shares = Apportionment(weights)
    for place in range(total + 1):
        for weight, count in zip(weights, shares.counts(place), strict=True):
            assert abs(count - place * weight / total) <= max(shares.depth, 1) / 2
    assert shares.depth <= len(weights)


@given(
    shares=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e9), min_size=1).filter(
        lambda weights: any(weights.values())
    )
)
def test_integer_weights(shares: dict[str, float]) -> None:
    weights = integer_weights(shares)
    total = sum(shares.values())
    assert sum(weights.values()) == UNITS and list(weights) == list(shares)
    for name, weight in weights.items():
        assert (weight > 0) == (shares[name] > 0)
        assert abs(weight - shares[name] / total * UNITS) <= len(shares)


@given(places=st.lists(st.integers(0, 1 << 60), min_size=1, max_size=10))
def test_far_places(places: list[int]) -> None:
    weights = list(integer_weights({"a": 0.5, "b": 0.3, "c": 0.1999, "d": 0.0001}).values())
    shares = Apportionment(weights)
    who, turn = shares.receivers(places)
    for place, receiver, number in zip(places, who.tolist(), turn.tolist(), strict=True):
        assert shares.place_of(receiver, number) == place
        assert shares.counts(place)[receiver] == number


@settings(max_examples=60)
@given(
    spans=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.floats(0.001, 1), min_size=5, max_size=5)), min_size=1, max_size=60
    )
)
def test_debts_stay_small_however_often_the_weights_change(spans: list[tuple[int, list[float]]]) -> None:
    debts = [0] * 5
    for places, shares in spans:
        weights = list(integer_weights(dict(zip("abcde", shares, strict=True))).values())
        counts = Apportionment(weights, debts).counts(places)
        debts = [
            debt + places * weight - UNITS * count for debt, weight, count in zip(debts, weights, counts, strict=True)
        ]
        assert sum(debts) == 0
        assert max(abs(debt) for debt in debts) < 3 * UNITS


def test_a_small_domain_is_not_starved_by_frequent_changes() -> None:
    debts, got = [0, 0, 0], 0
    for change in range(1000):
        weights = list(integer_weights({"a": 0.6 + 0.1 * (change % 2), "b": 0.3, "rare": 0.001}).values())
        counts = Apportionment(weights, debts).counts(100)
        debts = [debt + 100 * w - UNITS * c for debt, w, c in zip(debts, weights, counts, strict=True)]
        got += counts[2]
    assert abs(got - 105) <= 2


def test_order_is_spread_and_not_in_runs() -> None:
    who, _ = Apportionment([3, 1]).receivers(np.arange(8))
    assert sorted(who[:4].tolist()) == [0, 0, 0, 1]
    half, _ = Apportionment(list(integer_weights({"a": 1, "b": 1}).values())).receivers(np.arange(100))
    assert set(np.abs(np.diff(half)).tolist()) == {1}
    primes = [n for n in range(2, 60) if all(n % d for d in range(2, isqrt(n) + 1))]
    shares = Apportionment(primes)
    who, _ = shares.receivers(np.arange(sum(primes)))
    for receiver, weight in enumerate(primes):
        gaps = np.diff(np.flatnonzero(who == receiver))
        assert weight == 1 or gaps.max() <= 4 * sum(primes) / weight


def test_orders_never_change_between_versions() -> None:
    who, _ = Apportionment([5, 3, 2]).receivers(np.arange(10))
    assert who.tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 0, 1]
    assert integer_weights({"a": 1, "b": 1, "c": 1}) == {"a": 357913942, "b": 357913941, "c": 357913941}


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": 0.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_wrong_weights(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        integer_weights(weights)
    with pytest.raises(ValueError, match="receiver 1 has no weight"):
        Apportionment([3, 0]).place_of(1, 0)
    with pytest.raises(ValueError, match="must not be negative and sum to"):
        Apportionment([0, 0])
