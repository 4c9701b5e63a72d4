"""SVG charts, written by hand: transparent ground and colours that read on white and on black."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from bench.bars import SDPA

Row = dict[str, Any]

STYLE = """<style>
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; font-size: 12px; fill: #57606a; }
.title { font-size: 15px; font-weight: 600; fill: #24292f; } .panel { font-size: 13px; font-weight: 600; }
.caption, .tick, .value { font-size: 10.5px; } .inside { font-size: 10.5px; fill: #ffffff; }
.ours { fill: #1f77d0; } .theirs { fill: #9aa4ae; } .grid { stroke: #8b949e; stroke-opacity: .25; }
.axis { stroke: #8b949e; } .limit { stroke: #d1701f; stroke-width: 1.5; stroke-dasharray: 5 3; }
.limit-text { fill: #d1701f; }
@media (prefers-color-scheme: dark) {
text { fill: #9ea7b3; } .title { fill: #e6edf3; } .inside { fill: #ffffff; }
.ours { fill: #2f81d8; } .theirs { fill: #7d8590; }
.limit { stroke: #ee9a4d; } .limit-text { fill: #ee9a4d; } }
</style>"""


@dataclass(frozen=True)
class Bars:
    """One category of a panel: a label and what is drawn above it."""

    label: str
    ours: float
    theirs: float
    note: str  # in the foot of our bar


def draw_all(files: dict[str, dict[str, Any]], captions: dict[str, str]) -> dict[str, str]:
    """File name -> SVG for every chart the results allow."""
    drawn = {}
    if "attention" in files:
        rows = files["attention"]["rows"]
        for direction in ("forward", "backward"):
            chosen = [row for row in rows if row["suite"] == f"attention {direction}"]
            if chosen:
                title = f"Attention {direction} on CPU, GFLOP/s (batch 1, 12 query heads, 3 key/value heads)"
                drawn[f"attention_{direction}.svg"] = attention_chart(chosen, title, captions["attention"])
    ratios = [row for name in sorted(files) if name not in ("attention", "machine") for row in files[name]["rows"]]
    if ratios:
        name = next(name for name in sorted(files) if name not in ("attention", "machine"))
        drawn["ratios.svg"] = ratio_chart(ratios, captions[name])
    return drawn


# ----------------------------------------------------------------------------------------------- grouped bars, 4 panels


def attention_chart(rows: Sequence[Row], title: str, caption: str) -> str:
    """Panels by dtype and mask; ours beside torch; the sgemm rate of the same rounds as a dashed line."""
    panels = []
    for class_ in dict.fromkeys(row["class"] for row in rows):
        chosen = [row for row in rows if row["class"] == class_ and row["shape"].endswith("GQA 4")]
        bars = [
            Bars(
                label=" ".join(row["shape"].split()[:4]),
                ours=row["flops"] / row["median_s"] / 1e9,
                theirs=row["flops"] / row["peers"][SDPA]["median_s"] / 1e9,
                note=f"{row['peers'][SDPA]['times_ours']:.2f}×",
            )
            for row in chosen
        ]
        sgemm = [row["peers"]["sgemm"]["gflops"] for row in chosen]
        if bars:
            panels.append((class_, bars, sum(sgemm) / len(sgemm)))
    top = _round_up(max(max(max(bar.ours, bar.theirs) for bar in bars) for _, bars, _ in panels))
    top = max(top, _round_up(max(limit for _, _, limit in panels)))
    width, height, columns = 940, 250, 2
    body = [f'<text class="title" x="16" y="24">{escape(title)}</text>', *_legend(16, 46)]
    for index, (name, bars, limit) in enumerate(panels):
        x = 16 + (index % columns) * (width - 32) // columns
        y = 66 + (index // columns) * height
        body += _panel(name, bars, limit, top, x, y, (width - 32) // columns - 20, height - 20)
    bottom = 66 + math.ceil(len(panels) / columns) * height
    return _document(width, bottom, body, title, caption)


def _panel(name: str, bars: Sequence[Bars], limit: float, top: float, x: int, y: int, w: int, h: int) -> list[str]:
    left, base, plot = x + 38, y + h - 34, h - 64

    def height_of(value: float) -> float:
        return plot * value / top

    out = [f'<text class="panel" x="{left}" y="{y + 12}">{escape(name)}</text>']
    for tick in range(5):
        value = top * tick / 4
        level = base - height_of(value)
        out.append(f'<line class="grid" x1="{left}" x2="{x + w}" y1="{level:.1f}" y2="{level:.1f}"/>')
        out.append(f'<text class="tick" x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">{value:g}</text>')
    slot = (w - 38) / len(bars)
    bar_width = min(34.0, slot * 0.34)
    for index, bar in enumerate(bars):
        middle = left + slot * (index + 0.5)
        for offset, value, kind in ((-bar_width - 1, bar.theirs, "theirs"), (1, bar.ours, "ours")):
            out.append(_rectangle(kind, middle + offset, base - height_of(value), bar_width, height_of(value)))
        centre = middle + 1 + bar_width / 2
        out.append(f'<text class="inside" x="{centre:.1f}" y="{base - 7}" text-anchor="middle">{bar.note}</text>')
        out.append(
            f'<text class="tick" x="{middle:.1f}" y="{base + 15}" text-anchor="middle">{escape(bar.label)}</text>'
        )
    level = base - height_of(limit)
    out.append(f'<line class="limit" x1="{left}" x2="{x + w}" y1="{level:.1f}" y2="{level:.1f}"/>')
    out.append(f'<line class="axis" x1="{left}" x2="{x + w}" y1="{base}" y2="{base}"/>')
    return out


def _legend(x: int, y: int) -> list[str]:
    return [
        _rectangle("ours", x, y - 10, 12, 12),
        f'<text x="{x + 18}" y="{y}">flagattn (in the bar: times as fast as torch)</text>',
        _rectangle("theirs", x + 320, y - 10, 12, 12),
        f'<text x="{x + 338}" y="{y}">torch scaled_dot_product_attention</text>',
        f'<line class="limit" x1="{x + 600}" x2="{x + 625}" y1="{y - 4}" y2="{y - 4}"/>',
        f'<text class="limit-text" x="{x + 631}" y="{y}">sgemm 1024³, same rounds</text>',
    ]


# ----------------------------------------------------------------------------------------------------- ratios to peers


def ratio_chart(rows: Sequence[Row], caption: str) -> str:
    """One line per suite, class and peer: the peer's time over ours, geometric mean over shapes."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for peer, numbers in row["peers"].items():
            if "share" not in numbers or peer == "copy":
                groups.setdefault((row["suite"], row["class"], peer), []).append(numbers["times_ours"])
    entries = [
        (f"{suite}, {class_}", peer, math.exp(sum(map(math.log, values)) / len(values)))
        for (suite, class_, peer), values in groups.items()
    ]
    title = "Time of the peer over our time (1: as fast; more: ours is faster)"
    width, line, left, right = 940, 20, 420, 60
    top = _round_up(max(value for _, _, value in entries))
    bottom = 56 + line * len(entries)

    def at(value: float) -> float:
        return left + (width - left - right) * value / top

    body = [f'<text class="title" x="16" y="24">{escape(title)}</text>']
    for index, (name, peer, value) in enumerate(entries):
        y = 50 + line * index
        body.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(f"{name}: {peer}")}</text>'
        )
        body.append(_rectangle("ours" if value >= 1 else "theirs", left, y - 7, at(value) - left, 14))
        body.append(f'<text class="value" x="{at(value) + 5:.1f}" y="{y + 4}">{value:.2f}×</text>')
    body.append(f'<line class="limit" x1="{at(1):.1f}" x2="{at(1):.1f}" y1="36" y2="{bottom - 8}"/>')
    return _document(width, bottom, body, title, caption)


# -------------------------------------------------------------------------------------------------------------- pieces


def _rectangle(kind: str, x: float, y: float, w: float, h: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" rx="1.5"/>'


def _document(width: int, bottom: int, body: Sequence[str], title: str, caption: str) -> str:
    lines = _wrapped(caption, 150)
    height = bottom + 16 + 14 * len(lines)
    text = [
        f'<text class="caption" x="16" y="{bottom + 12 + 14 * index}">{escape(part)}</text>'
        for index, part in enumerate(lines)
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    return "\n".join([f'{head}role="img"><title>{escape(title)}</title>', STYLE, *body, *text, "</svg>", ""])


def _wrapped(text: str, columns: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > columns and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten (axis ends with round quarters)."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * 0.999)
