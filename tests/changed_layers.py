"""Linear layers that are more than their weight: hooks, a forward of their own, parametrizations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def with_hook(layer: nn.Linear) -> nn.Module:
    layer.register_forward_hook(lambda module, given, output: 2 * output)
    return layer


def with_pre_hook(layer: nn.Linear) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    return layer


def with_own_forward(layer: nn.Linear) -> nn.Module:
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)  # type: ignore[method-assign]
    return layer


def with_parametrization(layer: nn.Linear) -> nn.Module:
    return nn.utils.parametrize.register_parametrization(layer, "weight", Twice())


def with_weight_norm(layer: nn.Linear) -> nn.Module:
    nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(2)
    return layer
