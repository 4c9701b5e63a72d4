"""Linear layers on few rows without gradients, as generation has them: several layers of one input in one call.

Torch's matrix products leave half of the memory's bandwidth unused there, and each call costs as much as a small layer.
Only layers of which it is certain that their forward pass is `x weight^T + bias` are taken; what hooks, adapters,
quantised or sharded weights, autocast or a transform make of a layer is left to the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from flagattn._autograd import are_transforms_active, is_forward_mode
from flagattn.linear import few_row_linear

MOST_ROWS = 8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_state: Any = _module


def joined(x: Tensor, *layers: nn.Module) -> Tensor | None:
    """What the layers give for x (..., in_features), side by side in the last dimension; None if one must be asked."""
    found = operands(x, *layers) if is_plain(x) else None
    return None if found is None else few_row_linear(x, *found)


def output(x: Tensor, layer: nn.Linear) -> Tensor | None:
    """The same from within the layer's forward pass, which hooks surround."""
    found = _parameters(x, (layer,)) if is_plain(x) else None
    return None if found is None else few_row_linear(x, *found)


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """What the layer gives for x."""
    y = joined(x, layer)
    return cast(Tensor, layer(x)) if y is None else y


def operands(x: Tensor, *layers: nn.Module) -> tuple[list[Tensor], list[Tensor]] | None:
    """The weights and biases of layers for a plain x, as `few_row_linear` takes them; None if one must be asked."""
    for layer in layers:
        if type(layer) is not nn.Linear or "forward" in layer.__dict__ or has_hooks(layer):
            return None
    return _parameters(x, layers)


def _parameters(x: Tensor, layers: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]] | None:
    weights, biases = [], []
    for layer in layers:
        parameters = layer._parameters
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if not fits(weight, x) or not (bias is None or fits(bias, x)):
            return None
        weights.append(weight)
        if bias is not None:
            biases.append(bias)
    return None if biases and len(biases) != len(weights) else (weights, biases)


def is_plain(x: Tensor) -> bool:
    """Whether these few rows are on the CPU and nobody but the caller looks at what becomes of them."""
    return (
        type(x) is Tensor
        and 0 < x.numel() <= MOST_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and 2 <= x.dim() <= 4
        and x.is_contiguous()
        and x.dtype in _DTYPES
        and x.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and not are_transforms_active()
        and not is_forward_mode()
    )


def has_hooks(module: nn.Module, is_idle: Callable[[Any], bool] = lambda hook: False) -> bool:
    """Whether somebody else wants to be called with what goes into the module or comes out.

    Forward hooks of which `is_idle` says that they would do nothing now do not count.
    """
    return bool(
        (module._forward_hooks and not all(map(is_idle, module._forward_hooks.values())))
        or module._forward_pre_hooks
        or _state._global_forward_hooks
        or _state._global_forward_pre_hooks
    )


def fits(parameter: Any, x: Tensor) -> bool:
    """Whether it lies beside x, which is on the CPU, in its dtype."""
    return (
        type(parameter) is nn.Parameter
        and parameter.dtype is x.dtype
        and parameter.is_cpu
        and parameter.stride(-1) == 1
    )
