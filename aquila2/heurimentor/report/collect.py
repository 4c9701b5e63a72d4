"""What a report shows of a run, read from its metrics, its ledger and its checkpoints; nothing is written."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from aquila2.heurimentor.data.apportionment import UNITS
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import Line, scan
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.heurimentor.mentor.decisions import Decision
from aquila2.heurimentor.report.charts import Mark, Point, Series
from aquila2.heurimentor.verified import NotVerified, read_manifest
from aquila2.training.checkpoints import head_of, list_checkpoints, step_of
from aquila2.training.lock import is_held
from aquila2.training.metrics import read_metrics
from aquila2.training.options import Options, load_options

RECENT = 64  # steps that present speed is the median of
EPOCH_POINTS = 100
_OTHERS = ("kind", "step", "tokens", "layers")


class Checkpoint(NamedTuple):
    """A checkpoint's step, bytes, when it was made, and what speaks against it, empty if nothing does."""

    step: int
    bytes: int
    made: float
    fault: str


@dataclass(frozen=True)
class RunView:
    """A run at a moment.

    Attributes:
        folder: Its folder.
        options: Its configuration.
        records: Its metrics.
        lineage: What its ledger says; None where it has not begun.
        checkpoints: Newest first.
        at_work: Whether a process holds the run.
        taken: When this was read, seconds since 1970.
    """

    folder: Path
    options: Options
    records: list[dict[str, Any]]
    lineage: Lineage | None
    checkpoints: list[Checkpoint]
    at_work: bool
    taken: float

    @classmethod
    def of(cls, folder: Path) -> RunView:
        """Reads a run's folder.

        Raises:
            FileNotFoundError: It is no run's.
        """
        config = folder / "config.yaml"
        if not config.is_file():
            raise FileNotFoundError(f"{folder} has no config.yaml: it is no training run, or one that has not begun")
        ledger = folder / NAME
        lineage = Lineage.of(scan(ledger).lines) if ledger.is_file() else None
        if lineage is not None and not lineage.genesis:
            lineage = None
        found = [_checkpoint(path, lineage) for path in list_checkpoints(folder / "checkpoints")]
        return cls(folder, load_options(config), read_metrics(folder), lineage, found, is_held(folder), time.time())

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    def curve(self, key: str, kind: str = "train") -> list[Point]:
        """A value over steps, where it was recorded."""
        return [(record["step"], record[key]) for record in self.of_kind(kind) if key in record]

    def series(self, kind: str, ending: str = "") -> list[Series]:
        """A curve for every value of records of a kind whose name has the ending."""
        names = {name: None for r in self.of_kind(kind) for name in r if name.endswith(ending) and name not in _OTHERS}
        return [Series(name.removesuffix(ending).replace("_", " "), self.curve(name, kind), "dots") for name in names]

    def domains(self) -> list[str]:
        """All domains, in the order in which the run came to know them."""
        names: dict[str, None] = {}
        for segment in self.lineage.schedule.segments if self.lineage else []:
            names[segment.domain] = None
        for record in self.of_kind("heldout"):
            names.update(dict.fromkeys(name for name in record if name not in ("kind", "step", "all")))
        return list(names)

    @property
    def step(self) -> int:
        """The last step that was recorded."""
        return max((record["step"] for record in self.of_kind("train")), default=0)

    @property
    def samples(self) -> int:
        """Samples that are taken, skipped ones included."""
        return self.lineage.samples if self.lineage else 0

    def recent(self, key: str) -> float:
        """The median of a value over the last steps; NaN where there is none."""
        values = [value for _, value in self.curve(key)[-RECENT:] if math.isfinite(value)]
        return statistics.median(values) if values else math.nan

    def decisions(self) -> list[tuple[Line, Decision]]:
        """Decisions in force and planned, in the order of their steps, without the recipe's sources."""
        if self.lineage is None:
            return []
        lines = [line for line, _ in self.lineage.applied] + self.lineage.pending
        lines.sort(key=lambda line: (int(line.record["after"]), line.number))
        return [
            (line, Decision(line.record["what"], line.record["value"], line.record["after"]))
            for line in lines
            if not (line.record["what"] == "open" and line.record["after"] == 0)
        ]

    def marks(self) -> list[Mark]:
        """Decisions, alerts and resumptions as moments on the axis of steps."""
        found = [
            Mark(float(line.record["after"]), "decision", f"{decision} ({line.record['by']})")
            for line, decision in self.decisions()
            if 0 < int(line.record["after"]) <= self.step
        ]
        found += [Mark(r["step"], "alert", f"step {r['step']}: {r['sentence']}") for r in self.of_kind("alert")]
        for line in self.lineage.resumes if self.lineage else []:
            step = int(line.record["step"])
            found.append(Mark(step, "resume", f"taken up again after step {step} ({line.record['cause']})"))
        return found

    def mixture(self) -> dict[str, list[Point]]:
        """The share of every domain over steps, as decided: two points at every change."""
        shares: dict[str, list[Point]] = {name: [] for name in self.domains()}
        if self.lineage is None:
            return shares
        changes = [line.record for line, _ in self.lineage.applied if line.record["what"] == "mixture"]
        for record, following in zip(changes, [*changes[1:], None], strict=True):
            start = float(record["after"])
            end = float(following["after"]) if following else float(max(self.step, start))
            for name, points in shares.items():
                share = record["value"].get(name, 0) / UNITS
                points += [(start, share), (max(start, end - 1e-6) if following else end, share)]
        return shares

    def epochs(self) -> dict[str, list[Point]]:
        """How often every domain was passed, over steps, from the ledger alone."""
        curves: dict[str, list[Point]] = {name: [] for name in self.domains()}
        if self.lineage is None or not self.lineage.steps:
            return curves
        steps = self.lineage.steps
        opened = [sample for line, sample in self.lineage.applied if line.record["what"] == "open"]
        for index in sorted({len(steps) * i // EPOCH_POINTS for i in range(EPOCH_POINTS)} | {len(steps) - 1}):
            sample = steps[index].end
            counts = self.lineage.schedule.counts(sample)
            drawn, rows = dict.fromkeys(curves, 0), dict.fromkeys(curves, 0)
            for segment, count, since in zip(self.lineage.schedule.segments, counts, opened, strict=True):
                if since <= sample:
                    drawn[segment.domain] += count
                    rows[segment.domain] += segment.rows
            for name, points in curves.items():
                if rows[name]:
                    points.append((steps[index].number, drawn[name] / rows[name]))
        return curves

    def estimates(self, kind: str) -> dict[str, tuple[list[Point], list[float]]]:
        """Every value of records of a kind over steps, and half of each one's interval.

        Of kind "heldout" they are the domains' losses, "all" their mean; of kind "probe" the tasks' accuracies.
        """
        halves = {record["step"]: record for record in self.of_kind(f"{kind}_interval")}
        curves: dict[str, tuple[list[Point], list[float]]] = {}
        for record in self.of_kind(kind):
            for name, value in record.items():
                if name not in ("kind", "step"):
                    points, widths = curves.setdefault(name, ([], []))
                    points.append((record["step"], value))
                    widths.append(halves.get(record["step"], {}).get(name, 0.0))
        return curves


def smoothed(points: Sequence[Point], share: float = 0.0125) -> list[Point]:
    """The mean of every finite value with its neighbours on both sides, as many as a share of all.

    Near the beginning, where losses fall steeply, both sides have equally few; at the end only one side is left.
    """
    kept = [(x, y) for x, y in points if math.isfinite(y)]
    sums = [0.0, *accumulate(y for _, y in kept)]
    reach = math.ceil(share * len(kept))
    found: list[Point] = []
    for place, (x, _) in enumerate(kept):
        side = min(reach, place)
        first, end = place - side, min(len(kept), place + side + 1)
        found.append((x, (sums[end] - sums[first]) / (end - first)))
    return found


def _checkpoint(path: Path, lineage: Lineage | None) -> Checkpoint:
    try:
        read_manifest(path)
        head = head_of(path)
        fault = lineage.objection(head) if lineage and head else None
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        return Checkpoint(step_of(path), size, path.stat().st_mtime, fault or "")
    except (NotVerified, OSError) as error:
        return Checkpoint(step_of(path), 0, 0.0, str(error))
