"""Nodes at work: started together, ended together, and told of every signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from aquila2.heurimentor.launch.nodes import SAVING_SECONDS, Node, signalling

LOOK_SECONDS = 0.1
AGAIN_SECONDS = 2.0  # after which a signal that did not reach its node is sent once more
GIVE_UP_SECONDS = SAVING_SECONDS + 60.0  # torchrun has killed ranks that do not end by then: the host is gone


def run_nodes(nodes: Sequence[Node], give_up_seconds: float = GIVE_UP_SECONDS) -> int:
    """Starts all nodes and waits for them; returns 0, the status of the first that failed, or 128 + a signal.

    SIGINT and SIGTERM go on to all nodes, whose ranks then save and end; so does SIGHUP, as SIGTERM. Where a node
    fails the others are ended too, since its ranks will not come back.

    Args:
        nodes: What is started.
        give_up_seconds: After the first signal or failure, until what still stands for a node on this machine is
            killed.
    """
    failed, told, give_up = 0, 0, float("inf")
    with _noted_signals() as received:
        at_work = [_Work(node) for node in nodes]
        while at_work:
            for number in received[told:]:
                _tell(at_work, number)
            if len(received) > told or failed:
                give_up = min(give_up, time.monotonic() + give_up_seconds)
            told = len(received)
            for work in [work for work in at_work if work.process.poll() is not None]:
                at_work.remove(work)
                status = work.process.returncode
                if status and not failed and not received:
                    failed = status if status > 0 else 128 - status
                    print(f"{work.node.name} ended with the status {failed}", file=sys.stderr, flush=True)
                    _tell(at_work, signal.SIGTERM)
            for work in at_work:
                work.send()
                if time.monotonic() >= give_up:
                    work.process.kill()
            time.sleep(LOOK_SECONDS)
    for node in nodes:
        if node.pid is not None:
            node.pid.unlink(missing_ok=True)
    return 128 + received[0] if received else failed


class _Work:
    """A node at work, and the signals on their way to it over ssh, one after the other."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.process = subprocess.Popen(node.command, stdin=subprocess.DEVNULL, start_new_session=True)
        self.waiting: list[int] = []
        self.sender: subprocess.Popen[bytes] | None = None
        self.sent_at = 0.0

    def send(self) -> None:
        """Sends what waits; what did not arrive, as where the node has no process yet, is sent again."""
        if self.sender is not None:
            if self.sender.poll() is None:
                return
            if self.sender.returncode == 0:
                self.waiting.pop(0)
            elif time.monotonic() < self.sent_at + AGAIN_SECONDS:
                return
            self.sender = None
        if self.waiting:
            name = signal.Signals(self.waiting[0]).name.removeprefix("SIG")
            command = signalling(self.node, name)
            self.sender = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            self.sent_at = time.monotonic()


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Notes SIGINT, SIGTERM and SIGHUP instead of ending by them; nohup keeps its meaning."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    noted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        noted.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(at_work: Sequence[_Work], number: int) -> None:
    number = signal.SIGTERM if number == signal.SIGHUP else number  # torchrun's ranks save on SIGINT and SIGTERM
    for work in at_work:
        if work.node.signal is None:
            work.process.send_signal(number)
        else:
            work.waiting.append(number)
