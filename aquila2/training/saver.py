"""Checkpoints beside the training: a save costs the step a copy, and a thread writes that.

The copy is the moment that is saved. Steps that are taken while it is written stand in the ledger behind its head, as
they would behind any checkpoint: a process that dies then goes on from the checkpoint before, or from this one if it
has got its name, and takes them again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from aquila2.heurimentor import hashing
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import Contents, checkpoint_path, save_checkpoint
from aquila2.training.options import Options

LEAST = 19  # the lowest priority
NAME = "aquila2-checkpoint"  # of the thread


class Saver:
    """Writes the checkpoints of a run, one at a time; its block ends when the last is written.

    With `run.save: async` weights and moments are copied into memory that is kept for it, pinned where they lie on a
    GPU, so that they take twice the room. What goes wrong in the thread is raised by the next call of any method. An
    error that ends the block otherwise goes first; that of the thread is told then.

    Args:
        folder: The run's checkpoints.
        tokenizer: Its files are in every checkpoint.
        options: The run's.
    """

    def __init__(self, folder: Path, tokenizer: Aquila2Tokenizer, options: Options) -> None:
        self.folder, self.tokenizer, self.options = folder, tokenizer, options
        self._kept: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        self._awaited = threading.Event()
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            print(f"the last checkpoint was not written: {failed}", file=sys.stderr, flush=True)
        finally:
            self._thread.shutdown()

    def save(self, contents: Contents, last: bool = False, owned: bool = False) -> Path:
        """Saves what stands at this moment, after the save before it has ended; returns where it will be.

        Args:
            contents: Tensors may change as soon as this returns.
            last: Nothing is trained meanwhile, so it is written at once, without a copy.
            owned: Nobody else has the tensors, so they need no copy.

        Raises:
            ValueError: There is no memory for the copy.
            OSError: This save or the one before could not be written.
        """
        self.wait()
        if last or self.options.run.save == "sync":
            self._write(contents)
        else:
            if not owned:
                weights, moments = self._copies("weights", contents.weights), self._copies("moments", contents.moments)
                contents = contents._replace(weights=weights, moments=moments)
            self._awaited.clear()
            self._under_way = self._thread.submit(self._write_beside, contents, _copied(contents))
        return checkpoint_path(self.folder, contents.step)

    def check(self) -> None:
        """Raises what a save has failed with, without waiting for one that is under way."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the save under way is written, or raises what it has failed with."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            self._awaited.set()
            _prefer_writers()
            under_way.result()

    def _copies(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            kept = self._kept.get(f"{kind}/{name}")
            if kept is None:
                kept = self._kept[f"{kind}/{name}"] = _memory_like(tensor)
            copies[name] = kept.copy_(tensor, non_blocking=True)
        return copies

    def _write_beside(self, contents: Contents, copied: torch.cuda.Event | None) -> None:
        _give_way()
        if self._awaited.is_set():
            _prefer_writers()
        self._write(contents, copied)

    def _write(self, contents: Contents, copied: torch.cuda.Event | None = None) -> None:
        if copied is not None:
            copied.synchronize()
        save_checkpoint(self.folder, contents, self.tokenizer, self.options.run.keep, self.options)


def _give_way() -> None:
    """Has this thread, and those that it starts to hash, take what the steps leave of the cores."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        _set_priority(threading.get_native_id(), LEAST)


def _prefer_writers() -> None:
    """Gives the threads that write the priority of the process: somebody waits for them, perhaps on a busy machine.

    Linux lets only who has CAP_SYS_NICE or room in RLIMIT_NICE raise a priority. Elsewhere they keep the lowest.
    """
    if sys.platform != "linux":
        return
    usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
    raised: set[int] = set()
    # A thread has the priority of the one that starts it, and no id for a moment: until nobody is new.
    while new := [thread.native_id for thread in _writers() if thread.native_id not in raised]:
        for native_id in new:
            if native_id is None:
                time.sleep(0.001)
            else:
                _set_priority(native_id, usual)
                raised.add(native_id)


def _writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith((NAME, hashing.THREADS))]


def _set_priority(native_id: int, priority: int) -> None:
    with suppress(OSError):  # the thread may have ended, and whoever runs this may not be allowed to
        os.setpriority(os.PRIO_PROCESS, native_id, priority)


def _memory_like(tensor: Tensor) -> Tensor:
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    except RuntimeError as error:  # torch has no narrower one for the host's memory
        raise ValueError(
            f"run.save async finds no memory for its copy of weights and moments ({error}); run.save sync needs none"
        ) from None


def _copied(contents: Contents) -> torch.cuda.Event | None:
    """What tells that the copies are whole: a GPU makes them behind the call, and before it changes the weights."""
    if not any(tensor.is_pinned() for tensor in contents.weights.values()):
        return None
    event = torch.cuda.Event()
    event.record()
    return event
