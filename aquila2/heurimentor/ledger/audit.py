"""`aquila2 ledger audit`: proves from a run's files that every row was used exactly once per epoch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aquila2.heurimentor.data.schedule import OpenSegment
from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.ledger.book import NAME, row_digest
from aquila2.heurimentor.ledger.chain import Line, scan
from aquila2.heurimentor.ledger.lineage import Head, Lineage
from aquila2.heurimentor.verified import NotVerified, numbered_folders, read_manifest, verify

HEAD = re.compile(r"[0-9a-f]{64}")
PERMUTED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class SegmentUse:
    """What a run did with a segment.

    Attributes:
        segment: Which.
        drawn: Draws in the lineage.
        skipped: Those of them that decisions kept from training.
    """

    segment: OpenSegment
    drawn: int
    skipped: int

    @property
    def epochs(self) -> int:
        """Whole passes."""
        return self.drawn // self.segment.rows

    @property
    def begun(self) -> int:
        """Rows drawn in the pass that is not whole."""
        return self.drawn % self.segment.rows


@dataclass
class Audit:
    """What an audit found; `faults` is empty where everything is proved, `head` is the last line's chain value."""

    steps: int = 0
    samples: int = 0
    undone: int = 0
    resumes: list[str] = field(default_factory=list)
    segments: list[SegmentUse] = field(default_factory=list)
    heads: int = 0
    torn: int = 0
    permutations: int = 0
    digests: int = 0
    data: bool = False
    head: str = ""
    faults: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The findings as text for people."""
        rows = [["segment", "domain", "rows", "drawn", "epochs", "begun", "skipped", "id"]]
        for use in self.segments:
            info = use.segment
            cells = (info.number, info.domain, info.rows, use.drawn, use.epochs, use.begun, use.skipped, info.id[:12])
            rows.append([str(cell) for cell in cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += ["", f"{self.steps} steps of the lineage took {self.samples} samples; {self.undone} steps were undone"]
        lines += self.resumes
        lines.append(
            f"{self.heads} checkpoints found in the chain, {self.permutations} permutations tried, "
            f"{self.digests} digests read again"
        )
        if self.head:
            lines.append(f"head {self.head}: keep it elsewhere, and audit --head asks later whether it is still there")
        if self.torn:
            lines.append(f"a torn tail of {self.torn} bytes follows the last line")
        lines += [f"FAULT: {fault}" for fault in self.faults]
        proved = (
            "exactly once: proved" if self.data else "exactly once: proved from the log; no row was read, --data does"
        )
        lines.append("NOT PROVED" if self.faults else proved)
        return "\n".join(lines)


def audit(
    run: Path | str,
    *,
    data: bool = False,
    heads: Sequence[str] = (),
    report: Callable[[str], None] = lambda sentence: None,
) -> Audit:
    """Audits a run's ledger.

    From the logs alone: the chain is whole; the heads that checkpoints keep are in it; records follow one another; and
    every segment's draws, as steps recorded them, are 0, 1, 2, ... without gap or repeat, equal to what the decisions
    ask for. With `data`: segments have the content that was decided on, every permutation that was used is tried row by
    row, and the digest of every step is made again from the segments.

    Args:
        run: The run's folder.
        data: Also read the segments.
        heads: Chain values that were kept elsewhere; the ledger must still have them.
        report: Told what is being done.

    Raises:
        ValueError: A head is no chain value.
        Tampered, BadRecord: The file itself is not a ledger any more; the error names the line.
        FileNotFoundError: There is no ledger.
    """
    folder = Path(run)
    for head in heads:
        if not HEAD.fullmatch(head):
            raise ValueError(f"head must be the 64 hexadecimal digits that an audit has printed, got {head!r}")
    if not (folder / NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {NAME}")
    found = scan(folder / NAME)
    lineage = Lineage.of(found.lines)
    result = Audit(torn=len(found.torn), data=data)
    if not found.lines:
        result.faults.append("the ledger has no line")
        return result
    result.head = found.lines[-1].chain
    known = {line.chain for line in found.lines}
    result.faults += [f"the ledger does not have the head {head} any more" for head in heads if head not in known]
    records = {line.number: line.record for line in found.lines if line.record["kind"] == "step"}
    result.steps, result.samples, result.undone = lineage.step, lineage.samples, len(lineage.undone)
    result.resumes = [_sentence(line) for line in lineage.resumes]
    _check_heads(folder, lineage, found.lines, result)
    skipped = _check_draws(lineage, records, result)
    for info, drawn in zip(lineage.schedule.segments, lineage.schedule.counts(lineage.samples), strict=True):
        result.segments.append(SegmentUse(info, drawn, skipped.get(info.number, 0)))
    if data:
        segments = _check_segments(folder, lineage, result, report)
        _check_permutations(lineage, result, report)
        if len(segments) == len(lineage.schedule.segments):
            _check_digests(lineage, records, segments, result, report)
    return result


def open_segments(run: Path, lineage: Lineage) -> list[Segment]:
    """The segments of a run, in the order of their numbers.

    Raises:
        NotVerified: One is not there, or is not the one that was decided on.
    """
    segments = []
    for info in lineage.schedule.segments:
        segment = Segment(run / info.folder)
        if (segment.id, segment.num_rows(lineage.row_tokens)) != (info.id, info.rows):
            raise NotVerified(f"{segment.folder} holds the segment {segment.id}, the run was decided to use {info.id}")
        segments.append(segment)
    return segments


def _sentence(line: Line) -> str:
    record = line.record
    cut = f", a torn tail of {record['cut']} bytes was cut" if "cut" in record else ""
    return f"  line {line.number + 1}: went on from step {record['step']} after a {record['cause']}{cut}"


def _check_heads(folder: Path, lineage: Lineage, lines: list[Line], result: Audit) -> None:
    chains = {line.chain: line.end for line in lines}
    for checkpoint in numbered_folders(folder / "checkpoints", "step-"):
        try:
            head = Head.of(read_manifest(checkpoint)["facts"]["ledger"])
        except (NotVerified, KeyError, TypeError, ValueError) as error:
            result.faults.append(f"{checkpoint.name} does not tell where the ledger stood ({error})")
            continue
        if chains.get(head.chain) != head.offset:
            result.faults.append(f"{checkpoint.name} was saved with another ledger than this one")
        else:
            result.heads += 1


def _check_draws(lineage: Lineage, records: Mapping[int, Mapping[str, Any]], result: Audit) -> dict[int, int]:
    """Walks the draws of all steps and skips; returns the skipped draws per segment."""
    place: dict[int, int] = {}
    skipped: dict[int, int] = {}
    events: list[tuple[int, int, int | None]] = [(step.first, step.samples, step.line) for step in lineage.steps]
    events += [(first, count, None) for first, count in lineage.schedule.skipped]
    expected_first = 0
    before = lineage.schedule.counts(0)
    for first, count, line in sorted(events, key=lambda event: event[0]):
        what = f"line {line + 1}" if line is not None else f"the skip at sample {first}"
        if first != expected_first:
            result.faults.append(f"{what} takes samples from {first}, the one before ended at {expected_first}")
        expected_first = first + count
        after = lineage.schedule.counts(expected_first)
        drawn = [[i, a, b] for i, (a, b) in enumerate(zip(before, after, strict=True)) if b > a]
        before = after
        if line is None:
            for number, start, end in drawn:
                skipped[number] = skipped.get(number, 0) + end - start
        elif records[line]["drawn"] != drawn:
            result.faults.append(f"{what} recorded other draws than the decisions ask for")
        for number, start, end in drawn if line is None else records[line]["drawn"]:
            if start != place.get(number, 0):
                kind = "again" if start < place.get(number, 0) else "with a gap"
                result.faults.append(f"{what} draws from segment {number} {kind}, from {start}")
            place[number] = end
    if expected_first != lineage.samples:
        result.faults.append(f"the lineage took {lineage.samples} samples, its steps and skips end at {expected_first}")
    return skipped


def _check_segments(folder: Path, lineage: Lineage, result: Audit, report: Callable[[str], None]) -> list[Segment]:
    for info in lineage.schedule.segments:
        report(f"verifying segment {info.number} in {info.folder}")
        try:
            verify(folder / info.folder)
        except (NotVerified, OSError) as error:
            result.faults.append(f"segment {info.number}: {error}")
    try:
        return open_segments(folder, lineage)
    except (NotVerified, OSError) as error:
        result.faults.append(str(error))
        return []


def _check_permutations(lineage: Lineage, result: Audit, report: Callable[[str], None]) -> None:
    """Every order that was used takes every row once: each place's row is marked, and no mark may be there."""
    for use in result.segments:
        for epoch in range(use.epochs + bool(use.begun)):
            report(f"trying the order of segment {use.segment.number} in epoch {epoch}")
            seen = np.zeros(use.segment.rows, dtype=bool)
            permutation = lineage.schedule.permutation(use.segment.number, epoch)
            for start in range(0, use.segment.rows, PERMUTED_AT_ONCE):
                seen[permutation.forward(np.arange(start, min(start + PERMUTED_AT_ONCE, use.segment.rows)))] = True
            if not seen.all():
                result.faults.append(f"the order of segment {use.segment.number} in epoch {epoch} misses rows")
            result.permutations += 1


def _check_digests(
    lineage: Lineage,
    records: Mapping[int, Mapping[str, Any]],
    segments: list[Segment],
    result: Audit,
    report: Callable[[str], None],
) -> None:
    report(f"reading the rows of {lineage.step} steps again")
    for step in lineage.steps:
        plan = lineage.schedule.draws(step.first, step.samples)
        total = 0
        for sample, number, row in zip(plan.samples.tolist(), plan.segments.tolist(), plan.rows.tolist(), strict=True):
            total += row_digest(sample, segments[number].row(row, lineage.row_tokens).ids)
        if f"{total % (1 << 64):016x}" != records[step.line]["digest"]:
            result.faults.append(f"step {step.number} was fed other tokens than its rows hold")
        result.digests += 1
