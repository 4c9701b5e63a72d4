"""Switching the CPU kernels' instruction set inside one process, for tests and benches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_LEVELS = ("scalar", "avx2", "avx512")


def available_cpu_levels() -> tuple[str, ...]:
    """The levels this machine can run, slowest first."""
    import flagattn

    current = flagattn.cpu_level()
    levels = tuple(level for level in CPU_LEVELS if torch.ops.flagattn.set_cpu_level(level))
    torch.ops.flagattn.set_cpu_level(current)
    return levels


@contextmanager
def set_cpu_level(level: str) -> Iterator[None]:
    """Run the block's CPU ops at `level`; raises ValueError where the machine lacks it."""
    import flagattn

    before = flagattn.cpu_level()
    if level not in CPU_LEVELS or not torch.ops.flagattn.set_cpu_level(level):
        raise ValueError(f"level must be one this machine has, {available_cpu_levels()}, not {level!r}")
    try:
        yield
    finally:
        torch.ops.flagattn.set_cpu_level(before)
