"""What the host runner wrote down of one block (csrc/host_exec/recording.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that a warp did through a wrapper."""

    order: int  # among all events of the block, as the runner ran them
    kind: str  # a counted instruction, "special_function", "copy_commit" or "copy_wait"
    waits: bool  # at a barrier, not only arrives
    which: int  # a barrier's number or an mbarrier's address, -1 for bar.warp.sync; of copies the group
    phase: int  # of that barrier
    bytes: int  # of memory, as lanes ask for them
    bank_conflicts: int
    sectors: int

    @property
    def is_block_barrier(self) -> bool:
        return self.kind == "barrier" and self.which >= 0


@dataclass(frozen=True)
class Access:
    """One side of a race: an event of a warp, on behalf of a lane."""

    warp: int
    event: int  # index among the warp's
    lane: int
    by_engine: bool  # an asynchronous copy touched the memory, not the thread
    writes: bool


@dataclass(frozen=True)
class Race:
    """Two accesses to a word of shared memory, of which one writes, that nothing orders."""

    offset: int  # in bytes
    first: Access
    second: Access


@dataclass(frozen=True)
class Recording:
    """One block of one launch."""

    kernel: str
    blocks: int
    block: int
    threads: int
    shared_bytes: int
    warps: tuple[tuple[Event, ...], ...]
    phase_ends: tuple[tuple[int, int, int], ...]  # of mbarriers: order, address, phase
    races: tuple[Race, ...]
    failure: str  # what stopped the kernel, if anything
    is_cut: bool  # a warp did more than is recorded

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Recording:
        """From a dict of `_host_exec.recordings()`."""
        warps = tuple(tuple(Event(*event) for event in events) for events in fields["warps"])
        races = tuple(Race(offset, Access(*first), Access(*second)) for offset, first, second in fields["races"])
        return cls(**{**fields, "warps": warps, "races": races, "phase_ends": tuple(fields["phase_ends"])})

    @property
    def name(self) -> str:
        """The kernel's, after its argument's type."""
        return self.kernel.removesuffix("Arguments").removesuffix("Params")

    def count(self, kind: str) -> int:
        """Events of that kind, over all warps."""
        return sum(event.kind == kind for events in self.warps for event in events)

    def sum(self, field: str) -> int:
        """`bytes`, `bank_conflicts` or `sectors` of all events."""
        return sum(getattr(event, field) for events in self.warps for event in events)
