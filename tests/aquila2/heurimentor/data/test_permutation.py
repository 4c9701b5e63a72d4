"""Keyed permutations: bijections of every size, undone by their inverses, without a pattern that statistics see."""

from __future__ import annotations

from collections import Counter
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aquila2.heurimentor.data.permutation import MAX_SIZE, Permutation


@given(size=st.integers(1, 3000), key=st.integers())
def test_it_is_a_bijection_and_its_inverse_undoes_it(size: int, key: int) -> None:
    permutation = Permutation(size, key)
    rows = permutation.forward(np.arange(size))
    assert np.array_equal(np.sort(rows), np.arange(size))
    assert np.array_equal(permutation.inverse(rows), np.arange(size))


@given(size=st.integers(1, MAX_SIZE), key=st.integers(), data=st.data())
def test_large_sizes_go_there_and_back(size: int, key: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    permutation = Permutation(size, key, "train")
    rows = permutation.forward(places)
    assert rows.min() >= 0 and rows.max() < size and len(set(rows.tolist())) == len(places)
    assert permutation.inverse(rows).tolist() == places
    assert permutation.forward(places[:1])[0] == rows[0]


def test_every_order_of_few_places_occurs_equally_often() -> None:
    for size, draws in ((2, 300), (3, 300), (4, 700), (5, 2000)):
        orders = Counter(tuple(Permutation(size, "few", key).forward(np.arange(size))) for key in range(draws))
        expected = draws / factorial(size)
        chi = sum((count - expected) ** 2 / expected for count in orders.values())
        freedom = factorial(size) - 1
        assert len(orders) == factorial(size)
        assert chi < freedom + 5 * (2 * freedom) ** 0.5, (size, chi)


def test_a_large_order_has_no_pattern() -> None:
    size = 100_003
    rows = Permutation(size, "large", 1).forward(np.arange(size)).astype(np.float64)
    spread = 1 / np.sqrt(size)
    for lag in (1, 2, 3, 316, 317, 1000):
        assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < 5 * spread
    assert abs(np.corrcoef(rows, np.arange(size))[0, 1]) < 5 * spread
    # Each tenth of the order holds a fair share of each tenth of the rows.
    table, _, _ = np.histogram2d(np.arange(size), rows, bins=10)
    chi = ((table - size / 100) ** 2 / (size / 100)).sum()
    assert chi < 81 + 5 * (2 * 81) ** 0.5
    other = Permutation(size, "large", 2).forward(np.arange(size)).astype(np.float64)
    assert abs(np.corrcoef(rows, other)[0, 1]) < 5 * spread
    assert (rows == other).sum() < 10
    assert (rows == np.arange(size)).sum() < 10


def test_key_parts_are_told_apart() -> None:
    orders = [
        Permutation(1000, *key).forward(np.arange(1000)) for key in (("ab", "c"), ("a", "bc"), ("abc",), (1, "1"))
    ]
    assert len({order.tobytes() for order in orders}) == 4


def test_orders_never_change_between_versions() -> None:
    assert Permutation(10, "golden", 7).forward(np.arange(10)).tolist() == [0, 8, 9, 3, 6, 5, 2, 7, 4, 1]
    assert Permutation(1 << 40, "golden", 7).forward([0, 1, 12345]).tolist() == [
        115872783681,
        1088317352979,
        68685139869,
    ]


def test_wrong_sizes_and_places() -> None:
    for size in (0, MAX_SIZE + 1):
        with pytest.raises(ValueError, match=f"size must lie in 1 .. 2\\^48, got {size}"):
            Permutation(size)
    for place in (-1, 5):
        with pytest.raises(ValueError, match=r"values must lie in 0 \.\. 4"):
            Permutation(5).forward([place])
    assert Permutation(5).forward([]).tolist() == []
