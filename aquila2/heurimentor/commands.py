"""The commands `aquila2 ledger`, `aquila2 mentor` and `aquila2 report`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import Line, scan
from aquila2.heurimentor.ledger.control import rejected_requests, request, waiting_requests
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.heurimentor.ledger.locate import RunData, Suspect, suspects
from aquila2.heurimentor.ledger.scorer import ModelScorer, checkpoint_after, checkpoint_before, scorer_of
from aquila2.heurimentor.ledger.trace import Occurrence, occurrence_loss, trace
from aquila2.heurimentor.mentor.decisions import Decision, parse_decisions
from aquila2.heurimentor.report.page import follow_report, write_report
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import step_of
from aquila2.training.data import SPLITS, prepare_source, segment_folder
from aquila2.training.lock import only_holder_of
from aquila2.training.options import SourceOptions, load_options

PREVIEW = 60


def add_commands(commands: Any) -> None:
    """Adds `ledger`, `mentor` and `report` to the parser's commands."""
    command = commands.add_parser("ledger", help="what a run was trained on: prove it, and find documents in it")
    actions = command.add_subparsers(dest="action", required=True)
    action = actions.add_parser("audit", help="prove from the logs that every row was used exactly once per epoch")
    action.add_argument("run_folder", metavar="RUN", help="folder of a training run")
    action.add_argument("--data", action="store_true", help="also read all segments, orders and rows again")
    action.add_argument(
        "--head",
        action="append",
        default=[],
        metavar="HEX",
        help="a head that an earlier audit printed",
    )
    action.set_defaults(run=_audit)
    action = actions.add_parser("locate", help="list the documents of a step, the most suspicious first")
    action.add_argument("run_folder", metavar="RUN", help="folder of a training run")
    action.add_argument("--step", type=int, required=True, help="number of the step, from 1")
    action.add_argument("--top", type=int, default=10, help="how many documents are listed; 0 lists all")
    action.set_defaults(run=_locate)
    action = actions.add_parser("trace", help="find a text, the steps that trained it, its loss before and after")
    action.add_argument("run_folder", metavar="RUN", help="folder of a training run")
    action.add_argument("text", help="a sentence; case, width and white space do not count")
    action.set_defaults(run=_trace)

    command = commands.add_parser("mentor", help="change a run while it goes on")
    actions = command.add_subparsers(dest="action", required=True)
    action = actions.add_parser("set", help="ask for decisions; they hold from the end of a step on, and are logged")
    action.add_argument("run_folder", metavar="RUN", help="folder of a training run, at work or not")
    action.add_argument(
        "assignments",
        nargs="+",
        metavar="key=value",
        help="mixture=code:2,english:1 lr=3e-4 batch=16 stage=NAME skip=SAMPLES quarantine=DOCUMENT stop=REASON",
    )
    action.add_argument("--after", type=int, default=None, help="the completed step after which they hold")
    action.add_argument("--by", default="mentor set", help="who asks, for the log")
    action.set_defaults(run=_set)
    action = actions.add_parser("add", help="add a source of text to a run: tokenises it, and asks to draw from it")
    action.add_argument("run_folder", metavar="RUN", help="folder of a training run, at work or not")
    action.add_argument("name", help="a new name for the source")
    action.add_argument("path", help="a folder, .txt, .md, .py, .jsonl or .parquet")
    action.add_argument("--domain", default=None, help="the domain that it belongs to; by default one of its own name")
    action.add_argument("--mixture", default=None, help="the mixture from then on, as code:2,english:1")
    action.add_argument("--after", type=int, default=None, help="the completed step after which it is drawn from")
    action.add_argument("--by", default="mentor add", help="who asks, for the log")
    action.set_defaults(run=_add)
    action = actions.add_parser("show", help="list the decisions of a run: in force, planned, waiting, refused")
    action.add_argument("run_folder", metavar="RUN", help="folder of a training run")
    action.set_defaults(run=_show)

    command = commands.add_parser("report", help="write one HTML page with a run's curves, decisions and alerts")
    command.add_argument("run_folder", metavar="RUN", help="folder of a training run, at work or not")
    command.add_argument("--out", default=None, metavar="FILE", help="where it goes; by default RUN/report.html")
    command.add_argument("--follow", action="store_true", help="write it anew while the run is at work")
    command.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="how often --follow writes")
    command.set_defaults(run=_report)


def _audit(parsed: argparse.Namespace) -> int:
    result = audit(parsed.run_folder, data=parsed.data, heads=parsed.head, report=_say)
    print(result.table())
    return 1 if result.faults else 0


def _locate(parsed: argparse.Namespace) -> int:
    data = RunData(parsed.run_folder)
    step = data.step(parsed.step)
    checkpoint = checkpoint_before(data, step.number, _say)
    if checkpoint is None:
        checkpoint = checkpoint_after(data, step.number, _say)
        if checkpoint is None:
            raise FileNotFoundError(f"{parsed.run_folder} has no whole checkpoint to score the documents with")
        _say(
            f"no checkpoint from before step {step.number} is left; {checkpoint.name} has seen these documents already"
        )
    found = suspects(data, step.number, scorer_of(checkpoint))
    shown = found[: parsed.top] if parsed.top > 0 else found
    samples = f"samples {step.first} to {step.end - 1}"
    print(f"step {step.number}: {samples}, {len(found)} documents, scored by {checkpoint.name}")
    tokenizer = Aquila2Tokenizer.from_pretrained(data.folder / "tokenizer")
    rows = [["score", "loss", "domain", "document", "tokens", "text"]]
    rows += [_suspect_cells(data, suspect, tokenizer) for suspect in shown]
    print(_aligned(rows))
    return 0


def _suspect_cells(data: RunData, suspect: Suspect, tokenizer: Aquila2Tokenizer) -> list[str]:
    part = suspect.located
    row = data.segments[part.segment].row(part.row, data.lineage.row_tokens)
    text = " ".join(tokenizer.decode(row.ids[part.start : part.end].tolist()).split())
    preview = text if len(text) <= PREVIEW else text[: PREVIEW - 3] + "..."
    tokens = str(part.end - part.start)
    return [f"{suspect.score:.1f}", f"{suspect.loss:.3f}", part.domain, part.document.id, tokens, preview]


def _trace(parsed: argparse.Namespace) -> int:
    data = RunData(parsed.run_folder)
    tokenizer = Aquila2Tokenizer.from_pretrained(data.folder / "tokenizer")

    @lru_cache(maxsize=2)
    def scorer(checkpoint: Path) -> ModelScorer:
        return scorer_of(checkpoint)

    def loss(occurrence: Occurrence, checkpoint: Path | None) -> str:
        value = occurrence_loss(data, occurrence, scorer(checkpoint)) if checkpoint else None
        return "-" if value is None or checkpoint is None else f"{value:.3f} (step {step_of(checkpoint)})"

    rows = [["domain", "document", "row", "tokens", "steps", "loss before", "loss after"]]
    for occurrence in trace(data, parsed.text, tokenizer):
        steps = occurrence.steps
        before = checkpoint_before(data, steps[0], _say) if steps else None
        after = checkpoint_after(data, steps[-1], _say) if steps else None
        where = f"{occurrence.start}-{occurrence.end - 1}"
        trained = _listed(steps) if steps else occurrence.exposures[-1].state
        cells = [occurrence.domain, occurrence.document.id, str(occurrence.row), where, trained]
        rows.append([*cells, loss(occurrence, before), loss(occurrence, after)])
    if len(rows) == 1:
        print(f"no document of {parsed.run_folder} holds that text")
        return 1
    print(_aligned(rows))
    return 0


def _set(parsed: argparse.Namespace) -> int:
    lineage = _lineage(parsed.run_folder)
    plain = [text for text in parsed.assignments if not text.startswith("quarantine=")]
    decisions = parse_decisions(plain, parsed.after)
    for text in parsed.assignments:
        if text.startswith("quarantine="):
            decisions += _quarantine(Path(parsed.run_folder), lineage, text.partition("=")[2], parsed.after)
    _rehearse(lineage, decisions, parsed.by)
    _ask(parsed.run_folder, decisions, parsed.by)
    return 0


def _rehearse(lineage: Lineage, decisions: Sequence[Decision], by: str) -> None:
    """Tries decisions one after the other."""
    records = []
    for decision in decisions:
        after = lineage.step if decision.after is None else decision.after
        records.append({"kind": "decision", "after": after, "what": decision.what, "value": decision.value, "by": by})
    lineage.rehearse(*records)


def _ask(run: str, decisions: Sequence[Decision], by: str) -> None:
    """Leaves requests, all of them before it says so to anybody."""
    for decision in decisions:
        request(run, decision.what, decision.value, after=decision.after, by=by)
    for decision in decisions:
        print(f"asked: {decision}")


def _add(parsed: argparse.Namespace) -> int:
    run = Path(parsed.run_folder)
    options = load_options(run / "config.yaml")
    # The trainer makes the segments again from there where they are damaged, and may run in another folder.
    path = parsed.path if parsed.path.startswith("builtin:") else os.path.abspath(os.path.expanduser(parsed.path))
    source = SourceOptions(name=parsed.name, path=path, domain=parsed.domain)
    mixture = [] if parsed.mixture is None else parse_decisions([f"mixture={parsed.mixture}"], parsed.after)
    (run / "data").mkdir(exist_ok=True)
    busy = f"name {source.name!r} is being added to {run} by another command; wait for it, or give another name"
    with only_holder_of(run / "data" / f"{source.name}.lock", busy):
        lineage = _refuse_old_name(run, source.name)
        places = [segment_folder(run / "data", source.name, split) for split in SPLITS]
        for left in places:  # of a request that was refused: it may hold another text
            shutil.rmtree(left, ignore_errors=True)
        try:
            tokenizer = Aquila2Tokenizer.from_pretrained(run / "tokenizer")
            prepare_source(source, options.data.heldout, tokenizer, run / "data")
            decisions = [_opening(run, source, lineage.row_tokens, parsed.after), *mixture]
            _rehearse(lineage, decisions, parsed.by)
        except BaseException:
            for left in places:
                shutil.rmtree(left, ignore_errors=True)
            raise
        _ask(parsed.run_folder, decisions, parsed.by)  # from here on the segments are the trainer's
    return 0


def _refuse_old_name(run: Path, name: str) -> Lineage:
    """Raises where a source of the run has the name, or one that was asked for; returns what the ledger says."""
    asked = [wanted["value"] for wanted in waiting_requests(run) if wanted["what"] == "open"]
    lineage = _lineage(str(run))  # after the requests, one of which may just have been entered
    asked += [line.record["value"] for line in lineage.pending if line.record["what"] == "open"]
    places = [info.folder for info in lineage.schedule.segments]
    places += [str(value.get("folder")) for value in asked if isinstance(value, dict)]
    if str(segment_folder(Path("data"), name, SPLITS[0])) in places:
        raise ValueError(f"name must be new to the run, and {name!r} is a source of it")
    return lineage


def _opening(run: Path, source: SourceOptions, row_tokens: int, after: int | None) -> Decision:
    """The decision to draw from a source that has been made ready."""
    folder = segment_folder(run / "data", source.name, SPLITS[0])
    segment = Segment(folder)
    value = {
        "domain": source.domain or source.name,
        "id": segment.id,
        "folder": str(folder.relative_to(run)),
        "rows": segment.num_rows(row_tokens),
    }
    return Decision("open", value, after)


def _quarantine(run: Path, lineage: Lineage, document: str, after: int | None) -> list[Decision]:
    found = []
    for info in lineage.schedule.segments:
        number = Segment(run / info.folder).find(document)
        if number is not None:
            found.append(Decision("quarantine", {"segment": info.number, "documents": [number]}, after))
    if not found:
        raise ValueError(f"quarantine must name a document of the run, got {document!r}")
    return found


def _show(parsed: argparse.Namespace) -> int:
    lineage = _lineage(parsed.run_folder)
    print(f"{lineage.step} steps, {lineage.samples} samples, {len(lineage.ranks)} ranks")
    for line, sample in lineage.applied:
        print(f"in force  {_decision(line)} (sample {sample}, {line.record['by']})")
    for line in sorted(lineage.pending, key=lambda entry: int(entry.record["after"])):
        print(f"planned   {_decision(line)} ({line.record['by']})")
    for wanted in waiting_requests(parsed.run_folder):
        said = f"waiting   {_wanted(wanted)} ({wanted['by']})"
        print(said.encode("utf-8", "backslashreplace").decode())  # halves of surrogate pairs cannot be printed
    for name, reason in rejected_requests(parsed.run_folder).items():
        print(f"refused   {name}: {reason}")
    return 0


def _wanted(request: Mapping[str, Any]) -> str:
    """A request in words; one that nobody has looked at may say anything."""
    try:
        return str(Decision(request["what"], request["value"], request["after"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{request['what']!r}: {request['value']!r}"


def _report(parsed: argparse.Namespace) -> int:
    if not parsed.every > 0:
        raise ValueError(f"--every must be positive, got {parsed.every:g}")
    path = write_report(parsed.run_folder, parsed.out, parsed.every if parsed.follow else 0.0)
    print(path, flush=True)
    if parsed.follow:
        follow_report(parsed.run_folder, parsed.out, parsed.every)
    return 0


def _decision(line: Line) -> Decision:
    return Decision(line.record["what"], line.record["value"], line.record["after"])


def _lineage(run: str) -> Lineage:
    ledger = Path(run) / NAME
    if not ledger.is_file():
        raise FileNotFoundError(f"{run} has no {NAME}: it is no training run, or one that has not begun")
    return Lineage.of(scan(ledger).lines)


def _listed(steps: Sequence[int]) -> str:
    shown = ", ".join(str(step) for step in steps[:6])
    return shown if len(steps) <= 6 else f"{shown}, ... ({len(steps)} times)"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
