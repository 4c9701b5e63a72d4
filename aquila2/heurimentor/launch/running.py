"""Nodes at work: started together, ended together, and told of every signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from aquila2.heurimentor.launch.nodes import Node, signalling

LOOK_SECONDS = 0.1


def run_nodes(nodes: Sequence[Node]) -> int:
    """Starts all nodes and waits for them; returns 0, the status of the first that failed, or 128 + a signal.

    SIGINT and SIGTERM go on to all nodes, whose ranks then save and end. Where a node fails the others are ended too,
    since its ranks will not come back.
    """
    failed = 0
    with _noted_signals() as received:
        at_work = [(node, subprocess.Popen(node.command, start_new_session=True)) for node in nodes]
        told = 0
        while at_work:
            for number in received[told:]:
                _pass_on(at_work, number)
            told = len(received)
            for node, process in [pair for pair in at_work if pair[1].poll() is not None]:
                at_work.remove((node, process))
                if process.returncode and not failed and not received:
                    failed = process.returncode if process.returncode > 0 else 128 - process.returncode
                    print(f"{node.name} ended with the status {failed}", file=sys.stderr, flush=True)
                    _pass_on(at_work, signal.SIGTERM)
            time.sleep(LOOK_SECONDS)
    return 128 + received[0] if received else failed


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM instead of ending by them."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(at_work: Sequence[tuple[Node, subprocess.Popen[bytes]]], number: int) -> None:
    for node, process in at_work:
        if node.signal is None:
            process.send_signal(number)
        else:
            subprocess.Popen(signalling(node, signal.Signals(number).name[len("SIG") :]), start_new_session=True)
