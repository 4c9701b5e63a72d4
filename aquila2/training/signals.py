"""Ctrl-C and SIGTERM as a wish to stop after the current step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# A KeyboardInterrupt leaves through the saver, which ends what it writes; a second SIGTERM ends the process there.
SENTENCE = b"""
stopping after this step, with a checkpoint; once more stops without, though Ctrl-C waits for a save under way
"""


class StopRequest:
    """Inside `with`, the first SIGINT or SIGTERM sets `received`; a second one acts as without us.

    Outside the main thread, where Python sets no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        # os.write: a handler may interrupt a print.
        os.write(2, SENTENCE)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
