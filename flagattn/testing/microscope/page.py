"""One self-contained HTML page of a recording: the picture by both clocks, its facts, its phases and its races."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from flagattn.testing.microscope.picture import GROUP_NAMES, describe_race, picture
from flagattn.testing.microscope.recording import Recording
from flagattn.testing.microscope.timeline import Timeline

CLOCK_NAMES = {"steps": "Each warp in steps of its own", "order": "As the runner ran them"}
MOST_ROWS = 60  # of a table


def page(recording: Recording, title: str, subtitle: str = "") -> str:
    """The page's HTML. Nothing on it is loaded from elsewhere."""
    timelines = {clock: Timeline(recording, clock) for clock in CLOCK_NAMES}
    views = "".join(
        f'<div class="view" id="{clock}"{"" if clock == "steps" else " hidden"}>{picture(timeline)}</div>'
        for clock, timeline in timelines.items()
    )
    buttons = "".join(
        f'<button data-view="{clock}" aria-pressed="{"true" if clock == "steps" else "false"}">{escape(name)}</button>'
        for clock, name in CLOCK_NAMES.items()
    )
    legend = "".join(f'<li><i class="{group}"></i>{escape(name)}</li>' for group, name in GROUP_NAMES.items())
    legend += '<li><i class="conflict"></i>bank conflicts</li><li><i class="spot"></i>races</li>'
    steps = timelines["steps"]
    return _PAGE.format(
        title=escape(title),
        subtitle=escape(subtitle),
        style=_text("page.css"),
        script=_text("page.js"),
        alarms=_alarms(recording),
        facts=_facts(steps),
        buttons=buttons,
        legend=legend,
        views=views,
        tables=_tables(steps),
    )


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _facts(timeline: Timeline) -> str:
    """Those that say something; that there are no conflicts and no races does."""
    facts = {name: n for name, n in timeline.facts.items() if n or name in ("bank conflicts", "races")}
    return "".join(f"<div><b>{number:,}</b><span>{escape(name)}</span></div>" for name, number in facts.items())


def _alarms(recording: Recording) -> str:
    alarms = []
    if recording.failure:
        alarms.append(f"The runner stopped the kernel. {recording.failure}")
    if recording.races:
        alarms.append(
            f"{len(recording.races)} pairs of accesses to shared memory, one of each writing, are ordered by nothing."
        )
    if recording.is_cut:
        alarms.append("A warp did more than is recorded; the picture ends early.")
    return "".join(f'<p class="alarm">{escape(alarm)}</p>' for alarm in alarms)


def _tables(timeline: Timeline) -> str:
    phases = [
        (phase.name, phase.number, phase.first, phase.end, phase.end - 1 - phase.first, phase.warps)
        for phase in timeline.phases
    ]
    flights = [
        (flight.group, flight.copies, flight.bytes, flight.begin, flight.end if flight.landed else "never")
        for flight in timeline.flights
    ]
    races = [tuple(describe_race(race, timeline).split("\n")[:3]) for race in timeline.recording.races]
    return (
        _table("Barrier phases", ("barrier", "phase", "first warp", "all there", "the first waits", "warps"), phases)
        + _table("Copies", ("group", "cp.async of warps", "bytes", "first issued", "waited for"), flights)
        + _table("Races", ("where", "one", "the other"), races)
    )


def _table(name: str, head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows[:MOST_ROWS]
    )
    more = f"<p>{len(rows) - MOST_ROWS} more.</p>" if len(rows) > MOST_ROWS else ""
    return (
        f"<details><summary>{escape(name)} ({len(rows)})</summary><table><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}</details>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
{alarms}
<section class="facts">{facts}</section>
<nav><span class="views">{buttons}</span><span class="zoom"><button data-zoom="0.5">&minus;</button><button
data-zoom="0">whole</button><button data-zoom="2">+</button></span></nav>
<ul class="legend">{legend}</ul>
<main>{views}</main>
{tables}
<footer>A step is one instruction that went through a wrapper; ordinary arithmetic is not seen, and there is no clock.
After a barrier a warp goes on when the last one has come.</footer>
<div id="tip" hidden></div>
<script>
{script}
</script>
</body>
</html>
"""
