"""How ranks of unequal speed share a step, so that all end at about the same time."""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Sequence

STEPS = 8  # measured before shares change
GAIN = 0.05  # of a step's time; less is not worth a change


def balanced(count: int, paces: Sequence[float]) -> list[int]:
    """Rows per rank that make the slowest rank end soonest: each row goes where it is done first.

    Args:
        count: Rows of a step.
        paces: Rows per second of every rank, positive.
    """
    rows = [0] * len(paces)
    ends = [(1 / pace, rank) for rank, pace in enumerate(paces)]
    heapq.heapify(ends)
    for _ in range(count):
        _, rank = ends[0]
        rows[rank] += 1
        heapq.heapreplace(ends, ((rows[rank] + 1) / paces[rank], rank))
    return rows


class Shares:
    """Watches how fast ranks are and proposes other shares where a step would end sooner by a twentieth."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._busy: deque[Sequence[float]] = deque(maxlen=STEPS)

    def proposed(self, rows: Sequence[int], busy: Sequence[float]) -> list[int] | None:
        """Takes the rows and the seconds of every rank in a step; returns other rows of as many in all, or None."""
        if list(rows) != self._rows:
            self._rows = list(rows)
            self._busy.clear()
        self._busy.append(busy)
        if len(self._busy) < STEPS or len(rows) < 2 or min(rows) < 1:
            return None
        seconds = [statistics.median(step[rank] for step in self._busy) for rank in range(len(rows))]
        if min(seconds) <= 0:
            return None
        paces = [count / time for count, time in zip(rows, seconds, strict=True)]
        wanted = balanced(sum(rows), paces)
        # A rank without a row would have no pace to return with.
        if min(wanted) < 1:
            return None
        expected = max(count / pace for count, pace in zip(wanted, paces, strict=True))
        return wanted if expected < (1 - GAIN) * max(seconds) else None
