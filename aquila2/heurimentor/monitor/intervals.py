"""How sure a mean over held-out text is: Student's 95 % interval of a ratio of sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

NORMAL = 1.959963984540054  # the 97.5 % quantile of the normal distribution
FEW = {1: 12.7062, 2: 4.3027}


class Estimate(NamedTuple):
    """A mean, and half the width of its 95 % confidence interval (infinite where one record was all there was)."""

    mean: float
    half: float


def quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, to a thousandth; Cornish and Fisher's series in 1 / freedom.

    Raises:
        ValueError: freedom is less than 1.
    """
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}")
    if freedom in FEW:
        return FEW[freedom]
    z = NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """The mean per target over records that are drawn, each with its sum of losses and its targets.

    mean = sum(s) / sum(n); its variance R / (R - 1) sum((s - mean n)^2) / sum(n)^2 takes records as they come: what is
    alike within one makes no interval narrower.

    Args:
        sums: The loss of every record, summed over its targets.
        counts: The targets of every record; those without any are left out.
    """
    records = [(total, count) for total, count in zip(sums, counts, strict=True) if count]
    targets = sum(count for _, count in records)
    if not targets:
        return Estimate(math.nan, math.nan)
    mean = math.fsum(total for total, _ in records) / targets
    if len(records) < 2 or not math.isfinite(mean):
        return Estimate(mean, math.inf if math.isfinite(mean) else math.nan)
    spread = math.fsum((total - mean * count) ** 2 for total, count in records) * len(records) / (len(records) - 1)
    return Estimate(mean, quantile(len(records) - 1) * math.sqrt(spread) / targets)


def proportion(hits: int, count: int) -> Estimate:
    """A share of right answers, and how far the farther bound of Wilson's 95 % interval lies from it.

    Wilson's bounds are (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): unlike the normal ones they
    stay apart where all answers are right, or none.

    Raises:
        ValueError: There are no answers, or more right ones.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"hits must lie in [0, count] and count be at least 1, got {hits} and {count}")
    p, square = hits / count, NORMAL**2 / count
    middle = (p + square / 2) / (1 + square)
    half = NORMAL * math.sqrt(p * (1 - p) / count + square / (4 * count)) / (1 + square)
    return Estimate(p, abs(p - middle) + half)
