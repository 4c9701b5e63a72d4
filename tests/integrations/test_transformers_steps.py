"""Decoder layers that `fuse` has changed, on the few rows of a generation's step."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from flagattn.integrations import _transformers_steps as steps  # noqa: E402
from flagattn.integrations import transformers as integration  # noqa: E402
from tests.integrations.test_transformers import FUSED, models_of, tokens  # noqa: E402

LAYERS = [name for name in FUSED if name != "gemma2"]
PARTS = ("input_layernorm", "self_attn", "self_attn.k_proj", "self_attn.o_proj", "post_attention_layernorm")
PARTS += ("mlp", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj")


class Calls:
    """How often each half of a layer was one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of = {"few_row_attention": 0, "few_row_gated_mlp": 0}
        for name in self.of:
            monkeypatch.setattr(steps, name, self._counting(name, getattr(steps, name)))

    def _counting(self, name: str, half: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.of[name] += 1
            return half(*args)

        return counted


@torch.no_grad()
def logits_of_steps(model: Any, count: int = 3, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Of a prompt, and of `count` steps of one token behind it."""
    ids = tokens(2, 9 + count)
    whole = torch.ones_like(ids) if mask is None else torch.cat((mask, torch.ones_like(ids[:, 9:])), 1)
    output = model(ids[:, :9], attention_mask=whole[:, :9], use_cache=True)
    found = [output.logits]
    for i in range(9, 9 + count):
        output = model(ids[:, i : i + 1], attention_mask=whole[:, : i + 1], past_key_values=output.past_key_values)
        found.append(output.logits)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_has_the_bits_of_its_layers_parts(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = models_of(name, "flagattn")
    for model in (whole, parts):
        integration.fuse(model.to(dtype))
    for layer in parts.model.layers:
        del layer.forward
    calls = Calls(monkeypatch)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    for padding in (None, mask):
        for ours, theirs in zip(logits_of_steps(whole, 3, padding), logits_of_steps(parts, 3, padding)):
            assert torch.equal(ours, theirs)
    # Two layers, two prompts, three steps each. A window's cache does not grow; Qwen3's attention has more norms.
    assert calls.of == {"few_row_attention": {"llama": 12, "qwen2": 6}.get(name, 0), "few_row_gated_mlp": 12}


def doubled(module: nn.Module, given: Any, output: Any) -> Any:
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


def hooked(part: nn.Module) -> None:
    part.register_forward_hook(doubled)


def replaced(part: nn.Module) -> None:
    before = part.forward
    part.forward = lambda *args, **kwargs: doubled(part, args, before(*args, **kwargs))  # type: ignore[method-assign]


def wrapped(part: nn.Module) -> None:
    """The usual patch: it copies the name and module of what it wraps."""
    before = part.forward

    @functools.wraps(before)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return doubled(part, args, before(*args, **kwargs))

    part.forward = forward  # type: ignore[method-assign]


def rebound(part: nn.Module) -> None:
    """The same, bound to the layer."""
    before = part.forward

    @functools.wraps(before)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return doubled(self, args, before(*args, **kwargs))

    part.forward = types.MethodType(forward, part)  # type: ignore[method-assign]


def partial(part: nn.Module) -> None:
    """As accelerate does for its hooks."""
    before = part.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return doubled(self, args, before(*args, **kwargs))

    part.forward = functools.update_wrapper(functools.partial(forward, part), before)  # type: ignore[method-assign]


REPLACEMENTS = [replaced, wrapped, rebound, partial]


@pytest.mark.parametrize("change", [hooked, *REPLACEMENTS])
@pytest.mark.parametrize("part", PARTS)
def test_a_changed_part_is_asked(part: str, change: Any) -> None:
    ours, theirs = models_of("llama", "eager")
    integration.fuse(ours)
    for model in (ours, theirs):
        change(model.model.layers[1].get_submodule(part))
    for a, b in zip(logits_of_steps(ours), logits_of_steps(theirs)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", REPLACEMENTS)
@pytest.mark.parametrize("part", ["", "input_layernorm", "self_attn", "mlp"])
def test_a_forward_that_somebody_else_has_replaced_stays(part: str, change: Any) -> None:
    ours, theirs = models_of("llama", "eager")
    places = [model.model.layers[1].get_submodule(part) for model in (ours, theirs)]
    for place in places:
        change(place)
    before = places[0].forward
    with pytest.warns(UserWarning, match=r"leaves 1 layers alone, .* \(the first is 'model\.layers\.1"):
        changed = integration.fuse(ours)
    for a, b in zip(logits_of_steps(ours), logits_of_steps(theirs)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert integration.unfuse(ours) == changed and places[0].forward is before


@pytest.mark.parametrize("change", REPLACEMENTS)
def test_what_wraps_a_fused_layer_stays_when_the_others_are_undone(change: Any) -> None:
    ours, theirs = models_of("llama", "eager")
    changed = integration.fuse(ours)
    for model in (ours, theirs):
        change(model.model.layers[1].mlp)
    patch = ours.model.layers[1].mlp.forward
    assert integration.unfuse(ours) == changed - 1 and ours.model.layers[1].mlp.forward is patch
    for a, b in zip(logits_of_steps(ours), logits_of_steps(theirs)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_copy_and_a_layer_with_its_class_s_forward_set_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = models_of("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = mlp.forward  # as accelerate leaves it where its hook is removed
    integration.fuse(model)
    twin = copy.deepcopy(model)
    calls = Calls(monkeypatch)
    for ours, theirs in zip(logits_of_steps(twin), logits_of_steps(model)):
        assert torch.equal(ours, theirs)
    assert calls.of["few_row_gated_mlp"] == 12
    assert integration.unfuse(twin) == integration.unfuse(model) > 0
    assert "forward" not in mlp.__dict__


def test_hidden_states_are_those_of_the_layers() -> None:
    ours, theirs = models_of("llama", "eager")
    integration.fuse(ours)
    with torch.no_grad():
        caches = [model(tokens(2, 9)).past_key_values for model in (ours, theirs)]
        found = [
            model(tokens(2, 1), past_key_values=cache, output_hidden_states=True).hidden_states
            for model, cache in zip((ours, theirs), caches)
        ]
    assert len(found[0]) == len(found[1]) == 3
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:output_attentions=True gives no attentions")
@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_steps_after_a_call_that_collected_are_one_call_again(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = models_of("llama")
    integration.fuse(model)
    before = logits_of_steps(model)
    with torch.no_grad():
        cache = model(tokens(2, 9), **{asked: True}).past_key_values
    attention = model.model.layers[0].self_attn
    assert attention._forward_hooks  # else there is nothing to see past
    calls = Calls(monkeypatch)
    for ours, theirs in zip(logits_of_steps(model), before):
        assert torch.equal(ours, theirs)
    assert calls.of == {"few_row_attention": 6, "few_row_gated_mlp": 6}
    with torch.no_grad():
        model(tokens(2, 1), past_key_values=cache, **{asked: True})
    assert calls.of["few_row_attention"] == 6  # the hooks were called
    seen = []
    attention.register_forward_hook(lambda module, args, output: seen.append(output))
    logits_of_steps(model)
    assert len(seen) == 4


def test_rows_with_gradients_and_many_rows_go_the_layers_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = models_of("llama")
    integration.fuse(model)
    calls = Calls(monkeypatch)
    cache = model(tokens(2, 9)).past_key_values
    model(tokens(2, 1), past_key_values=cache)
    with torch.no_grad():
        model(tokens(3, 3))
        assert not any(calls.of.values())
        model(tokens(2, 4))  # eight rows, but no cache with rows yet
        assert calls.of == {"few_row_attention": 0, "few_row_gated_mlp": 2}


def test_a_compiled_fused_model_is_one_graph() -> None:
    ours, theirs = models_of("llama", "eager")
    integration.fuse(ours)
    with torch.no_grad():
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        found, wanted = (model(tokens(2, 3), use_cache=False).logits for model in (compiled, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
