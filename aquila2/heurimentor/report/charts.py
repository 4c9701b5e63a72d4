"""Line and area charts as SVG for an HTML page, whose style sheet gives the colours; no browser is needed to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

WIDTH, HEIGHT = 640, 270
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 14, 42
COLOURS = 9
MOST_POINTS = 500
TALL_SPAN = 1e-9  # of the middle: less is a flat curve

Point = tuple[float, float]


class Bucket(NamedTuple):
    """A point of a curve, and between which values the points that it stands for lie."""

    x: float
    y: float
    low: float
    high: float


class Mark(NamedTuple):
    """A moment on the x axis: of kind "decision", "alert" or "resume", with what is told about it."""

    x: float
    kind: str
    text: str


@dataclass
class Series:
    """A curve. Its band is the interval around each value, or what thinning it out has hidden.

    Attributes:
        name: In the legend.
        points: x ascending; those that are not finite are left out.
        look: "line", "dots" (a line with its points), "faint", "dashed" or "area".
        halves: Half the interval's width at every point; None where there is none.
        colour: Number of its colour; None takes the next.
    """

    name: str
    points: Sequence[Point]
    look: str = "line"
    halves: Sequence[float] | None = None
    colour: int | None = None


@dataclass
class Chart:
    """A picture with its words.

    Attributes:
        key: An identifier that no other chart of the page has.
        title, note: Above and below it.
        y_label: What the axis shows, with its unit.
        series: The curves; with `stacked` their areas stand on each other.
        marks: Vertical lines.
        log: Whether the y axis is logarithmic.
        from_zero: Whether the y axis starts at 0.
        x_label: What the x axis shows.
        x_end: Where the x axis ends; None: at the last point.
        percent: Whether values are shares, shown in percent.
        bounds: Beyond which no value can lie, so that bands and the axis end there.
    """

    key: str
    title: str
    y_label: str
    series: list[Series]
    note: str = ""
    marks: Sequence[Mark] = ()
    log: bool = False
    stacked: bool = False
    from_zero: bool = False
    x_label: str = "step"
    x_end: float | None = None
    percent: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    drawn: list[tuple[Series, int, list[Bucket]]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        below: dict[float, float] = {}
        for number, series in enumerate(self.series):
            colour = number % COLOURS if series.colour is None else series.colour
            buckets = [
                bucket._replace(low=max(bucket.low, self.bounds[0]), high=min(bucket.high, self.bounds[1]))
                for bucket in thinned(series, self.log)
            ]
            if self.stacked:
                buckets = [Bucket(x, y + below.get(x, 0.0), below.get(x, 0.0), 0.0) for x, y, _, _ in buckets]
                below = {bucket.x: bucket.y for bucket in buckets}
            self.drawn.append((series, colour, buckets))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(buckets for _, _, buckets in self.drawn)

    def svg(self) -> str:
        """The picture, of the width that the page gives it."""
        axes = _Axes(self)
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">']
        parts += [axes.frame(self.y_label, self.x_label)]
        for mark in self.marks:
            if axes.x_start <= mark.x <= axes.x_end:
                place = f"{axes.x(mark.x):.1f}"
                line = f'<path class="mark {mark.kind}" d="M{place} {TOP}V{HEIGHT - BOTTOM}"/>'
                if mark.kind == "alert":
                    line += f'<path class="flag" d="M{place} {TOP + 1}l-4 -7h8z"/>'
                parts.append(f"<g>{line}<title>{escape(mark.text)}</title></g>")
        for series, colour, buckets in self.drawn:
            parts += axes.curve(series, colour, buckets, self.stacked)
        parts += ['<g class="cursor"></g>', "</svg>"]
        return "\n".join(parts)

    def legend(self) -> str:
        """The names of the curves beside their colours."""
        entries = [
            f'<span class="key"><i class="swatch c{colour} {series.look}"></i>{escape(series.name)}</span>'
            for series, colour, buckets in self.drawn
            if buckets
        ]
        return f'<div class="legend">{"".join(entries)}</div>'

    def data(self) -> dict[str, Any]:
        """What the page's script needs to tell the values under the pointer; JSON values."""
        axes = _Axes(self)
        series = []
        for one, colour, buckets in self.drawn:
            if not buckets:
                continue
            rows = []
            for x, y, low, high in buckets:
                row = [x, _short(y - low if self.stacked else y)]
                if high > low and not self.stacked:
                    row += [_short(low), _short(high)]
                rows.append([*row, round(axes.x(x), 1), round(axes.y(y), 1)])
            series.append({"name": one.name, "colour": colour, "rows": rows, "interval": one.halves is not None})
        marks = [[mark.x, round(axes.x(mark.x), 1), mark.kind, mark.text] for mark in self.marks]
        return {"series": series, "marks": marks, "percent": self.percent, "x_label": self.x_label}


def thinned(series: Series, log: bool = False, most: int = MOST_POINTS) -> list[Bucket]:
    """At most `most` points: means of equally many neighbours, each with the smallest and the largest of them."""
    points: list[Bucket] = []
    halves = series.halves if series.halves is not None else [0.0] * len(series.points)
    for (x, y), half in zip(series.points, halves, strict=True):
        if math.isfinite(x) and math.isfinite(y) and not (log and y <= 0):
            width = half if math.isfinite(half) else 0.0
            points.append(Bucket(float(x), float(y), float(y - width), float(y + width)))
    if len(points) <= most:
        return points
    bounds = [len(points) * i // most for i in range(most + 1)]
    groups = [points[start:end] for start, end in pairwise(bounds)]
    return [
        Bucket(
            group[-1].x,
            math.fsum(point.y for point in group) / len(group),
            min(point.low for point in group),
            max(point.high for point in group),
        )
        for group in groups
    ]


class _Axes:
    """From values to places in the picture."""

    def __init__(self, chart: Chart) -> None:
        buckets = [bucket for _, _, several in chart.drawn for bucket in several]
        ys = [y for bucket in buckets for y in ((bucket.y,) if chart.stacked else (bucket.low, bucket.y, bucket.high))]
        ys = [y for y in ys if not (chart.log and y <= 0)] or [1.0]
        xs = [bucket.x for bucket in buckets] or [0.0]
        self.log, self.percent = chart.log, chart.percent
        self.x_start, self.x_end = 0.0, max(*xs, chart.x_end or 0.0, 1.0)
        if chart.stacked:
            self.y_start, self.y_end, self.y_ticks = 0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]
        elif chart.log:
            self.y_start, self.y_end, self.y_ticks = _log_range(min(ys), max(ys))
        else:
            low, high = (0.0 if chart.from_zero else min(ys)), max(ys)
            if high - low <= TALL_SPAN * max(abs(high), 1e-12):
                low, high = low - 0.1 * abs(low), high + 0.1 * abs(high) or 1.0
            step = round_step(high - low)
            self.y_start, self.y_end = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
            self.y_ticks = [self.y_start + i * step for i in range(round((self.y_end - self.y_start) / step) + 1)]

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_start) / (self.x_end - self.x_start)

    def y(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log else float
        low, high = scale(self.y_start), scale(self.y_end)
        share = (scale(max(value, self.y_start) if self.log else value) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def frame(self, y_label: str, x_label: str) -> str:
        bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            text = f"{number(_short(100 * value))} %" if self.percent else number(value)
            parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        step = max(round_step(self.x_end), 1.0)
        for i in range(int(self.x_end / step + 1e-6) + 1):
            x = self.x(i * step)
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{i * step:,.0f}</text>'
            )
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
        across = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="label" x="{across}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        turned = f'transform="rotate(-90 13 {middle})" x="13" y="{middle}" text-anchor="middle"'
        parts.append(f'<text class="label" {turned}>{escape(y_label)}</text>')
        return "\n".join(parts)

    def curve(self, series: Series, colour: int, buckets: Sequence[Bucket], stacked: bool) -> Iterator[str]:
        if not buckets:
            return
        line = " ".join(f"{self.x(b.x):.1f},{self.y(b.y):.1f}" for b in buckets)
        if stacked or any(b.high > b.low for b in buckets):
            top = [(b.x, b.y if stacked else b.high) for b in buckets]
            outline = [*top, *((b.x, b.low) for b in reversed(buckets))]
            text = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in outline)
            yield f'<polygon class="{"area" if stacked else "band"} c{colour}" points="{text}"/>'
        yield f'<polyline class="curve c{colour} {series.look}" points="{line}"/>'
        if series.look == "dots" or len(buckets) == 1:
            for b in buckets:
                yield f'<circle class="dot c{colour}" cx="{self.x(b.x):.1f}" cy="{self.y(b.y):.1f}" r="2.6"/>'


def round_step(span: float) -> float:
    """The step of 1, 2 or 5 times a power of ten that divides a span into four to ten parts."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-300) / 4))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= span / 4 * (1 + 1e-9))


def number(value: float) -> str:
    """A number as an axis shows it: 12k, 3.4M, 0.05, 2e-05."""
    size = abs(value)
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            unit = 1e3 if letter == "k" else limit
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.3g}"


def _log_range(low: float, high: float) -> tuple[float, float, list[float]]:
    """Start, end and ticks of a logarithmic axis: decades, or 1, 2 and 5 of them where there are few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last <= first:
        last = first + 1
    factors = (1.0,) if last - first > 3 else (1.0, 2.0, 5.0)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max(tick for tick in ticks if tick <= low * (1 + 1e-9))
    end = min((tick for tick in ticks if tick >= high * (1 - 1e-9) and tick > start), default=10.0**last)
    return start, end, [tick for tick in ticks if start <= tick <= end]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
