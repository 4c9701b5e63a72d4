"""The order of a run: from a global sample number to a row of a segment and back, as decisions have shaped it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aquila2.heurimentor.data.apportionment import UNITS, Apportionment
from aquila2.heurimentor.data.permutation import Permutation

I64 = npt.NDArray[np.int64]


class Draws(NamedTuple):
    """Which row each sample takes; four arrays (n,) int64.

    Attributes:
        samples: Global sample numbers.
        segments: Numbers of segments, in the order in which they were opened.
        draws: The how-manieth draw from the segment it is.
        rows: The row of the segment.
    """

    samples: I64
    segments: I64
    draws: I64
    rows: I64


@dataclass(frozen=True)
class OpenSegment:
    """A segment that a run draws from: its number in the run, domain, content id, folder and rows."""

    number: int
    domain: str
    id: str
    folder: str
    rows: int


@dataclass(frozen=True)
class _Phase:
    """A domain between two changes of its segments.

    From the domain's draw `first` on, segments first give what they owe of the running round, then whole rounds.
    """

    first: int
    members: tuple[int, ...]
    taken: tuple[int, ...]
    owed: tuple[int, ...]
    rows: tuple[int, ...]
    closed: Mapping[int, int]

    @property
    def debt(self) -> int:
        return sum(self.owed)

    def counts(self, draws: int) -> dict[int, int]:
        """How much each segment has given after `draws` draws of the phase."""
        if not self.members:
            return dict(self.closed)
        rest = draws - self.debt
        if rest < 0:
            given = _spread(self.owed).counts(draws)
        else:
            given = [owed + count for owed, count in zip(self.owed, _spread(self.rows).counts(rest), strict=True)]
        return {
            **self.closed,
            **{member: t + g for member, t, g in zip(self.members, self.taken, given, strict=True)},
        }

    def targets(self, draws: int) -> dict[int, int]:
        """Where each member stands at the end of the round that runs after `draws` draws."""
        rounds = max(-(-(draws - self.debt) // max(sum(self.rows), 1)), 0)
        ends = zip(self.members, self.taken, self.owed, self.rows, strict=True)
        return {member: taken + owed + rounds * rows for member, taken, owed, rows in ends}

    def receivers(self, draws: I64) -> tuple[I64, I64]:
        """The segment of each draw of the phase, and which draw of the segment it is."""
        who, turn = np.empty_like(draws), np.empty_like(draws)
        taken, owed = np.array(self.taken, dtype=np.int64), np.array(self.owed, dtype=np.int64)
        first = draws < self.debt
        if first.any():
            who[first], turn[first] = _spread(self.owed).receivers(draws[first])
        if not first.all():
            later, number = _spread(self.rows).receivers(draws[~first] - self.debt)
            who[~first], turn[~first] = later, number + owed[later]
        return np.array(self.members, dtype=np.int64)[who], turn + taken[who]

    def draw_of(self, segment: int, draw: int) -> int:
        """The domain's draw that is a segment's draw."""
        index = self.members.index(segment)
        turn = draw - self.taken[index]
        if turn < self.owed[index]:
            return self.first + _spread(self.owed).place_of(index, turn)
        return self.first + self.debt + _spread(self.rows).place_of(index, turn - self.owed[index])


@dataclass(frozen=True)
class _Span:
    """The samples between two mixtures: who shares them, what each domain had and was owed before."""

    first: int
    domains: tuple[str, ...]
    weights: tuple[int, ...]
    debts: tuple[int, ...]
    counts: Mapping[str, int]

    def shares(self) -> Apportionment:
        return _spread(self.weights, self.debts)

    def counts_after(self, samples: int) -> dict[str, int]:
        given = zip(self.domains, self.shares().counts(samples), strict=True)
        return {**self.counts, **{name: self.counts[name] + count for name, count in given}}


@lru_cache(maxsize=1024)
def _spread(weights: tuple[int, ...], debts: tuple[int, ...] | None = None) -> Apportionment:
    return Apportionment(weights, debts)


@lru_cache(maxsize=1024)
def _permutation(rows: int, seed: int, segment: str, epoch: int) -> Permutation:
    return Permutation(rows, "epoch", seed, segment, epoch)


@dataclass
class Schedule:
    """Maps samples to rows. Changes are made at the sample from which they hold; they never go back.

    Args:
        seed: Of all permutations.
    """

    seed: int
    segments: list[OpenSegment] = field(default_factory=list)
    skipped: list[tuple[int, int]] = field(default_factory=list)
    quarantined: dict[tuple[int, int], int] = field(default_factory=dict)
    _domains: dict[str, list[_Phase]] = field(default_factory=dict)
    _spans: list[_Span] = field(default_factory=list)

    def open(self, sample: int, domain: str, segment_id: str, folder: str, rows: int) -> OpenSegment:
        """From `sample` on, `domain` also draws from a segment of `rows` rows."""
        if rows < 1:
            raise ValueError(f"a segment must have at least one row, got {rows}")
        number = len(self.segments)
        draws = self._domain_counts(sample).get(domain, 0)
        self._change_members(domain, draws, add=(number, rows))
        self.segments.append(OpenSegment(number, domain, segment_id, folder, rows))
        return self.segments[-1]

    def close(self, sample: int, segment: int) -> None:
        """From `sample` on, nothing is drawn from a segment."""
        if not 0 <= segment < len(self.segments):
            raise ValueError(f"segment must lie in 0 .. {len(self.segments) - 1}, got {segment}")
        domain = self.segments[segment].domain
        members = self._domains[domain][-1].members
        if segment not in members:
            raise ValueError(f"segment {segment} is closed already")
        if members == (segment,) and self._spans and domain in self._spans[-1].domains:
            raise ValueError(f"segment {segment} is the last of the domain {domain!r}, which the mixture draws from")
        self._change_members(domain, self._domain_counts(sample).get(domain, 0), remove=segment)

    def mix(self, sample: int, weights: Mapping[str, int]) -> None:
        """From `sample` on, domains share the samples by integer weights that sum to 2^30."""
        chosen = {name: weight for name, weight in weights.items() if weight}
        if sum(chosen.values()) != UNITS or min(chosen.values()) < 0:
            raise ValueError(f"weights must be positive integers that sum to 2^30, got {dict(weights)}")
        for name in chosen:
            if name not in self._domains or not self._domains[name][-1].members:
                raise ValueError(f"the domain {name!r} has no open segment")
        counts, debts = self._domain_counts(sample), dict.fromkeys(chosen, 0)
        if self._spans:
            span = self._spans[-1]
            length = sample - span.first
            for name, weight, debt in zip(span.domains, span.weights, span.debts, strict=True):
                if name in chosen:
                    debts[name] = debt + length * weight - UNITS * (counts[name] - span.counts[name])
            if not length:
                self._spans.pop()
        before = {**dict.fromkeys(self._domains, 0), **counts}
        self._spans.append(_Span(sample, tuple(chosen), tuple(chosen.values()), tuple(debts.values()), before))

    def skip(self, sample: int, count: int) -> None:
        """The samples from `sample` on, `count` of them, are drawn and not trained."""
        if count < 1:
            raise ValueError(f"skip must be at least 1 sample, got {count}")
        self._span_at(sample)
        self.skipped.append((sample, count))

    def quarantine(self, sample: int, segment: int, documents: list[int]) -> None:
        """From `sample` on, documents of a segment do not count where they are drawn."""
        if not 0 <= segment < len(self.segments):
            raise ValueError(f"segment must lie in 0 .. {len(self.segments) - 1}, got {segment}")
        for document in documents:
            self.quarantined.setdefault((segment, document), sample)

    def draws(self, first: int, count: int) -> Draws:
        """The rows of the samples [first, first + count)."""
        samples = np.arange(first, first + count, dtype=np.int64)
        segments, draws = np.empty_like(samples), np.empty_like(samples)
        done = 0
        while done < count:
            index = self._span_at(first + done)
            span = self._spans[index]
            stop = self._spans[index + 1].first if index + 1 < len(self._spans) else first + count
            part = slice(done, min(stop - first, count))
            who, turn = span.shares().receivers(samples[part] - span.first)
            for place, domain in enumerate(span.domains):
                mine = np.flatnonzero(who == place)
                if len(mine):
                    taken = self._domain_draws(domain, turn[mine] + span.counts[domain])
                    segments[part.start + mine], draws[part.start + mine] = taken
            done = part.stop
        return Draws(samples, segments, draws, self.rows(segments, draws))

    def rows(self, segments: I64, draws: I64) -> I64:
        """The rows that draws from segments give."""
        rows = np.empty_like(draws)
        for number in np.unique(segments).tolist():
            segment = self.segments[number]
            mine = np.flatnonzero(segments == number)
            epochs, places = draws[mine] // segment.rows, draws[mine] % segment.rows
            for epoch in np.unique(epochs).tolist():
                chosen = epochs == epoch
                permutation = self.permutation(number, epoch)
                rows[mine[chosen]] = permutation.forward(places[chosen])
        return rows

    def permutation(self, segment: int, epoch: int) -> Permutation:
        """The order of a segment's rows in an epoch."""
        info = self.segments[segment]
        return _permutation(info.rows, self.seed, f"{segment}:{info.id}", epoch)

    def counts(self, sample: int) -> list[int]:
        """Draws from each segment among the samples [0, sample): the state of the data, one integer per segment."""
        result = [0] * len(self.segments)
        for domain, draws in self._domain_counts(sample).items():
            phase = self._phase_at(domain, draws)
            if phase is not None:
                for number, count in phase.counts(draws - phase.first).items():
                    result[number] = count
        return result

    def sample_of(self, segment: int, draw: int) -> int | None:
        """The sample that takes a segment's draw; None where the present mixture never comes to it."""
        domain = self.segments[segment].domain
        wanted = None
        phases = self._domains[domain]
        for index, phase in enumerate(phases):
            if segment not in phase.members:
                continue
            end = phases[index + 1].counts(0)[segment] if index + 1 < len(phases) else None
            if end is None or draw < end:
                wanted = phase.draw_of(segment, draw)
                break
        if wanted is None:
            return None
        for index, span in enumerate(self._spans):
            if domain not in span.domains:
                continue
            end = self._spans[index + 1].counts[domain] if index + 1 < len(self._spans) else None
            if end is None or wanted < end:
                turn = wanted - span.counts.get(domain, 0)
                return span.first + span.shares().place_of(span.domains.index(domain), turn)
        return None

    def is_skipped(self, sample: int) -> bool:
        """Whether a sample is drawn and not trained."""
        return any(first <= sample < first + count for first, count in self.skipped)

    def _change_members(
        self, domain: str, draws: int, add: tuple[int, int] | None = None, remove: int | None = None
    ) -> None:
        phases = self._domains.setdefault(domain, [])
        taken: dict[int, int] = {}
        owed: dict[int, int] = {}
        rows: dict[int, int] = {}
        closed: dict[int, int] = {}
        if phases:
            last = phases[-1]
            counts, targets = last.counts(draws - last.first), last.targets(draws - last.first)
            closed = dict(last.closed)
            for member, size in zip(last.members, last.rows, strict=True):
                if member == remove:
                    closed[member] = counts[member]
                    continue
                taken[member], owed[member], rows[member] = counts[member], targets[member] - counts[member], size
            if last.first == draws:
                phases.pop()
        if add is not None:
            taken[add[0]], owed[add[0]], rows[add[0]] = 0, add[1], add[1]
        phases.append(
            _Phase(draws, tuple(taken), tuple(taken.values()), tuple(owed.values()), tuple(rows.values()), closed)
        )

    def _domain_counts(self, sample: int) -> dict[str, int]:
        if not self._spans or sample < self._spans[0].first:
            return dict.fromkeys(self._domains, 0)
        span = self._spans[self._span_at(sample)]
        return span.counts_after(sample - span.first)

    def _span_at(self, sample: int) -> int:
        index = bisect_right(self._spans, sample, key=lambda span: span.first) - 1
        if index < 0:
            raise ValueError(f"no mixture holds at sample {sample}")
        return index

    def _phase_at(self, domain: str, draws: int) -> _Phase | None:
        phases = self._domains[domain]
        index = bisect_right(phases, draws, key=lambda phase: phase.first) - 1
        return phases[index] if index >= 0 else None

    def _domain_draws(self, domain: str, draws: I64) -> tuple[I64, I64]:
        phases = self._domains[domain]
        firsts = np.array([phase.first for phase in phases], dtype=np.int64)
        index = np.searchsorted(firsts, draws, side="right") - 1
        segments, numbers = np.empty_like(draws), np.empty_like(draws)
        for i in np.unique(index).tolist():
            mine = index == i
            segments[mine], numbers[mine] = phases[i].receivers(draws[mine] - phases[i].first)
        return segments, numbers
