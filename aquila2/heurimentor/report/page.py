"""The page: tiles, charts and tables of a run in one HTML file, written whole and renamed into its place."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aquila2.atomic import atomic_write
from aquila2.heurimentor.report.charts import COLOURS, WIDTH, Chart, Series, number
from aquila2.heurimentor.report.collect import RunView, smoothed

FILE = "report.html"
HERE = Path(__file__).parent
DOCUMENTS = 6  # shown of an alert before the reader asks for all


def write_report(run: Path | str, path: Path | str | None = None, refresh: float = 0.0) -> Path:
    """Writes the report of a run, and returns where it is.

    Args:
        run: The run's folder.
        path: The file; None: `report.html` in the folder.
        refresh: While the run is at work, the seconds after which an open page looks for a newer one; 0: never.

    Raises:
        FileNotFoundError: The folder is no run's.
    """
    folder = Path(run)
    target = Path(path) if path is not None else folder / FILE
    atomic_write(target, page(RunView.of(folder), refresh))
    return target


def follow_report(run: Path | str, path: Path | str | None = None, seconds: float = 5.0) -> Path:
    """Writes the report every few seconds until no process works on the run any more; see `write_report`.

    A long run's report takes longer to draw; then it is drawn less often, so that it never takes a tenth of a core.
    """
    while True:
        started = time.perf_counter()
        view = RunView.of(Path(run))
        target = Path(path) if path is not None else Path(run) / FILE
        atomic_write(target, page(view, seconds))
        if not view.at_work:
            return target
        time.sleep(max(seconds, 10 * (time.perf_counter() - started)))


def page(view: RunView, refresh: float = 0.0) -> str:
    """The HTML text of a report."""
    charts = [chart for chart in charts_of(view) if not chart.is_empty]
    data = json.dumps({chart.key: chart.data() for chart in charts}, allow_nan=False, ensure_ascii=False)
    done = view.samples >= view.options.train.samples
    state = "running" if view.at_work else "finished" if done else "rests"
    attributes = f'data-width="{WIDTH}"' + (f' data-refresh="{refresh:g}"' if refresh and view.at_work else "")
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.taken))
    name = escape(view.folder.resolve().name)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en" {attributes}><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{name}: training report</title>",
            f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head>",
            f'<body><main><header><h1>{name}</h1><span class="state {state}">{state}</span>',
            f'<span class="when">as of {written}</span><button id="theme" type="button">light / dark</button></header>',
            _tiles(view),
            '<h2>Curves</h2><div class="charts">',
            *(_figure(chart) for chart in charts),
            "</div>",
            _section("Alerts", _alerts(view), "Nothing was found."),
            _section("Decisions", _decisions(view), "None was taken."),
            _section("Interruptions", _resumes(view), "The run was never interrupted."),
            _section("Checkpoints", _checkpoints(view), "None was written yet."),
            '</main><div id="tip" role="status" hidden></div>',
            f'<script type="application/json" id="charts">{data.replace("<", chr(92) + "u003c")}</script>',
            f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script></body></html>",
            "",
        ]
    )


def charts_of(view: RunView) -> list[Chart]:
    """All charts that a run has values for."""
    marks, domains, end = view.marks(), view.domains(), float(view.step)
    colours = {name: place % COLOURS for place, name in enumerate(domains)}
    heldout = [
        Series(name, points, "dots", halves, colours.get(name, 7))
        for name, (points, halves) in view.estimates("heldout").items()
    ]
    losses = view.curve("loss")

    def shares(curves: dict[str, Any], look: str) -> list[Series]:
        return [Series(name, points, look, colour=colours[name]) for name, points in curves.items()]

    def one(key: str, title: str, label: str, names: dict[str, str], note: str = "", **more: Any) -> Chart:
        series = [Series(name, view.curve(field)) for field, name in names.items() if view.curve(field)]
        return Chart(key, title, label, series, note, marks, x_end=end, **more)

    return [
        Chart(
            "heldout", "Held-out loss per domain", "cross-entropy (nats per token)", heldout,
            "bands: 95 % confidence intervals over held-out rows", marks, x_end=end,
        ),
        Chart(
            "probes", "Downstream probes", "share of right answers", _probes(view),
            "bands: 95 % confidence intervals over the questions; dashed: by chance", marks, percent=True,
            from_zero=True, x_end=end, bounds=(0.0, 1.0),
        ),
        Chart(
            "loss", "Training loss", "cross-entropy (nats per token)",
            [Series("each step", losses, "faint"), Series("smoothed", smoothed(losses), colour=0)], "", marks,
            x_end=end,
        ),
        Chart(
            "mixture", "Mixture", "share of samples", shares(view.mixture(), "area"),
            "as decided; dashed lines are decisions", marks, stacked=True, percent=True, x_end=end,
        ),
        Chart(
            "epochs", "Epochs per domain", "passes over the data", shares(view.epochs(), "line"),
            "from the ledger", marks, from_zero=True, x_end=end,
        ),
        one("norm", "Gradient norm", "L2 norm before clipping", {"grad_norm": "norm"}, log=True),
        one("lr", "Learning rate", "learning rate", {"lr": "rate"}, from_zero=True),
        one(
            "speed", "Throughput", "tokens per second", {"tokens_per_second": "all ranks"}, from_zero=True,
        ),
        Chart(
            "time", "Time of a step", "seconds",
            [Series("step", view.curve("seconds")), Series("waiting for data", view.curve("data_wait"))],
            "", marks, from_zero=True, x_end=end,
        ),
        one(
            "mfu", "Share of the device's arithmetic (MFU)", "share of the peak", {"mfu": "MFU"},
            from_zero=True, percent=True,
        ),
        one(
            "llama2", "Pace beside LLaMA-2's", "share of its tokens per second", {"llama2": "share"},
            "its report's GPU hours (A100) for a model of this size, as many GPUs as ranks",
            from_zero=True, percent=True,
        ),
        one("skew", "Rank skew", "slowest rank over the median", {"skew": "skew"}),
        one("memory", "Memory", "bytes, largest so far", {"memory": "first rank"}, from_zero=True),
        Chart(
            "scores", "Largest attention score", "q.k / sqrt(D), before the softmax", _scores(view),
            "exact; each step: of its first rows; held out: of every domain's first batch", marks, x_end=end,
        ),
        Chart(
            "weights", "Spread of the weights", "standard deviation", view.series("weights", "_std"), "", marks,
            log=True, x_end=end,
        ),
        Chart(
            "trajectory", "Weight trajectory", "Fréchet distance per 1e9 tokens", view.series("trajectory"),
            "of each kind's standard deviations over the layers, between two measurements", marks, log=True, x_end=end,
        ),
    ]  # fmt: skip


def _scores(view: RunView) -> list[Series]:
    """Of each sampled layer what the steps had, and in the same colour what held-out batches had."""
    held = view.series("attention")
    found = []
    for colour, curve in enumerate(held):
        steps = view.curve(f"max_logit_{curve.name.replace(' ', '_')}")
        found += [Series(f"{curve.name}, each step", steps, "faint", colour=colour)] if steps else []
        found.append(Series(f"{curve.name}, held out" if steps else curve.name, curve.points, "dots", colour=colour))
    return found


def _probes(view: RunView) -> list[Series]:
    """The accuracies of every task, and what guessing would get, in the colour of the task's first."""
    found: list[Series] = []
    chances = {name: points for name, (points, _) in view.estimates("probe_chance").items()}
    for colour, (name, (points, halves)) in enumerate(view.estimates("probe").items()):
        task, _, metric = name.rpartition("/")
        found.append(Series(f"{task}, {metric}", points, "dots", halves, colour % COLOURS))
        chance = chances.pop(task, [])
        if any(share for _, share in chance):
            found.append(Series(f"{task}, chance", chance, "dashed", colour=colour % COLOURS))
    return found


def _figure(chart: Chart) -> str:
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    legend = chart.legend() if len(chart.series) > 1 else ""
    title = f"<figcaption>{escape(chart.title)}</figcaption>"
    return f'<figure data-chart="{chart.key}" tabindex="0">{title}{note}{legend}{chart.svg()}</figure>'


def _tiles(view: RunView) -> str:
    total = view.options.train.samples
    share = min(1.0, view.samples / total)
    speed, row_tokens = view.recent("tokens_per_second"), view.options.data.seq_len
    left = (total - view.samples) * row_tokens / speed if speed > 0 else math.nan
    tiles = [
        (f"{view.step:,}", "steps"),
        (f"{share:.1%}", f"{view.samples:,} of {total:,} samples"),
        (number(view.samples * row_tokens), "tokens drawn"),
        (number(view.recent("loss")), "training loss, median of the last 64 steps"),
    ]
    heldout = view.estimates("heldout").get("all")
    if heldout:
        (_, loss), half = heldout[0][-1], heldout[1][-1]
        interval = f" ± {half:.3f}" if math.isfinite(half) else ""
        tiles.append((f"{loss:.3f}{interval}", "held-out loss, mean of the domains"))
    tiles.append((number(speed), "tokens per second"))
    if view.at_work and math.isfinite(left):
        tiles.append((_duration(left), "left at this speed"))
    wait, seconds = view.recent("data_wait"), view.recent("seconds")
    if seconds > 0:
        tiles.append((f"{wait / seconds:.1%}", "of a step waits for data"))
    alerts = len(view.of_kind("alert"))
    tiles.append((str(alerts), "alert" if alerts == 1 else "alerts"))
    cells = []
    for value, label in tiles:
        bar = (
            f'<div class="progress"><i style="width:{100 * share:.1f}%"></i></div>' if label.endswith("samples") else ""
        )
        shown = "–" if value == "nan" else value
        cells.append(f'<div class="tile"><b>{escape(shown)}</b><span>{escape(label)}</span>{bar}</div>')
    return f'<div class="tiles">{"".join(cells)}</div>'


def _section(title: str, table: str, empty: str) -> str:
    body = table or f'<p class="empty">{empty}</p>'
    return f'<h2>{title}</h2><div class="table">{body}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; heads that begin with # are of columns of numbers."""
    kinds = [' class="n"' if head.startswith("#") else "" for head in heads]
    head = "".join(f"<th{kind}>{head.lstrip('#')}</th>" for kind, head in zip(kinds, heads, strict=True))
    body = ["".join(f"<td{k}>{cell}</td>" for k, cell in zip(kinds, row, strict=True)) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>" if body else ""


def _alerts(view: RunView) -> str:
    rows = []
    for record in reversed(view.of_kind("alert")):
        documents = [f"<code>{escape(name)}</code>" for name in record.get("documents", [])]
        listed = ", ".join(documents[:DOCUMENTS])
        if len(documents) > DOCUMENTS:
            more = ", ".join(documents[DOCUMENTS:])
            listed += f"<details><summary>{len(documents) - DOCUMENTS} more</summary>{more}</details>"
        kind = f'<span class="bad">{escape(record["alert"])}</span>'
        rows.append([str(record["step"]), kind, escape(record["sentence"]), str(record.get("rank", "")), listed])
    return _table(["#step", "finding", "what", "#rank", "suspect documents"], rows)


def _decisions(view: RunView) -> str:
    rows = []
    for line, decision in reversed(view.decisions()):
        after = int(line.record["after"])
        said = str(decision).partition(": ")[2]
        planned = "" if view.lineage and after <= view.lineage.step else " (planned)"
        rows.append([f"{after:,}{planned}", escape(said), escape(str(line.record["by"]))])
    return _table(["#after step", "decision", "taken by"], rows)


def _resumes(view: RunView) -> str:
    lines = view.lineage.resumes if view.lineage else []
    rows = [[f"{line.record['step']:,}", escape(line.record["cause"]), f"{line.number + 1:,}"] for line in lines[::-1]]
    return _table(["#went on after step", "cause", "#line of the ledger"], rows)


def _checkpoints(view: RunView) -> str:
    rows = []
    for checkpoint in view.checkpoints:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(checkpoint.made)) if checkpoint.made else ""
        state = f'<span class="bad">{escape(checkpoint.fault)}</span>' if checkpoint.fault else _SOUND
        rows.append([f"{checkpoint.step:,}", f"{checkpoint.bytes / 1e6:,.1f} MB", made, state])
    return _table(["#step", "#size", "made", "manifest and ledger"], rows)


_SOUND = '<span class="good">sealed, in the lineage</span>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
