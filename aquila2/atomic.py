"""Writing files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Forces a file's or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; at the end it is synced and renamed to `path`, on an error removed."""
    temporary = path_beside(path)
    try:
        yield temporary
        settle(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def path_beside(path: Path) -> Path:
    """A hidden name in the same folder for what is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def settle(file: Path) -> None:
    """Forces a written file to the disk, with the usual rights: safetensors makes files only their owner can read."""
    example = file.with_name(file.name + ".rights")  # to ask for the umask is to set it, for other threads too
    example.touch()
    file.chmod(example.stat().st_mode & 0o777)
    example.unlink()
    fsync_path(file)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256_of(path: Path, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's bytes in hex; `report` is told the size of each block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if report is not None:
                report(len(block))
    return digest.hexdigest()
