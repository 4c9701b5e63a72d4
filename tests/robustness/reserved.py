"""Address space for tensors whose elements lie far apart."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import Tensor


def reserved(elements: int, dtype: torch.dtype) -> Tensor:
    """A flat tensor that takes memory only where it is touched; skips the test where the machine has no such range.

    It is a mapping of its own, returned when the tensor goes: the heap may have been told to keep what is freed, as
    training does, and a process that holds more than the machine's memory cannot fork.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        pages = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    except OSError:
        pytest.skip(f"this machine reserves no address range of {elements} elements")
    return torch.frombuffer(pages, dtype=dtype)
