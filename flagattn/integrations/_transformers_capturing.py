"""transformers' hooks that collect hidden states and attentions: they stay on a model after one call that asked."""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn


def is_idle(hook: Any) -> bool:
    """Whether the forward hook is one of those, and the call under way asks for nothing they collect."""
    code, collector = _capturing()
    return code is not None and getattr(hook, "__code__", None) is code and not collector.get()


@functools.cache
def _capturing() -> tuple[types.CodeType | None, Any]:
    """What all these hooks run, and the variable with what they collect; None where this release has no such hooks."""
    try:
        from transformers.utils import output_capturing

        install, collector = output_capturing.install_output_capuring_hook, output_capturing._active_collector
    except (ImportError, AttributeError):
        return None, None
    probe = nn.Module()
    install(probe, "hidden_states", 0)
    (hook,) = probe._forward_hooks.values()
    return hook.__code__, collector
