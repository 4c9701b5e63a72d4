"""Hooks, adapters and parametrizations of single layers act in training as they do in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from aquila2 import Aquila2ForCausalLM
from aquila2.linear import Linear, are_plain
from tests.changed_layers import (
    with_hook,
    with_own_forward,
    with_parametrization,
    with_pre_hook,
    with_weight_norm,
)

LAYERS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"]


class Adapter(nn.Module):
    """A low-rank update beside a layer, as LoRA has it; its weight is the layer's, as PEFT's is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.up(self.down(x))
        return y


class Kind(nn.Parameter):
    pass


def with_keyword_hook(layer: nn.Linear) -> nn.Module:
    layer.register_forward_hook(lambda module, args, kwargs, output: 2 * output, with_kwargs=True)
    return layer


CHANGES = [
    with_hook,
    with_pre_hook,
    with_keyword_hook,
    with_own_forward,
    with_parametrization,
    with_weight_norm,
    Adapter,
]


def owner_of(model: Aquila2ForCausalLM, name: str) -> Any:
    layer = model.model.layers[1]
    return {"lm_head": model, "gate_proj": layer.mlp, "up_proj": layer.mlp}.get(name, layer.self_attn)


def batch(model: Aquila2ForCausalLM) -> tuple[Tensor, Tensor]:
    ids = torch.randint(model.config.vocab_size, (2, 9))
    return ids, ids.roll(-1, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_the_loss_is_that_of_evaluation(
    tiny_model: Aquila2ForCausalLM, name: str, change: Callable[[nn.Linear], nn.Module]
) -> None:
    ids, targets = batch(tiny_model)
    before = tiny_model.loss(ids, targets)
    owner = owner_of(tiny_model, name)
    assert are_plain(getattr(owner, name))
    setattr(owner, name, change(getattr(owner, name)))
    assert not are_plain(getattr(owner, name))
    with torch.no_grad():
        logits, wanted = tiny_model(ids, targets)
    torch.testing.assert_close(tiny_model.loss(ids, targets), wanted)
    torch.testing.assert_close(tiny_model(ids, targets).logits, logits, rtol=1e-4, atol=1e-5)
    assert (wanted - before).abs() > 1e-4  # the change shows


@pytest.mark.parametrize("name", LAYERS)
def test_backward_hooks_are_called(tiny_model: Aquila2ForCausalLM, name: str) -> None:
    ids, targets = batch(tiny_model)
    layer = getattr(owner_of(tiny_model, name), name)
    seen: list[str] = []
    handles = [
        layer.register_full_backward_hook(lambda module, dx, dy: seen.append("after")),
        layer.register_full_backward_pre_hook(lambda module, dy: seen.append("before")),
    ]
    tiny_model.loss(ids, targets).backward()
    assert seen == ["before", "after"]
    for handle in handles:
        handle.remove()
    tiny_model.loss(ids, targets).backward()
    assert len(seen) == 2 and are_plain(layer)


def test_an_adapter_learns(tiny_model: Aquila2ForCausalLM) -> None:
    for name in LAYERS:
        owner = owner_of(tiny_model, name)
        setattr(owner, name, Adapter(getattr(owner, name)))
    tiny_model.loss(*batch(tiny_model)).backward()
    for name in LAYERS:
        adapter = getattr(owner_of(tiny_model, name), name)
        assert adapter.up.weight.grad.abs().max() > 0 and adapter.layer.weight.grad.abs().max() > 0, name


def test_a_saved_output_of_the_head_is_not_overwritten(tiny_model: Aquila2ForCausalLM) -> None:
    saved: list[Tensor] = []
    tiny_model.lm_head.register_forward_hook(lambda module, given, output: saved.append(output.detach()))
    ids, targets = batch(tiny_model)
    loss = tiny_model.loss(ids, targets)
    kept = saved[0].clone()
    loss.backward()
    assert torch.equal(saved[0], kept)


def test_hooks_of_all_modules_are_called(tiny_model: Aquila2ForCausalLM) -> None:
    called: list[nn.Module] = []
    handle = torch_module.register_module_forward_hook(lambda module, given, output: called.append(module))
    try:
        tiny_model.loss(*batch(tiny_model))
    finally:
        handle.remove()
    assert {module for module in tiny_model.modules() if isinstance(module, Linear)} <= set(called)


def test_a_weight_of_its_own_kind_is_left_to_its_layer() -> None:
    layer = Linear(4, 4, bias=False)
    assert are_plain(layer)
    layer.weight = Kind(layer.weight.detach())
    assert not are_plain(layer)


def idle(*given: Any) -> None:
    pass


HANDLES: dict[str, Callable[[nn.Module], Any]] = {
    "of the head": lambda head: head.register_forward_hook(idle),
    "before the head": lambda head: head.register_forward_pre_hook(idle),
    "of all modules": lambda head: torch_module.register_module_forward_hook(idle),
}


@pytest.mark.parametrize("invariant", [False, True], ids=["torch's product", "batch invariant"])
@pytest.mark.parametrize("kind", HANDLES)
def test_an_idle_hook_changes_nothing_under_autocast(
    tiny_model: Aquila2ForCausalLM, kind: str, invariant: bool
) -> None:
    tiny_model.set_batch_invariant(invariant)
    ids, targets = batch(tiny_model)
    weights = list(tiny_model.parameters())
    if kind == "of all modules":  # then queries, keys and values are no joint product, and dx is rounded thrice
        weights = [tiny_model.lm_head.weight, tiny_model.model.norm.weight]

    def result() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = tiny_model.loss(ids, targets, reduction="none")
        assert loss.dtype == torch.float32
        return [loss.detach(), *torch.autograd.grad(loss.mean(), weights)]

    plain = result()
    handle = HANDLES[kind](tiny_model.lm_head)
    try:
        hooked = result()
    finally:
        handle.remove()
    for ours, expected in zip(hooked, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_head_works_in_fp32_under_autocast(
    tiny_model: Aquila2ForCausalLM, change: Callable[[nn.Linear], nn.Module]
) -> None:
    ids, targets = batch(tiny_model)
    tiny_model.lm_head = change(tiny_model.lm_head)  # type: ignore[assignment]
    seen: list[torch.dtype] = []
    tiny_model.lm_head.register_forward_hook(lambda module, given, output: seen.extend((given[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        tiny_model.loss(ids, targets)
    assert seen == [torch.float32] * 2


def test_a_head_of_sixteen_bits_is_called_as_it_is(tiny_model: Aquila2ForCausalLM) -> None:
    tiny_model.bfloat16()
    ids, targets = batch(tiny_model)
    seen: list[torch.dtype] = []
    tiny_model.lm_head.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    loss = tiny_model.loss(ids, targets)
    assert loss.dtype == torch.float32 and seen == [torch.bfloat16]
    loss.backward()


def test_a_mixed_head_is_left_to_autocast(tiny_model: Aquila2ForCausalLM) -> None:
    ids, targets = batch(tiny_model)
    adapter = Adapter(tiny_model.lm_head)
    adapter.down.bfloat16()
    tiny_model.lm_head = adapter  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiny_model.loss(ids, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and adapter.down.weight.grad is not None
