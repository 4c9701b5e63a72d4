"""An append-only file of JSON lines, each sealed by a hash over itself and all before it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aquila2.atomic import fsync_path

ROOT = hashlib.sha256(b"aquila2-ledger-1").hexdigest()
MEMBER = b',"chain":"'
SUFFIX = len(MEMBER) + 64 + 2  # the member, the hash, '"}'
UNSYNCED = re.compile(rb'\{"kind":"(step|ranks)",')  # lines that are written without waiting for the disk
SEALED = re.compile(MEMBER + rb'[0-9a-f]{64}"}.', re.DOTALL)  # the end of a line with something behind it


class Tampered(ValueError):
    """A ledger is not what was once written."""


class Line(NamedTuple):
    """A line: its number, the offset of its end, its chain value, and what it says without the chain."""

    number: int
    end: int
    chain: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Scan:
    """All whole lines of a file, and the bytes after them that a crash has left."""

    lines: list[Line]
    torn: bytes

    @property
    def end(self) -> int:
        """The offset after the last whole line."""
        return self.lines[-1].end if self.lines else 0


def seal(previous: str, record: Mapping[str, Any]) -> tuple[bytes, str]:
    """The line of a record after the chain value `previous`, and its own chain value."""
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if not record or body[-1:] != b"}" or "chain" in record:
        raise ValueError(f"a record must be an object with members, none called chain, got {record!r}")
    chain = hashlib.sha256(previous.encode() + body).hexdigest()
    return body[:-1] + MEMBER + chain.encode() + b'"}\n', chain


def scan(path: Path, synced: int = 0) -> Scan:
    """Reads and checks a file.

    Args:
        path: The file.
        synced: An offset up to which the file is known to have been whole on the disk. What is wrong beyond it can be a
            crash's work, unless a line follows for which the writer waited for the disk, and with it for all before;
            what is wrong before it cannot.

    Raises:
        Tampered: A line is not what was written there, or lines that must be there are not.
        FileNotFoundError: There is no file.
    """
    content = path.read_bytes()
    lines: list[Line] = []
    chain, start = ROOT, 0
    while (end := content.find(b"\n", start)) >= 0:
        line = content[start:end]
        body, stated = line[:-SUFFIX] + b"}", line[-66:-2]
        right = line[-SUFFIX:-66] == MEMBER and line[-2:] == b'"}'
        right = right and hashlib.sha256(chain.encode() + body).hexdigest().encode() == stated
        record = _parse(body) if right else None
        if record is None:
            break
        chain, start = stated.decode(), end + 1
        lines.append(Line(len(lines), start, chain, record))
    torn = content[start:]
    if start < synced:
        raise Tampered(
            f"{path}: line {len(lines) + 1}, at byte {start}, is not as it was written: a checkpoint knows the ledger "
            f"to be whole up to byte {synced}"
        )
    if synced and _was_on_the_disk(torn):
        raise Tampered(
            f"{path}: line {len(lines) + 1}, at byte {start}, is not as it was written, and it or a line behind it is "
            "a decision or a resumption that was on the disk; restore the file, or cut it at that byte to give them up"
        )
    if not synced and (SEALED.search(torn) or any(_looks_written(line) for line in torn.split(b"\n")[:-1])):
        raise Tampered(f"{path}: line {len(lines) + 1}, at byte {start}, is not what its chain value was made for")
    return Scan(lines, torn)


class ChainFile:
    """The one writer of a chained file.

    Opening cuts a torn tail and keeps a copy of it beside the file, named by the offset.

    Args:
        path: The file; made where it is not there.
        synced: See `scan`.

    Raises:
        Tampered: See `scan`; the file is left as it is.
        BlockingIOError: Another process writes to it.
    """

    def __init__(self, path: Path, synced: int = 0) -> None:
        self.path = path
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            found = scan(path, synced)
            self.lines = found.lines
            self.cut = len(found.torn)
            self.end = found.end
            if found.torn:
                aside = path.with_name(f"{path.name}.torn-{self.end}")
                aside.write_bytes(found.torn)
                fsync_path(aside)
                os.ftruncate(self._descriptor, self.end)
                self.sync()
            if is_new or found.torn:
                fsync_path(path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.chain = self.lines[-1].chain if self.lines else ROOT
        self._count = len(self.lines)

    def append(self, record: Mapping[str, Any]) -> Line:
        """Writes a record's line. It survives the process at once, and the machine after `sync`.

        Raises:
            OSError: The disk refuses; the file then still ends with the line before.
        """
        line, chain = seal(self.chain, record)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, self.end)
            raise
        self.end += len(line)
        self.chain = chain
        self._count += 1
        return Line(self._count - 1, self.end, chain, dict(record))

    def sync(self) -> None:
        """Forces all lines to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Syncs, and lets go of the file."""
        self.sync()
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{self.path} is being written by another process") from None


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _was_on_the_disk(torn: bytes) -> bool:
    """Whether lines that are no torn tail were there in whole: a page that was lost leaves zeros."""
    lines = torn.split(b"\n")[:-1]
    sealed = [i for i, line in enumerate(lines) if SEALED.search(line + b"\n")]
    if not sealed or b"\0" in torn:
        return False
    return any(not UNSYNCED.match(line) for line in lines[: sealed[-1] + 1])


def _looks_written(line: bytes) -> bool:
    record = _parse(line)
    return record is not None and "chain" in record
