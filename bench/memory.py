"""What a piece of work adds to the process's memory at its peak, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAKES_PEAK_START_HERE = "5"  # written to clear_refs: the peak is from then on that of what follows


def extra_bytes(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int | None:
    """How far resident memory rises above what it is after `prepare(*arguments)` while the returned thunk runs.

    A fresh process, since freed memory of earlier work would hide the peak. None where the kernel does not tell.
    """
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(sender, prepare, arguments))
    process.start()
    sender.close()
    try:
        measured: int | None = receiver.recv()
    finally:
        process.join()
    return measured


def _measure(sender: Any, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    thunk = prepare(*arguments)
    try:
        Path("/proc/self/clear_refs").write_text(MAKES_PEAK_START_HERE, encoding="ascii")
        before = _status("VmRSS")
    except (OSError, KeyError):
        sender.send(None)
        return
    kept = thunk()
    sender.send(_status("VmHWM") - before)
    del kept


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kilobytes = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}
    return int(kilobytes[key]) * 1024
