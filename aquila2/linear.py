"""The linear layers of the model: torch's product, or the one whose rows do not depend on their batch."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

import flagattn

_state: Any = _module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_ALL = tuple("_global" + hooks for hooks in _HOOKS)


class Linear(nn.Linear):
    """torch.nn.Linear, which `batch_invariant` switches to `flagattn.batch_invariant_linear`."""

    batch_invariant = False

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x weight^T + bias by the product this layer is switched to."""
        return (flagattn.batch_invariant_linear if self.batch_invariant else F.linear)(x, weight, bias)


def are_plain(*layers: nn.Module) -> bool:
    """Whether each layer is a `Linear` and calling it does nothing but its product.

    Only then may a product be taken without calling the layer: what hooks, adapters, parametrizations or quantised
    weights make of a layer is left to the layer.
    """
    if any(getattr(_state, hooks) for hooks in _HOOKS_OF_ALL):
        return False
    return all(
        type(layer) is Linear
        and type(layer.weight) is nn.Parameter
        and (layer.bias is None or type(layer.bias) is nn.Parameter)
        and "forward" not in layer.__dict__
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        for layer in layers
    )


def is_fp32(layer: nn.Module) -> bool:
    """Whether all floating-point numbers that a layer holds are fp32."""
    held = chain(layer.parameters(), layer.buffers())
    return all(tensor.dtype == torch.float32 for tensor in held if tensor.is_floating_point())
