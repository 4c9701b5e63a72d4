"""A run's loss curve as an SVG picture that any browser shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aquila2.atomic import atomic_write

WIDTH, HEIGHT = 880, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 56, 58
COLOURS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#8d5a97", "#2e4057")
TEXT = "#333"
FONT = "font-family='system-ui, sans-serif'"
SMOOTHING = 0.95

Points = list[tuple[float, float]]


def write_loss_curve(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws the training loss (every step, and smoothed) and the held-out loss of each source over training tokens.

    Args:
        records: What `read_metrics` returns.
        path: The SVG file.
        title: Stands above the picture.
    """
    train = [record for record in records if record["kind"] == "train"]
    samples_at = {0: 0, **{record["step"]: record["samples"] for record in train}}
    raw = [(float(record["samples"]), float(record["loss"])) for record in train]
    heldout: dict[str, Points] = {}
    for record in records:
        if record["kind"] == "heldout":
            for source in record:
                if source not in ("kind", "step", "all"):
                    heldout.setdefault(source, []).append((float(samples_at[record["step"]]), float(record[source])))
    everything = [point for points in (raw, *heldout.values()) for point in points if math.isfinite(point[1])]
    if not everything:
        return
    axes = _Axes(max(x for x, _ in everything), min(y for _, y in everything), max(y for _, y in everything))
    parts = [axes.frame(title, "training rows", "cross-entropy per token (nats)")]
    parts.append(axes.line(raw, "#bbb", 1.0))
    parts.append(axes.line(_smoothed(raw), "#333", 2.0))
    legend = [("training, smoothed", "#333")]
    for (source, points), colour in zip(sorted(heldout.items()), COLOURS * len(heldout)):
        parts.append(axes.line(points, colour, 2.0, dots=True))
        legend.append((f"held out: {source}  {points[0][1]:.2f} to {points[-1][1]:.2f}", colour))
    parts.append(_legend(legend))
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'>"
    atomic_write(path, "\n".join([head, f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>", *parts, "</svg>\n"]))


class _Axes:
    """The mapping from data to the picture: x from 0, y between round numbers around the data."""

    def __init__(self, largest_x: float, smallest_y: float, largest_y: float) -> None:
        self.x_step, self.y_step = _round_step(largest_x), _round_step(max(largest_y - smallest_y, 1e-6))
        self.x_end = max(largest_x, 1.0)
        self.y_start = math.floor(smallest_y / self.y_step) * self.y_step
        self.y_end = math.ceil(largest_y / self.y_step) * self.y_step

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_end

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_start) / (self.y_end - self.y_start)

    def line(self, points: Points, colour: str, width: float, dots: bool = False) -> str:
        places = [(self.x(x), self.y(y)) for x, y in points if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn = [f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}'/>"]
        if dots:
            drawn += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>" for x, y in places]
        return "\n".join(drawn)

    def frame(self, title: str, x_name: str, y_name: str) -> str:
        drawn = [f"<text x='{LEFT}' y='30' {FONT} font-size='18' fill='{TEXT}'>{escape(title)}</text>"]
        bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
        for value in _ticks(self.y_start, self.y_end, self.y_step):
            y = self.y(value)
            drawn.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e5e5e5'/>")
            drawn.append(_label(LEFT - 8, y + 4, f"{value:g}", "end"))
        for value in _ticks(0.0, self.x_end, self.x_step):
            drawn.append(_label(self.x(value), bottom + 20, f"{value:,.0f}", "middle"))
        drawn.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}' stroke='#999'/>")
        drawn.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, "middle"))
        drawn.append(f"<g transform='rotate(-90 20 {middle})'>{_label(20, middle, y_name, 'middle')}</g>")
        return "\n".join(drawn)


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    drawn = []
    for i, (text, colour) in enumerate(entries):
        y = TOP + 14 + 20 * i
        drawn.append(
            f"<line x1='{WIDTH - 300}' x2='{WIDTH - 276}' y1='{y}' y2='{y}' stroke='{colour}' stroke-width='3'/>"
        )
        drawn.append(_label(WIDTH - 268, y + 4, text, "start"))
    return "\n".join(drawn)


def _label(x: float, y: float, text: str, anchor: str) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'"
    return f"<text {place} {FONT} font-size='13' fill='{TEXT}'>{escape(text)}</text>"


def _smoothed(points: Points) -> Points:
    """Exponential mean whose weights sum to 1 from the first point on."""
    smoothed, mean, weight = [], 0.0, 0.0
    for x, y in points:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * y, SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append((x, mean / weight))
    return smoothed


def _round_step(span: float) -> float:
    """The step of 1, 2 or 5 times a power of ten that divides a span into four to ten parts."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-9) / 4))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= span / 4)


def _ticks(start: float, end: float, step: float) -> list[float]:
    return [start + i * step for i in range(int((end - start) / step + 1e-6) + 1)]
