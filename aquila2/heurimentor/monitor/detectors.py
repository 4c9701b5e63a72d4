"""What is wrong with a curve: pure functions from histories to a sentence, or to nothing.

Each looks at the newest point of a history, so that a monitor asks after every step or measurement. Medians and scaled
median deviations take the place of means and standard deviations, which one outlier would spoil.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

WINDOW, FEWEST = 64, 16
SIGMAS = 6.0
PATIENCE = 4
SCALE = 1.4826  # makes the median deviation of a normal distribution its standard deviation
SMALLEST_SPREAD = 1e-3  # of the median: a flat curve has none


def middle_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and scaled median deviation from it, of the finite values; the spread is never 0."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, math.inf
    middle = statistics.median(finite)
    spread = SCALE * statistics.median(abs(value - middle) for value in finite)
    return middle, max(spread, SMALLEST_SPREAD * abs(middle), 1e-12)


def noise(values: Sequence[float]) -> float:
    """The standard deviation of values around a curve that changes slowly, from their successive differences."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return math.inf
    steps = [abs(after - before) for before, after in pairwise(finite)]
    return max(SCALE * statistics.median(steps) / math.sqrt(2), SMALLEST_SPREAD * abs(finite[-1]), 1e-12)


def not_finite(name: str, value: float) -> str | None:
    """A value that is NaN or infinite."""
    return None if math.isfinite(value) else f"the {name} is {value}"


def spike(name: str, history: Sequence[float], window: int = WINDOW, sigmas: float = SIGMAS) -> str | None:
    """The newest value stands more than `sigmas` standard deviations above the values just before it.

    Their median is that of the last few, their noise that of `window` of them: a curve that falls fast is no noise.
    """
    before, newest = history[-window - 1 : -1], history[-1]
    if len(before) < FEWEST or not math.isfinite(newest):
        return None
    middle, deviation = middle_and_spread(before[-FEWEST:])[0], noise(before)
    distance = (newest - middle) / deviation
    if distance <= sigmas:
        return None
    return f"the {name} jumps to {newest:.4g}, {distance:.0f} deviations above the {middle:.4g} of the steps before"


def calmest(history: Sequence[float], window: int = WINDOW) -> tuple[float, float, int]:
    """Of the windows before the last `window` values the one of the lowest median: that, its spread, where it ends."""
    ends = range(window, len(history) - window + 1, window)
    return min((*middle_and_spread(history[end - window : end]), end) for end in ends)


def divergence(history: Sequence[float], window: int = WINDOW, sigmas: float = SIGMAS / 2) -> str | None:
    """The median of the last `window` losses stands above the lowest of any window in `history`, well beyond noise."""
    if len(history) < 3 * window:
        return None
    now, spread = middle_and_spread(history[-window:])
    lowest, calm, _ = calmest(history, window)
    # The median of a window is surer than its values by about the root of their number.
    if not math.isfinite(now) or now - lowest <= max(sigmas * max(spread, calm) / math.sqrt(window) * 2, 0.02 * lowest):
        return None
    return f"the loss rises: {now:.4g} in the last {window} steps, {lowest:.4g} at its lowest"


def plateau(heldout: Sequence[float], patience: int = PATIENCE, gain: float = 0.005) -> str | None:
    """The last `patience` held-out losses are no better than the best before them by the share `gain`."""
    if len(heldout) <= patience:
        return None
    best, recent = min(heldout[:-patience]), min(heldout[-patience:])
    if recent <= best * (1 - gain):
        return None
    return f"the held-out loss stays: {recent:.4g} at best in {patience} measurements, {best:.4g} before them"


def stuck_domains(
    heldout: Mapping[str, Sequence[float]], patience: int = PATIENCE, share: float = 0.1, least: float = 0.01
) -> dict[str, str]:
    """Domains that gain less than `share` of the others' median gain over `patience` measurements.

    Where the others gain less than `least` of their loss, it is a plateau of all, and nobody is stuck.
    """
    gains = {
        domain: 1 - history[-1] / history[-1 - patience]
        for domain, history in heldout.items()
        if len(history) > patience and history[-1 - patience] > 0
    }
    found = {}
    for domain, gain in gains.items():
        others = [other for name, other in gains.items() if name != domain]
        usual = statistics.median(others) if others else 0.0
        if usual >= least and gain < share * usual:
            found[domain] = f"{domain} is stuck: it gains {gain:.1%} where the others gain {usual:.1%}"
    return found


def overfit(
    domain: str, history: Sequence[float], epochs: float, patience: int = PATIENCE, rise: float = 0.01
) -> str | None:
    """A domain that is past its first epoch: its last `patience` held-out losses all exceed its best by `rise`."""
    if epochs < 1 or len(history) <= patience:
        return None
    best = min(history[:-patience])
    if min(history[-patience:]) <= best * (1 + rise):
        return None
    return f"{domain} is learnt by heart: held out {history[-1]:.4g} after {epochs:.1f} epochs, {best:.4g} at its best"


def straggler(busy: Sequence[Sequence[float]], rows: Sequence[int], factor: float = 1.5) -> tuple[int, str] | None:
    """The rank whose seconds per row, by the median of several steps, are `factor` times those of the other ranks.

    Args:
        busy: Per step, the seconds of every rank's own passes.
        rows: The rows of every rank in a step; a rank without any is left out.
        factor: From which on it is one.
    """
    ranks = [rank for rank, count in enumerate(rows) if count]
    if len(busy) < FEWEST or len(ranks) < 2:
        return None
    paces = {rank: statistics.median(step[rank] for step in busy) / rows[rank] for rank in ranks}
    slowest = max(paces, key=lambda rank: paces[rank])
    usual = statistics.median(pace for rank, pace in paces.items() if rank != slowest)
    if usual <= 0 or paces[slowest] < factor * usual:
        return None
    return slowest, f"rank {slowest} takes {paces[slowest] / usual:.1f} times as long for a row as the others"


def data_stall(waits: Sequence[float], seconds: Sequence[float], share: float = 0.1) -> str | None:
    """Steps wait for data for more than `share` of their time."""
    if len(waits) < FEWEST or sum(seconds) <= 0:
        return None
    part = sum(waits) / sum(seconds)
    return f"steps wait for data for {part:.0%} of their time" if part > share else None


def no_better(before: Mapping[str, float], after: Mapping[str, float], names: tuple[str, str]) -> str | None:
    """A successor whose losses, over all domains of its predecessor, have not become smaller in the mean."""
    common = [domain for domain in before if domain in after and domain != "all"]
    if not common:
        return None
    old, new = (statistics.fmean(losses[domain] for domain in common) for losses in (before, after))
    if new < old:
        return None
    return f"{names[1]} is no better than {names[0]}: held out {new:.4g}, {old:.4g} before"


def no_wiser(before: Mapping[str, float], after: Mapping[str, float], names: tuple[str, str]) -> str | None:
    """A successor that answers no more questions right, in the mean over all probes of its predecessor."""
    common = [probe for probe in before if probe in after]
    if not common:
        return None
    old, new = (statistics.fmean(shares[probe] for probe in common) for shares in (before, after))
    if new > old:
        return None
    return f"{names[1]} answers no better than {names[0]}: {new:.1%} right, {old:.1%} before"
