"""Requests from outside: files put into a run's folder `control/`, each entered as a decision exactly once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from aquila2.atomic import atomic_write, fsync_path
from aquila2.heurimentor.data.apportionment import integer_weights
from aquila2.heurimentor.ledger.book import Book
from aquila2.heurimentor.ledger.chain import Line
from aquila2.heurimentor.ledger.lineage import BadRecord

FOLDER, REJECTED = "control", "rejected"


def request(run: Path | str, what: str, value: Any, *, after: int | None = None, by: str = "control") -> Path:
    """Leaves a request for the trainer of a run, running or not; it is read before a step.

    Args:
        run: The run's folder.
        what: A kind of decision, or "mix" with weights that need not be integers.
        value: Its value.
        after: The completed step after which it should hold; the next one that ends unless told.
        by: Who asks.
    """
    folder = Path(run) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.time_ns():020d}-{os.getpid()}.json"
    atomic_write(path, json.dumps({"what": what, "value": value, "after": after, "by": by}) + "\n")
    return path


def answer_requests(book: Book) -> list[Line]:
    """Enters all requests that wait, in the order of their names, and removes them; returns their lines.

    A request that was entered before a crash and not removed is recognised by its name. One that cannot be entered is
    moved to `control/rejected/` with the reason in a file beside it.
    """
    folder = book.folder / FOLDER
    entered = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if path.name not in book.lineage.requests:
            try:
                entered.append(_enter(book, path))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                _reject(path, error)
                continue
        path.unlink()
        fsync_path(folder)
    return entered


def waiting_requests(run: Path | str) -> list[dict[str, Any]]:
    """The requests that no trainer has read yet, oldest first."""
    folder = Path(run) / FOLDER
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []


def rejected_requests(run: Path | str) -> dict[str, str]:
    """The requests of a run that were refused, by name, with their reasons."""
    folder = Path(run) / FOLDER / REJECTED
    reasons = sorted(folder.glob("*.reason.txt")) if folder.is_dir() else []
    return {path.name.removesuffix(".reason.txt"): path.read_text(encoding="utf-8").strip() for path in reasons}


def _enter(book: Book, path: Path) -> Line:
    wanted = json.loads(path.read_bytes())
    what, value = wanted["what"], wanted["value"]
    if what == "mix":
        what, value = "mixture", integer_weights(value)
    return book.decide(what, value, after=wanted.get("after"), by=str(wanted.get("by", "control")), request=path.name)


def _reject(path: Path, error: Exception) -> None:
    folder = path.parent / REJECTED
    folder.mkdir(exist_ok=True)
    reason = str(error) if isinstance(error, (BadRecord, ValueError)) else f"{error.__class__.__name__}: {error}"
    atomic_write(folder / f"{path.stem}.reason.txt", reason + "\n")
    os.replace(path, folder / path.name)
