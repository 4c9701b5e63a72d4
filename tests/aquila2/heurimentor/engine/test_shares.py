"""Unequal ranks get unequal shares: the best split of whole rows, proposed when it pays and not before."""

from __future__ import annotations

import itertools

import pytest

from aquila2.heurimentor.engine.shares import STEPS, Shares, balanced


@pytest.mark.parametrize("count", [1, 3, 8, 11])
@pytest.mark.parametrize("paces", [[1.0, 1.0], [3.0, 1.0], [1.0, 2.5, 0.7], [5.0, 5.0, 0.1]])
def test_no_split_ends_sooner(count: int, paces: list[float]) -> None:
    def end(rows: tuple[int, ...]) -> float:
        return max(row / pace for row, pace in zip(rows, paces, strict=True))

    splits = [rows for rows in itertools.product(range(count + 1), repeat=len(paces)) if sum(rows) == count]
    chosen = balanced(count, paces)
    assert sum(chosen) == count
    assert end(tuple(chosen)) == pytest.approx(min(map(end, splits)))


def test_shares_follow_the_pace_of_ranks() -> None:
    shares, rows = Shares(), [8, 8]
    for step in range(40):
        # The second rank takes three times as long for a row.
        proposal = shares.proposed(rows, [rows[0] * 0.01, rows[1] * 0.03 + 0.001 * (step % 2)])
        assert proposal is None or step % STEPS == STEPS - 1
        rows = proposal or rows
    assert rows == [12, 4]


def test_small_gains_and_hiccups_change_nothing() -> None:
    shares = Shares()
    for step in range(40):
        assert shares.proposed([8, 8], [0.08, 0.083 if step % 8 else 5.0]) is None
    assert shares.proposed([16], [1.0]) is None
    for _ in range(20):  # a rank so slow that it would get nothing keeps its one row
        assert shares.proposed([3, 1], [0.01, 9.0]) is None
