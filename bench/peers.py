"""What several benches measure themselves against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of the function for the shapes it will see; caches of earlier benches do not count against it."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
