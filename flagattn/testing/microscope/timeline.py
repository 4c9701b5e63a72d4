"""A recording laid out in time.

There is no clock, so time is counted in steps. In steps of its own ("steps") a warp takes one for each instruction that
went through a wrapper, and goes on after a barrier when the last warp has come, as if every warp had an issue slot to
itself. In the order of the runner ("order") each step is one event of one warp: that is what was really run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

from flagattn.testing.microscope.recording import Event, Recording

GROUPS = {
    "matrix_product": "matrix",
    "matrix_load": "matrix",
    "matrix_store": "matrix",
    "special_function": "math",
    "shuffle": "math",
    "vote": "math",
    "async_copy": "copy",
    "bulk_copy": "copy",
    "copy_commit": "copy",
    "copy_wait": "copy",
    "shared_load": "memory",
    "shared_store": "memory",
    "global_load": "memory",
    "global_store": "memory",
    "atomic": "memory",
    "barrier": "wait",
}
CLOCKS = ("steps", "order")


@dataclass
class Span:
    """Neighbouring events of one group, or the time a warp spends at a barrier."""

    warp: int
    group: str
    begin: int
    end: int
    kinds: Counter[str]
    bytes: int = 0
    bank_conflicts: int = 0
    label: str = ""


@dataclass
class Phase:
    """One use of a barrier of the block: who came first, and when everybody was there."""

    which: int
    number: int
    first: int
    end: int
    warps: int

    @property
    def name(self) -> str:
        return f"barrier {self.which}" if self.which < 16 else f"mbarrier 0x{self.which:x}"


@dataclass
class Flight:
    """A group of asynchronous copies, from the first warp's first copy to the wait that needs the last one."""

    group: int
    begin: int
    end: int
    copies: int = 0
    bytes: int = 0
    landed: bool = False


class Timeline:
    """Where the events of `recording` stand by `clock`: "steps" or "order"."""

    def __init__(self, recording: Recording, clock: str = "steps") -> None:
        if clock not in CLOCKS:
            raise ValueError(f"clock is {clock!r}; it is one of {', '.join(CLOCKS)}")
        self.recording = recording
        self.clock = clock
        self.times: list[list[int]] = [[0] * len(events) for events in recording.warps]
        self.phases: list[Phase] = []
        self._lay_out()

    def _lay_out(self) -> None:
        events = [(e.order, warp, i, e) for warp, es in enumerate(self.recording.warps) for i, e in enumerate(es)]
        clocks = [0] * len(self.recording.warps)
        waits_for: list[tuple[int, int] | None] = [None] * len(clocks)
        arrivals: dict[tuple[int, int], list[int]] = defaultdict(list)
        for order, warp, index, event in sorted(events, key=lambda entry: entry[0]):
            awaited = waits_for[warp]
            if awaited is not None and arrivals[awaited]:
                clocks[warp] = max(clocks[warp], max(arrivals[awaited]) + 1)
            waits_for[warp] = None
            time = order if self.clock == "order" else clocks[warp]
            self.times[warp][index] = time
            clocks[warp] = time + 1
            if event.is_block_barrier:
                key = (event.which, event.phase)
                arrivals[key].append(time)
                waits_for[warp] = key if event.waits else None
        self.phases = sorted(
            (Phase(*key, min(times), max(times) + 1, len(times)) for key, times in arrivals.items() if times),
            key=lambda phase: (phase.end, phase.which),
        )

    @cached_property
    def length(self) -> int:
        return max((times[-1] + 1 for times in self.times if times), default=1)

    def _leaves(self, warp: int, index: int) -> int:
        """When the warp goes on after the event: later than the next step only where it waits."""
        event, time = self.recording.warps[warp][index], self.times[warp][index]
        if not (event.is_block_barrier and event.waits):
            return time + 1
        ends = self._ends.get((event.which, event.phase), time + 1)
        return max(time + 1, ends)

    @cached_property
    def _ends(self) -> dict[tuple[int, int], int]:
        return {(phase.which, phase.number): phase.end for phase in self.phases}

    @cached_property
    def spans(self) -> list[Span]:
        spans: list[Span] = []
        for warp, events in enumerate(self.recording.warps):
            open_span: Span | None = None
            for index, event in enumerate(events):
                begin, end = self.times[warp][index], self._leaves(warp, index)
                group = GROUPS[event.kind]
                if event.kind == "barrier" and not event.is_block_barrier:
                    group = open_span.group if open_span else "memory"  # bar.warp.sync holds no one up
                joins = open_span is not None and open_span.group == group != "wait" and open_span.end == begin
                if not joins:
                    open_span = Span(warp, group, begin, end, Counter())
                    spans.append(open_span)
                assert open_span is not None
                self._add(open_span, event, end)
        return spans

    def _add(self, span: Span, event: Event, end: int) -> None:
        span.end = end
        span.kinds[event.kind] += 1
        span.bytes += event.bytes
        span.bank_conflicts += event.bank_conflicts
        if event.is_block_barrier:
            where = f"barrier {event.which}" if event.which < 16 else f"mbarrier 0x{event.which:x}"
            span.label = f"{'waits at' if event.waits else 'arrives at'} {where}, phase {event.phase}"

    @cached_property
    def _spans_of(self) -> list[list[int]]:
        begins: list[list[int]] = [[] for _ in self.recording.warps]
        for span in self.spans:
            begins[span.warp].append(span.begin)
        return begins

    def span_at(self, warp: int, step: int) -> int:
        """Where the warp's span that holds the step begins."""
        begins = self._spans_of[warp]
        return begins[max(bisect_right(begins, step) - 1, 0)] if begins else 0

    @cached_property
    def flights(self) -> list[Flight]:
        """Groups of cp.async by their number, all warps' together; empty groups are left out."""
        flights: dict[int, Flight] = {}
        for warp, events in enumerate(self.recording.warps):
            first, copies, amount = 0, 0, 0
            waiting: list[int] = []
            for index, event in enumerate(events):
                time = self.times[warp][index]
                if event.kind == "async_copy":
                    first = time if copies == 0 else first
                    copies, amount = copies + 1, amount + event.bytes
                elif event.kind == "copy_commit":
                    if copies > 0:
                        flight = flights.setdefault(event.which, Flight(event.which, first, time + 1))
                        flight.begin = min(flight.begin, first)
                        flight.copies += copies
                        flight.bytes += amount
                        waiting.append(event.which)
                    copies, amount = 0, 0
                elif event.kind == "copy_wait":
                    for group in [group for group in waiting if group < event.which]:
                        flights[group].end = max(flights[group].end, time + 1)
                        flights[group].landed = True
                        waiting.remove(group)
            for group in waiting:
                flights[group].end, flights[group].landed = self.length, False
        return sorted(flights.values(), key=lambda flight: flight.begin)

    def busy(self, group: str) -> list[int]:
        """How many warps do work of that group, per step."""
        changes = [0] * (self.length + 1)
        for span in self.spans:
            if span.group == group:
                changes[span.begin] += 1
                changes[span.end] -= 1
        return _sums(changes)

    def in_flight(self) -> list[int]:
        """How many groups of copies are under way, per step."""
        changes = [0] * (self.length + 1)
        for flight in self.flights:
            changes[flight.begin] += 1
            changes[min(flight.end, self.length)] -= 1
        return _sums(changes)

    @cached_property
    def facts(self) -> dict[str, int]:
        """What the picture shows, in numbers."""
        recording = self.recording
        matrix, math, copies = self.busy("matrix"), self.busy("math"), self.in_flight()
        return {
            "steps": self.length,
            "barrier phases": len(self.phases),
            "copies committed": sum(flight.copies for flight in self.flights),
            "copies waited for": sum(flight.copies for flight in self.flights if flight.landed),
            "matrix products": recording.count("matrix_product"),
            "matrix loads": recording.count("matrix_load"),
            "special functions": recording.count("special_function"),
            "bank conflicts": recording.sum("bank_conflicts"),
            "races": len(recording.races),
            "steps with matrix work": sum(m > 0 for m in matrix),
            "of these beside math of other warps": sum(m > 0 and s > 0 for m, s in zip(matrix, math)),
            "of these beside copies in flight": sum(m > 0 and c > 0 for m, c in zip(matrix, copies)),
        }


def _sums(changes: list[int]) -> list[int]:
    sums, level = [], 0
    for change in changes[:-1]:
        level += change
        sums.append(level)
    return sums
