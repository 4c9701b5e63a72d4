"""Whose forward pass a layer has: its class's, one of this package's, or somebody else's.

Ours are known by identity. Names say nothing: functools.wraps and accelerate's hooks copy those of what they wrap.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn

from flagattn.integrations import _few_rows as few_rows

_SILU = ("SiLU", "SiLUActivation")  # torch's class and transformers'

_given: set[Callable[..., Any]] = set()  # a few functions, which their makers cache


def give_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Makes `forward`, which takes the module first, the module's forward pass."""
    _given.add(forward)
    module.forward = types.MethodType(forward, module)


def take_forward(module: nn.Module) -> bool:
    """Gives the module its class's forward pass back if `give_forward` replaced it; returns whether."""
    if not is_fused(module):
        return False
    del module.forward
    return True


def is_fused(module: nn.Module) -> bool:
    """Whether the module's forward pass is one of this package, with nothing around it."""
    return _function_of(module) in _given


def has_foreign_forward(module: nn.Module) -> bool:
    """Whether somebody else has replaced the module's forward pass, or wrapped it."""
    if "forward" not in module.__dict__:
        return False
    function = _function_of(module)
    return function is not type(module).forward and function not in _given


def activates_by_silu(mlp: nn.Module) -> bool:
    """Whether the MLP's activation is SiLU, and nobody has replaced its forward pass or looks at it."""
    activation = mlp._modules.get("act_fn")
    return (
        activation is not None
        and type(activation).__name__ in _SILU
        and "forward" not in activation.__dict__
        and not few_rows.has_hooks(activation)
    )


def _function_of(module: nn.Module) -> Callable[..., Any] | None:
    """What is bound to the module as its own forward pass, if something is."""
    forward = module.__dict__.get("forward")
    return forward.__func__ if type(forward) is types.MethodType and forward.__self__ is module else None
