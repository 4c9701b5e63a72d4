"""Ranks as forks of one process that has imported torch once, connected by gloo."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist


def fork_ranks(size: int, body: Callable[[int], object]) -> list[int]:
    """Calls `body(rank)` in `size` processes of one group; returns their exit statuses, negative for signals.

    The calling process must not have run torch's thread pool, which forks do not survive.
    """
    torch.set_num_threads(1)
    store = f"{tempfile.mkdtemp()}/store"
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            status = 1
            try:
                dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
                body(rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
