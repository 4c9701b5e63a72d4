"""Switching the CPU kernels' instruction set inside one process, for tests and benches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flagattn.build_info import CPU_LEVELS, cpu_level


def available_cpu_levels() -> tuple[str, ...]:
    """The levels that this machine can run, slowest first."""
    before = cpu_level()
    available = tuple(level for level in CPU_LEVELS if _try(level))
    _try(before)
    return available


@contextmanager
def set_cpu_level(level: str) -> Iterator[None]:
    """Run the block's CPU ops at `level`; raises ValueError where the machine lacks it."""
    before = cpu_level()
    if level not in CPU_LEVELS or not _try(level):
        raise ValueError(f"level is {level!r}; this machine has {', '.join(available_cpu_levels())}")
    try:
        yield
    finally:
        _try(before)


def _try(level: str) -> bool:
    taken: bool = torch.ops.flagattn.set_cpu_level(level)
    return taken
