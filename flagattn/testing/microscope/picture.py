"""Draws a timeline as one SVG: warps, barrier phases, copies in flight, what overlaps, bank conflicts, races."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from flagattn.testing.microscope.recording import Access, Race
from flagattn.testing.microscope.timeline import Flight, Span, Timeline

LABELS = 128  # width of the column of names
MARGIN = 18  # right of the last step
GAP = 22  # between tracks
MOST_RACES = 24  # drawn
GROUP_NAMES = {
    "matrix": "matrix work",
    "math": "special functions, exchanges",
    "copy": "cp.async",
    "memory": "loads and stores",
    "wait": "waiting at a barrier",
}
KIND_NAMES = {
    "matrix_product": "mma",
    "matrix_load": "ldmatrix",
    "matrix_store": "stmatrix",
    "special_function": "special functions",
    "async_copy": "cp.async",
    "copy_commit": "commit_group",
    "copy_wait": "wait_group",
    "barrier": "barrier",
}
STYLE = """
.microscope{--ink:#1f2430;--soft:#6b7280;--line:#d9dde4;--lane:#f3f5f8;--paper:#fff;--matrix:#3569c9;--math:#e0862a;
--copy:#1f9a8a;--memory:#8a63c9;--wait:#aab2bf;--alarm:#d12f45;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.microscope{--ink:#e6e8ec;--soft:#9aa3b2;--line:#39404d;--lane:#232833;
--paper:#171b22;--matrix:#6d9bf1;--math:#f0a556;--copy:#43c6b3;--memory:#b195ea;--wait:#5a6473;--alarm:#ff6b7d}}
.microscope text{fill:var(--ink)}.microscope .soft{fill:var(--soft)}
.microscope .paper{fill:var(--paper)}.microscope .lane{fill:var(--lane)}
.microscope .matrix{fill:var(--matrix)}.microscope .math{fill:var(--math)}.microscope .copy{fill:var(--copy)}
.microscope .memory{fill:var(--memory)}.microscope .wait{fill:var(--wait);fill-opacity:.55}
.microscope .flight{fill:var(--copy);fill-opacity:.75}.microscope .lost{fill:var(--alarm);fill-opacity:.6}
.microscope .phase{stroke:var(--soft);stroke-dasharray:2 3;vector-effect:non-scaling-stroke}
.microscope .tick{stroke:var(--line);vector-effect:non-scaling-stroke}
.microscope .conflict{fill:var(--alarm)}
.microscope .race{stroke:var(--alarm);stroke-width:1.5;stroke-opacity:.75;fill:none;vector-effect:non-scaling-stroke}
.microscope .spot{fill:var(--alarm);stroke:var(--paper);stroke-width:1}
.microscope .number{fill:var(--paper);font-weight:600}
.microscope .area{fill-opacity:.35;stroke-width:1;vector-effect:non-scaling-stroke}
.microscope .area.matrix{stroke:var(--matrix)}.microscope .area.math{stroke:var(--math)}
.microscope .area.copy{stroke:var(--copy)}
"""


def picture(timeline: Timeline, width: int = 1200) -> str:
    """One SVG that needs nothing else; `width` is in pixels."""
    return _Drawing(timeline, width).svg()


def describe(span: Span) -> str:
    """A span in words."""
    parts = [f"warp {span.warp}, steps {span.begin} to {span.end}", span.label or GROUP_NAMES[span.group]]
    if span.group != "wait":
        parts += [f"{number} {KIND_NAMES.get(kind, kind.replace('_', ' '))}" for kind, number in span.kinds.items()]
    if span.bytes:
        parts.append(f"{span.bytes} bytes")
    if span.bank_conflicts:
        parts.append(f"{span.bank_conflicts} passes more for bank conflicts")
    return "\n".join(parts)


def describe_race(race: Race, timeline: Timeline) -> str:
    """Who meets whom, in words."""

    def side(access: Access) -> str:
        events = timeline.recording.warps[access.warp]
        kind = events[access.event].kind if access.event < len(events) else "an access"
        does = "writes" if access.writes else "reads"
        by = "the copy engine" if access.by_engine else KIND_NAMES.get(kind, kind.replace("_", " "))
        return f"warp {access.warp}, lane {access.lane}: {by} {does}, step {time_of(access, timeline)}"

    return (
        f"race at byte {race.offset} of shared memory\n{side(race.first)}\n{side(race.second)}\nnothing orders the two"
    )


def time_of(access: Access, timeline: Timeline) -> int:
    """The step of the access; of one that the runner stopped, the warp's last."""
    times = timeline.times[access.warp]
    return times[min(access.event, len(times) - 1)] if times else 0


class _Drawing:
    def __init__(self, timeline: Timeline, width: int) -> None:
        self.timeline = timeline
        self.width = width
        self.scale = (width - LABELS - MARGIN) / timeline.length
        self.lane = 26 if len(timeline.recording.warps) <= 8 else 14
        self.y = 30.0
        self.shapes: list[str] = []  # whose x counts steps
        self.words: list[str] = []  # placed by step, but never stretched
        self.names: list[str] = []

    def svg(self) -> str:
        lanes = self._lanes()
        self._copies()
        for group, name in (("matrix", "warps multiplying"), ("math", "warps in math"), ("copy", "copies in flight")):
            levels = self.timeline.in_flight() if group == "copy" else self.timeline.busy(group)
            self._area(group, name, levels)
        bottom = self.y
        self._phases(bottom)
        self._axis(bottom)
        self._races(lanes)
        height = bottom + 26
        return (
            f'<svg class="microscope" xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{height:.0f}" '
            f'viewBox="0 0 {self.width} {height:.0f}" data-length="{self.timeline.length}" data-labels="{LABELS}" '
            f'role="img"><style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>'
            f'<g class="steps" transform="translate({LABELS} 0) scale({self.scale:.6f} 1)">{"".join(self.shapes)}</g>'
            f'<g class="words">{"".join(self.words)}</g>'
            f'<g class="names"><rect class="paper" width="{LABELS - 6}" height="100%"/>{"".join(self.names)}</g></svg>'
        )

    # ---- Tracks, from top to bottom

    def _lanes(self) -> Callable[[int], float]:
        top = self.y
        pitch = self.lane + 4
        for warp in range(len(self.timeline.recording.warps)):
            y = top + warp * pitch
            self._name(f"warp {warp}", y + self.lane / 2)
            self._rect("lane", 0, self.timeline.length, y, self.lane, "")
        for span in self.timeline.spans:
            y = top + span.warp * pitch
            self._rect(span.group, span.begin, span.end, y, self.lane, describe(span))
            if span.bank_conflicts:
                self._rect("conflict", span.begin, span.end, y + self.lane - 4, 4, describe(span))
        self.y = top + len(self.timeline.recording.warps) * pitch + GAP
        return lambda warp: top + warp * pitch + self.lane / 2

    def _copies(self) -> None:
        rows: list[int] = []  # when each is free again
        height, pitch = 12, 15
        top = self.y
        for flight in self.timeline.flights:
            row = next((i for i, free in enumerate(rows) if free <= flight.begin), len(rows))
            rows[row : row + 1] = [flight.end]
            kind = "flight" if flight.landed else "lost"
            self._rect(kind, flight.begin, flight.end, top + row * pitch, height, _describe_flight(flight))
            if (flight.end - flight.begin) * self.scale > 24:
                self._word(flight.begin, top + row * pitch + 9.5, f"\u2009{flight.group}", "number", "start")
        if rows:
            self._name("copy groups", top + height / 2)
            self.y = top + len(rows) * pitch + GAP

    def _area(self, group: str, name: str, levels: Sequence[int]) -> None:
        most = max(levels, default=0)
        if most == 0:
            return
        height = 34.0
        self._name(name, self.y + height / 2 - 6)
        self._name(f"0 to {most}", self.y + height / 2 + 9, "soft")
        base = self.y + height
        path, level = [f"M0 {base:.1f}"], 0
        for step, value in enumerate(levels):
            if value != level:
                path.append(f"H{step}V{base - height * value / most:.1f}")
                level = value
        path.append(f"H{len(levels)}V{base:.1f}Z")
        self.shapes.append(f'<path class="area {group}" d="{"".join(path)}"/>')
        self.y = base + GAP

    def _phases(self, bottom: float) -> None:
        last = -100.0
        for phase in self.timeline.phases:
            came = f"first warp at step {phase.first}, all {phase.warps} at {phase.end}"
            title = f"{phase.name}, phase {phase.number}\n{came}"
            self.shapes.append(
                f'<line class="phase" x1="{phase.end}" x2="{phase.end}" y1="22" y2="{bottom:.0f}">'
                f"<title>{escape(title)}</title></line>"
            )
            if (phase.end - last) * self.scale >= 26:
                self._word(phase.end, 18, f"{phase.number}", "soft")
                last = phase.end
        if self.timeline.phases:
            self._name("barrier phase", 14, "soft")

    def _axis(self, bottom: float) -> None:
        every = next(n * 10**k for k in range(12) for n in (1, 2, 5) if n * 10**k * self.scale >= 70)
        for step in range(0, self.timeline.length + 1, every):
            self.shapes.append(f'<line class="tick" x1="{step}" x2="{step}" y1="{bottom:.0f}" y2="{bottom + 5:.0f}"/>')
            self._word(step, bottom + 17, str(step), "soft")
        self._name("steps" if self.timeline.clock == "steps" else "events in order", bottom + 13, "soft")

    def _races(self, lane: Callable[[int], float]) -> None:
        for race in self._distinct_races():
            x1, x2 = (time_of(access, self.timeline) + 0.5 for access in (race.first, race.second))
            y1, y2 = lane(race.first.warp), lane(race.second.warp)
            title = f"<title>{escape(describe_race(race, self.timeline))}</title>"
            middle = (y1 + y2) / 2 - (18 if y1 == y2 else 0)
            self.shapes.append(
                f'<path class="race" d="M{x1} {y1:.1f}Q{(x1 + x2) / 2} {middle:.1f} {x2} {y2:.1f}">{title}</path>'
            )
            for x, y in ((x1, y1), (x2, y2)):
                self.words.append(
                    f'<circle class="spot" data-step="{x}" cx="{self._x(x):.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'
                )

    def _distinct_races(self) -> list[Race]:
        """One of those that meet between the same two spans of work."""
        distinct: dict[tuple[object, ...], Race] = {}
        for race in self.timeline.recording.races:
            sides = (race.first, race.second)
            key = tuple((side.warp, self.timeline.span_at(side.warp, time_of(side, self.timeline))) for side in sides)
            distinct.setdefault(key, race)
        return list(distinct.values())[:MOST_RACES]

    # ---- Shapes

    def _x(self, step: float) -> float:
        return LABELS + step * self.scale

    def _rect(self, kind: str, begin: int, end: int, y: float, height: float, title: str) -> None:
        inner = f"><title>{escape(title)}</title></rect>" if title else "/>"
        self.shapes.append(
            f'<rect class="{kind}" x="{begin}" y="{y:g}" width="{max(end - begin, 0)}" height="{height:g}"{inner}'
        )

    def _word(self, step: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self.words.append(
            f'<text class="{kind}" data-step="{step:g}" x="{self._x(step):.1f}" y="{y:g}" text-anchor="{anchor}" '
            f'font-size="10.5">{escape(text)}</text>'
        )

    def _name(self, text: str, y: float, kind: str = "") -> None:
        self.names.append(
            f'<text class="{kind}" x="{LABELS - 12}" y="{y:g}" text-anchor="end" dominant-baseline="middle" '
            f'font-size="11.5">{escape(text)}</text>'
        )


def _describe_flight(flight: Flight) -> str:
    end = f"waited for at step {flight.end}" if flight.landed else "never waited for"
    return (
        f"copy group {flight.group}: {flight.copies} cp.async of warps, {flight.bytes} bytes\n"
        f"issued from step {flight.begin}, {end}"
    )
