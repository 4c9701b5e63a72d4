"""The ranks of a run: one process, or those that torchrun has started."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
ASK, ANSWER, HERE = "aquila2/ask/", "aquila2/answer/", "aquila2/here/"  # in the store, with a rank or a name behind
LOOK_SECONDS = 0.1
TELL_SECONDS = 60.0  # that the first rank stays to say why it ends, for others that are still starting


class OtherRankFailed(RuntimeError):
    """The first rank has failed and said why; the others have nothing to add."""


class World:
    """What ranks tell each other besides gradients. With one rank every method returns at once.

    Args:
        group: Those meant; all unless told.

    Attributes:
        rank: This process among them, 0 to size - 1.
        size: How many there are.
        group: The argument.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        shared = dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if shared else 0
        self.size = dist.get_world_size(group) if shared else 1

    @classmethod
    def alone(cls) -> World:
        """This rank without the others."""
        world = cls()
        world.rank, world.size = 0, 1
        return world

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
        dist.broadcast_object_list(message, group=self.group, group_src=0)
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
        dist.all_gather_object(values, value, group=self.group)
        return values

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Puts the first rank's values into the tensors of all."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, group=self.group, group_src=0)

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
        dist.all_reduce(number, how, group=self.group)
        return int(number)


def checksum(tensors: Iterable[Tensor]) -> int:
    """A 64-bit sum over the bits of tensors that no single change leaves as it was, nor an exchange of two."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for place, tensor in enumerate(tensors):
        bits = tensor.detach().contiguous().view(integers[tensor.element_size()])
        total += (2 * place + 1) * int(bits.sum(dtype=torch.int64))
    return total % (1 << 64)


@contextmanager
def ranks_of(device: str, prepare: Callable[[], None], timeout_minutes: float = 30.0) -> Iterator[tuple[World, str]]:
    """Joins the ranks that torchrun has started, if it has; gives the world and this rank's device.

    The first rank prepares before there is a group, whose members wait for each other no longer than its timeout: to
    read and tokenise all text may take much longer. A group that is there already is taken as it is and left alone.
    Gloo connects processors; beside it NCCL connects GPUs, of which each rank of a machine takes its own.

    Args:
        device: What the configuration names; "cuda" becomes "cuda:N" for the N-th rank of the machine.
        prepare: Called on the first rank only.
        timeout_minutes: How long a rank waits for another in what they do together.

    Raises:
        OtherRankFailed: On the other ranks, where `prepare` raises; the first one raises what it raised.
    """
    started = dist.is_torchelastic_launched() and not dist.is_initialized()
    if started:
        if not (device == "cpu" or device.startswith("cuda")):
            raise ValueError(f"train.device must be cpu or cuda where torchrun starts several ranks, got {device!r}")
        if device.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise ValueError(f"train.device must be cuda where a machine has several ranks, a GPU each, got {device!r}")
        patience = timedelta(minutes=timeout_minutes)
        store, rank, size = next(dist.rendezvous("env://", timeout=patience))
        store = meet(prepare, store, rank, size)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    try:
        if not started:
            World().tell(prepare)
        if dist.is_initialized() and device == "cuda":
            device = f"cuda:{dist.get_node_local_rank(fallback_rank=0)}"
            torch.cuda.set_device(device)
        yield World(), device
    finally:
        if started:
            dist.destroy_process_group()


def meet(prepare: Callable[[], None], store: dist.Store, rank: int, size: int) -> dist.Store:
    """Calls `prepare` on the first rank while the others look into the store, for as long as it takes.

    torchrun keeps one store over all its starts of the ranks, and its nodes may count these differently. So whatever is
    found there may be of an earlier start: a rank asks under a name that nobody had before, the first one answers that.

    Args:
        prepare: Called on the first rank only.
        store: What all ranks reach.
        rank: This process,
        size: and how many there are.

    Returns:
        The part of the store that this start of the ranks has for itself.

    Raises:
        OtherRankFailed: On the other ranks, where `prepare` raises; the first one raises what it raised.
    """
    own = uuid4().hex
    if rank:
        store.set(f"{ASK}{rank}", own)
        while not store.check([f"{ANSWER}{own}"]):  # where the first rank dies without a word, torchrun ends this one
            time.sleep(LOOK_SECONDS)
        start, _, said = store.get(f"{ANSWER}{own}").decode().partition(" ")
        store.set(f"{HERE}{start}/{rank}", "")
        if said:
            raise OtherRankFailed(said)
        return dist.PrefixStore(start, store)
    try:
        prepare()
    except BaseException as error:
        _tell(store, size, own, f"{error.__class__.__name__}: {error}", TELL_SECONDS)
        raise
    _tell(store, size, own, "", math.inf)
    return dist.PrefixStore(own, store)


def _tell(store: dist.Store, size: int, start: str, said: str, seconds: float) -> None:
    """Answers the other ranks, those that are still starting too, until all have heard it or the time is over."""
    end = time.monotonic() + seconds
    away = set(range(1, size))
    while away and time.monotonic() < end:
        for other in away:
            _answer(store, other, f"{start} {said}")
        away = {other for other in away if not store.check([f"{HERE}{start}/{other}"])}
        time.sleep(LOOK_SECONDS if away else 0)


def _answer(store: dist.Store, rank: int, answer: str) -> None:
    """Answers what a rank has asked last, if it has."""
    if store.check([f"{ASK}{rank}"]):
        store.set(f"{ANSWER}{store.get(f'{ASK}{rank}').decode()}", answer)
