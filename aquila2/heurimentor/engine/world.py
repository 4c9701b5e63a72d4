"""The ranks of a run: one process, or those that torchrun has started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class OtherRankFailed(RuntimeError):
    """The first rank has failed and said why; the others have nothing to add."""


class World:
    """What ranks tell each other besides gradients. With one rank every method returns at once.

    Attributes:
        rank: This process, 0 to size - 1.
        size: How many there are.
    """

    def __init__(self) -> None:
        shared = dist.is_initialized()
        self.rank = dist.get_rank() if shared else 0
        self.size = dist.get_world_size() if shared else 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def tell(self, make: Callable[[], T]) -> T:
        """Calls `make` on the first rank only, and returns its value on all.

        Raises:
            OtherRankFailed: On the other ranks, where `make` raises; the first one raises what it raised.
        """
        if self.size == 1:
            return make()
        message: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_first:
            try:
                message[0] = make()
            except Exception as caught:
                error = caught
                message[1] = f"{caught.__class__.__name__}: {caught}"
        dist.broadcast_object_list(message, src=0)
        if error is not None:
            raise error
        if message[1] is not None:
            raise OtherRankFailed(message[1])
        value: T = message[0]
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all of them, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def largest(self, value: int) -> int:
        """The largest value of all ranks."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def sum(self, value: int) -> int:
        """The sum of all ranks' values."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def _reduced(self, value: int, how: Any) -> int:
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(number, how)
        return int(number)


@contextmanager
def ranks_of(device: str) -> Iterator[tuple[World, str]]:
    """Joins the ranks that torchrun has started, if it has; gives the world and this rank's device.

    A group that is there already is taken as it is and left alone. Gloo connects processors; beside it NCCL connects
    GPUs, of which each rank of a machine takes its own.

    Args:
        device: What the configuration names; "cuda" becomes "cuda:N" for the N-th rank of the machine.
    """
    started = dist.is_torchelastic_launched() and not dist.is_initialized()
    if started:
        if not (device == "cpu" or device.startswith("cuda")):
            raise ValueError(f"train.device must be cpu or cuda where torchrun starts several ranks, got {device!r}")
        dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        if dist.is_initialized() and device == "cuda":
            device = f"cuda:{dist.get_node_local_rank(fallback_rank=0)}"
            torch.cuda.set_device(device)
        yield World(), device
    finally:
        if started:
            dist.destroy_process_group()
