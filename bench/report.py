"""Tables and charts from the committed result files.

`python -m bench.report` prints every row and every bar; `--update-docs` also draws the charts and rewrites the
generated blocks of README and docs; `--machine NAME` picks another machine's results.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from bench import charts, machine, results
from bench.bars import BARS, BUSY, Verdict, judge
from bench.roofline import roofline_seconds
from bench.timing import geometric_mean

Row = dict[str, Any]
Files = dict[str, dict[str, Any]]


# ------------------------------------------------------------------------------------------------------------- reading


def all_rows(files: Files) -> list[Row]:
    return [row for content in files.values() for row in content["rows"]]


def measured_beside(content: dict[str, Any]) -> list[Row]:
    """A file's rows and the machine's own rates of the same run."""
    return [*content.get("machine_rows", []), *content["rows"]]


def machine_rates(rows: Sequence[Row], threads: int = 2) -> tuple[float, float]:
    """(FLOP/s of sgemm, bytes/s of a copy) as the machine's rows among them give them; 0 where they are missing."""

    def median_rate(class_: str, work: str) -> float:
        for row in rows:
            if row["suite"] == "machine" and row["class"].startswith(class_) and row["shape"] == f"{threads} threads":
                return float(row[work] / row["median_s"])
        return 0.0

    return median_rate("sgemm", "flops"), median_rate("copy", "bytes")


def roofline_share(row: Row, flops_per_second: float, bytes_per_second: float) -> float | None:
    """The least time the machine could take for the row's work, over the time it took."""
    if not (flops_per_second and bytes_per_second) or not (row["flops"] or row["bytes"]) or row["suite"] == "machine":
        return None
    return roofline_seconds(row["flops"], row["bytes"], flops_per_second, bytes_per_second) / row["median_s"]


def conditions(content: dict[str, Any]) -> str:
    """The sentence under every chart and table: where, with what, from which commit, by which command."""
    return f"{where(content)}; commit {content['commit']}, {content['date'][:10]}; {content['command']}"


def where(content: dict[str, Any]) -> str:
    """The machine and what it ran with, without commit and command."""
    found = content["conditions"]
    cpu = " ".join(dict.fromkeys(f"{found['cpu']} {found['microarchitecture']}".split()))
    software = f"torch {found['torch']}, Python {found['python']}"
    return f"{cpu}, {found['cores']} cores, {found['threads']} threads; {software}"


def quoted_machine() -> str | None:
    """The machine README and docs quote: the newest attention results of those with a study of errors too."""
    dated = []
    for name in results.machines():
        files = results.read(results.RESULTS / name)
        if "attention" in files and (results.RESULTS / name / "studies" / "numerics.json").exists():
            dated.append((files["attention"]["date"], name))
    return max(dated)[1] if dated else None


# -------------------------------------------------------------------------------------------------------------- tables


def _grid_of(
    rows: Sequence[Row], flops_per_second: float, bytes_per_second: float
) -> tuple[list[str], list[list[str]]]:
    """The header and lines of one suite's table, a geometric mean after each class."""
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    probes = [name for name in peers if any("share" in row["peers"].get(name, {}) for row in rows)]
    rivals = [name for name in peers if name not in probes]
    header = ["class", "shape", "ms", "GFLOP/s", "GB/s", "% roofline"]
    header += [f"% of {name}" for name in probes] + [f"x {name}" for name in rivals] + ["others"]
    lines = []
    for class_, members in groupby(rows, key=lambda row: row["class"]):
        group = list(members)
        for row in group:
            share = roofline_share(row, flops_per_second, bytes_per_second)
            cells = [
                class_,
                row["shape"],
                f"{row['median_s'] * 1e3:.3f}",
                _rate(row, "flops", 1e9),
                _rate(row, "bytes", 1e9),
            ]
            cells.append("" if share is None else f"{100 * share:.0f}")
            cells += [_cell(row, name, "share", 100, ".0f") for name in probes]
            cells += [_cell(row, name, "times_ours", 1, ".2f") for name in rivals]
            lines.append([*cells, f"{100 * row.get('others_cpu', 0):.0f} %"])
        if len(group) > 1 and peers:
            means = [_mean(group, name, "share", 100, ".0f") for name in probes]
            means += [_mean(group, name, "times_ours", 1, ".2f") for name in rivals]
            lines.append([class_, "geometric mean", "", "", "", "", *means, ""])
    return header, lines


def _rate(row: Row, work: str, unit: float) -> str:
    return f"{row[work] / row['median_s'] / unit:.1f}" if row[work] else ""


def _cell(row: Row, peer: str, field: str, factor: float, form: str) -> str:
    value = row["peers"].get(peer, {}).get(field)
    return "" if value is None else format(value * factor, form)


def _mean(rows: Sequence[Row], peer: str, field: str, factor: float, form: str) -> str:
    values = [row["peers"][peer][field] for row in rows if field in row["peers"].get(peer, {})]
    return format(geometric_mean(values) * factor, form) if values else ""


def suite_tables(files: Files) -> list[tuple[str, dict[str, Any], list[str], list[list[str]]]]:
    """(suite, its result file, header, lines) for every suite, in the order they were measured."""
    tables = []
    for content in sorted(files.values(), key=lambda content: content["rows"][0]["suite"] != "machine"):
        rates = machine_rates(measured_beside(content))
        suites = dict.fromkeys(row["suite"] for row in content["rows"])
        for suite in suites:
            header, lines = _grid_of([row for row in content["rows"] if row["suite"] == suite], *rates)
            tables.append((suite, content, header, lines))
    return tables


def verdicts(files: Files) -> list[Verdict]:
    rows = all_rows(files)
    return [verdict for bar in BARS if (verdict := judge(bar, rows)) is not None]


def bars_table(files: Files) -> tuple[list[str], list[list[str]]]:
    """Every bar, those that nobody measured too."""
    header = ["what", "bar", "measured", "worst case", "where", "met"]
    rows = all_rows(files)
    lines = []
    for bar in BARS:
        asked = [bar.what, f"{bar.op} {bar.bound:g} ({bar.over})"]
        verdict = judge(bar, rows)
        if verdict is None:
            lines.append([*asked, "", "", "", "not measured"])
            continue
        found = [f"{verdict.measured:.2f}", f"{verdict.worst:.2f}", verdict.worst_shape]
        lines.append([*asked, *found, verdict.in_words])
    return header, lines


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Plain text columns: words to the left, numbers to the right."""
    table = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]

    def is_number(text: str) -> bool:
        return text.replace(".", "").replace("%", "").strip().isdigit() or not text

    right = [all(is_number(line[column]) for line in lines) for column in range(len(header))]
    rendered = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join([rendered[0], "-" * len(rendered[0]), *rendered[1:]])


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def text_report(files: Files) -> str:
    """Everything, for a terminal."""
    parts = []
    for suite, content, header, lines in suite_tables(files):
        parts.append(f"{suite}   [{conditions(content)}]\n\n{aligned(header, lines)}")
    header, lines = bars_table(files)
    met = sum(line[-1] == "yes" for line in lines)
    measured = sum(line[-1] != "not measured" for line in lines)
    parts.append(f"bars: {met} of {measured} measured ones met, {len(lines)} in all\n\n{aligned(header, lines)}")
    busiest = max((row.get("others_cpu", 0.0) for row in all_rows(files)), default=0.0)
    if busiest > BUSY:
        parts.append(f"Other processes took up to {100 * busiest:.0f} % of the processor; repeat on a quiet machine.")
    return "\n\n\n".join(parts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--machine", help="whose results (default: the newest)")
    parser.add_argument("--update-docs", action="store_true", help="draw the charts, rewrite the generated blocks")
    options = parser.parse_args(arguments)
    name = options.machine or quoted_machine()
    if name is None or name not in results.machines():
        print(f"no results for {name or 'any machine'} under bench/results; `make bench` measures", file=sys.stderr)
        return 1
    print(text_report(results.read(results.RESULTS / name)))
    if options.update_docs:
        for other in results.machines():
            folder = results.RESULTS / other
            files = results.read(folder)
            for file, svg in charts.draw_all(files, {n: conditions(c) for n, c in files.items()}).items():
                (folder / file).write_text(svg, encoding="utf-8")
                print(f"drawn: {os.path.relpath(folder / file, machine.ROOT)}")
        from docs import generate

        generate.main([])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
