"""One run per folder: a second process is told so instead of writing into the first one's files."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "run.lock"


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made where it is missing, until the block or the process ends, however it ends.

    Raises:
        ValueError: Another run holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = f"run.folder {folder} is in use by another run; wait for it, or give another folder"
    with only_holder_of(folder / LOCK, held):
        yield


@contextmanager
def only_holder_of(path: Path, held: str) -> Iterator[None]:
    """Holds an empty file until the block or the process ends, however it ends.

    The lock is the system's (flock); what a killed process leaves behind locks nothing, once the processes that it
    forked have ended too.

    Args:
        path: The file, which is made where it is missing.
        held: What is said where another process holds it.

    Raises:
        ValueError: Another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(held) from None
        except OSError as error:  # some network file systems have no locks
            sentence = f"{path} cannot be locked ({error.strerror}): start nothing that it guards a second time"
            print(sentence, file=sys.stderr, flush=True)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would leave it with a process forked in the block
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a run holds the folder at the moment; False where it has no lock. Looking takes it for microseconds."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
