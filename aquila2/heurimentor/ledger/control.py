"""Requests from outside: files put into a run's folder `control/`, each entered as a decision exactly once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aquila2.atomic import atomic_write, fsync_path
from aquila2.heurimentor.data.apportionment import integer_weights
from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.ledger.book import Book
from aquila2.heurimentor.ledger.chain import Line
from aquila2.heurimentor.verified import NotVerified, verify
from aquila2.training.data import SPLITS, segment_folder
from aquila2.training.options import SourceOptions

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

    A request that was entered before a crash and not removed is recognised by its name and content. One that cannot be
    entered is moved to `control/rejected/` with the reason in a file beside it; one that cannot be read stays where it
    is, with the reason there.

    Raises:
        OSError: The ledger cannot be written.
    """
    folder = book.folder / FOLDER
    entered = []
    unremoved = set()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            content = path.read_bytes()
        except OSError as error:
            _give_reason(path, f"{path.name} cannot be read: {error.strerror or error}")
            continue
        identity = (path.name, hashlib.sha256(content).hexdigest())
        if identity not in book.answered:
            try:
                entered.append(_enter(book, content, *identity))
            except OSError:
                raise
            except Exception as error:  # whatever a file says, it must not end the run
                _reject(path, error)
                continue
        if not _removed(path):
            unremoved.add(identity)
    # From now on a file like one that was entered and removed is a new request.
    book.answered = unremoved
    return entered


def waiting_requests(run: Path | str) -> list[dict[str, Any]]:
    """The requests that no trainer has read yet, oldest first."""
    folder = Path(run) / FOLDER
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            wanted = json.loads(path.read_bytes())
            found.append({"what": wanted["what"], "value": wanted["value"], "after": None, "by": "control", **wanted})
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half written, just taken, or nothing that will be entered
    return found


def rejected_requests(run: Path | str) -> dict[str, str]:
    """The requests of a run that were refused, by name, with their reasons."""
    folder = Path(run) / FOLDER / REJECTED
    found = {}
    with suppress(OSError):  # a folder that this user may not look into has nothing to tell
        for path in sorted(folder.glob("*.reason.txt")):
            found[path.name.removesuffix(".reason.txt")] = path.read_text(encoding="utf-8", errors="replace").strip()
    return found


def _enter(book: Book, content: bytes, name: str, digest: str) -> Line:
    wanted = json.loads(content)
    what, value = wanted["what"], wanted["value"]
    if what == "mix":
        what, value = "mixture", integer_weights(value)
    if what == "open" and isinstance(value, dict):
        _look_at(book, value)
    by = str(wanted.get("by", "control"))
    return book.decide(what, value, after=wanted.get("after"), by=by, request=name, content=digest)


def _look_at(book: Book, value: dict[str, Any]) -> None:
    """Refuses a segment that the run could not read: it would end there, and again wherever it is started.

    Raises:
        ValueError: Names what is wrong with it.
    """
    folder, domain, rows = str(value["folder"]), str(value["domain"]), value["rows"]
    name = Path(folder).name
    for part in (name, domain):
        SourceOptions(name=part, path=folder)
    place, heldout = (segment_folder(book.folder / "data", name, split) for split in SPLITS)
    if book.folder / folder != place:
        raise ValueError(f"folder must be {place.relative_to(book.folder)}, in the run's folder, got {folder!r}")
    try:
        segment = _whole(book, place)
        if heldout.is_dir():
            _whole(book, heldout)
    except OSError as error:
        raise ValueError(f"{place} cannot be read: {error.strerror or error}") from None
    there = (segment.id, segment.num_rows(book.lineage.row_tokens))
    if there != (value["id"], rows):
        raise ValueError(f"{place} holds the segment {there[0]} of {there[1]} rows, got {value['id']!r} of {rows!r}")


def _whole(book: Book, folder: Path) -> Segment:
    """A segment every byte of which is as it was written, and in the vocabulary of the run's first one."""
    verify(folder)
    segment = Segment(folder)
    with suppress(NotVerified):
        for first in book.lineage.schedule.segments[:1]:
            tokenizer = Segment(book.folder / first.folder).tokenizer
            if segment.tokenizer != tokenizer:
                raise ValueError(f"{folder} was made with another tokenizer than the run's")
    return segment


def _removed(path: Path) -> bool:
    """Removes a request that was entered; where that is not allowed, its name and content keep it from coming twice."""
    try:
        path.unlink(missing_ok=True)
        fsync_path(path.parent)
    except OSError as error:
        _give_reason(path, f"{path.name} was entered and cannot be removed: {error.strerror or error}")
        return False
    return True


def _reject(path: Path, error: Exception) -> None:
    _give_reason(path, str(error) if isinstance(error, ValueError) else f"{error.__class__.__name__}: {error}")
    with suppress(OSError):
        os.replace(path, path.parent / REJECTED / path.name)


def _give_reason(path: Path, reason: str) -> None:
    """Writes a reason once; a folder that nobody may write into is not worth a run."""
    place = path.parent / REJECTED / f"{path.stem}.reason.txt"
    with suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        if not place.is_file() or place.read_text(encoding="utf-8") != reason + "\n":
            atomic_write(place, reason + "\n")
