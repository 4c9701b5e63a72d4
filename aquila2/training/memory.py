"""Keeping large buffers in the process, where the C library would return them to the kernel after every use."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from the heap and never to trim it; returns whether it took the settings.

    Without this every large activation is mapped, faulted in page by page and unmapped again, which costs several times
    the arithmetic that runs over it. Called once at the start of training.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, -1))
