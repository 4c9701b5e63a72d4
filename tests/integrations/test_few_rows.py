"""When the linear layers of a fused model take the product of few rows, and when they are asked themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from flagattn.integrations import _few_rows as few_rows
from tests.changed_layers import (
    with_hook,
    with_own_forward,
    with_parametrization,
    with_pre_hook,
    with_weight_norm,
)

X = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))


def layers(**options: Any) -> list[nn.Linear]:
    torch.manual_seed(1)
    return [nn.Linear(24, outputs, **options) for outputs in (16, 8, 8)]


def asked(x: Tensor, *modules: nn.Module) -> Tensor:
    return torch.cat([module(x) for module in modules], -1)


@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_one_input_are_one_product(bias: bool) -> None:
    modules = layers(bias=bias)
    with torch.no_grad():
        torch.testing.assert_close(few_rows.joined(X, *modules), asked(X, *modules))
        torch.testing.assert_close(few_rows.output(X, modules[0]), modules[0](X))
        assert torch.equal(few_rows.linear(X, modules[0]), few_rows.joined(X, modules[0]))
    with torch.inference_mode():
        torch.testing.assert_close(few_rows.joined(X, *modules), asked(X, *modules))


def test_what_is_left_to_the_layers() -> None:
    modules = layers()
    assert few_rows.joined(X, *modules) is None  # a gradient is asked for
    with torch.no_grad():
        assert few_rows.joined(X, *modules) is not None
        many = torch.randn(few_rows.MOST_ROWS + 1, 24)
        assert few_rows.joined(many, *modules) is None
        assert few_rows.joined(many[:0], *modules) is None
        assert few_rows.joined(X.bfloat16(), *modules) is None
        assert few_rows.joined(X[0, 0], *modules) is None
        assert few_rows.joined(X.transpose(0, 1), *modules) is None
        assert few_rows.joined(nn.Parameter(X), *modules) is None
        assert few_rows.joined(X.to("meta"), *modules) is None
        assert few_rows.joined(X, modules[0], nn.Linear(24, 8, bias=False)) is None  # a bias here, and none there
        with torch.autocast("cpu", torch.bfloat16):
            assert few_rows.joined(X, *modules) is None
        with forward_ad.dual_level():
            assert few_rows.joined(X, *modules) is None
        for matrix in X:  # under a transform
            found = torch.vmap(lambda row: few_rows.linear(row, modules[0]))(matrix)
            torch.testing.assert_close(found, modules[0](matrix))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_turned_weight(layer: nn.Linear) -> nn.Module:
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return layer


def with_weight_of_its_own_kind(layer: nn.Linear) -> nn.Module:
    class Kind(nn.Parameter):
        pass

    layer.weight = Kind(layer.weight.detach())
    return layer


def with_quantised_weight(layer: nn.Linear) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear})[0]


CHANGES = (
    with_hook,
    with_pre_hook,
    with_own_forward,
    with_parametrization,
    with_turned_weight,
    with_weight_of_its_own_kind,
    lambda layer: Doubled(24, 16, bias=False),
    lambda layer: nn.Sequential(layer),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [*CHANGES, with_weight_norm, with_quantised_weight])
def test_a_changed_layer_is_asked(change: Any) -> None:
    layer = change(layers(bias=False)[0])
    with torch.no_grad():
        wanted = layer(X)
        assert few_rows.joined(X, layer) is None
        assert torch.equal(few_rows.linear(X, layer), wanted)


def test_hooks_of_all_modules_are_called() -> None:
    (layer, *_) = layers()
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, output: called.append(module))
    try:
        with torch.no_grad():
            few_rows.linear(X, layer)
    finally:
        handle.remove()
    assert called == [layer]


def test_compiled_layers_are_torchs() -> None:
    (layer, *_) = layers()
    with torch.no_grad():
        compiled = torch.compile(lambda x: few_rows.linear(x, layer), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(X), layer(X))
