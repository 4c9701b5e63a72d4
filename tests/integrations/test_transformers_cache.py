"""The caches of Hugging Face models that `fuse` has changed, against those of transformers."""

from __future__ import annotations

import copy
import io
import pickle
import types
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from flagattn.integrations import transformers as integration  # noqa: E402
from flagattn.testing import assert_close_to_oracle  # noqa: E402
from tests.integrations.test_transformers import generations, models_of, tokens  # noqa: E402


def test_a_fused_model_appends_in_place() -> None:
    (fused,) = models_of("llama")
    integration.fuse(fused)
    with torch.no_grad():
        cache = fused(tokens(2, 9)).past_key_values
        fused(tokens(2, 1), past_key_values=cache)  # the cache makes its layers with the first rows
        before = cache.layers[1].keys
        fused(tokens(2, 3), past_key_values=cache)
    after = cache.layers[1].keys
    assert after.shape == (2, 2, 13, 8) and cache.get_seq_length() == 13
    assert after.data_ptr() == before.data_ptr() and torch.equal(after[:, :, :10], before)


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, count, 8, generator=generator), torch.randn(2, 3, count, 16, generator=generator)


def layer_pair() -> tuple[Any, Any]:
    """A growing layer and the one of transformers that it stands for."""
    from transformers.cache_utils import DynamicLayer

    from flagattn.integrations._transformers_cache import GrowingLayer

    return GrowingLayer(), DynamicLayer()


@pytest.mark.parametrize("inference", [False, True])
def test_a_growing_layer_holds_what_a_dynamic_one_does(inference: bool) -> None:
    """Every way in which transformers changes a cache, each followed by new rows, in the original and in copies."""
    changes: list[Any] = [
        lambda layer: layer,
        lambda layer: layer.crop(-2),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.batch_repeat_interleave(2) or layer.batch_select_indices(torch.tensor([0, 3])),
        lambda layer: layer.reset(),
    ]
    pairs = [layer_pair()]
    with torch.inference_mode(inference), torch.no_grad():
        for step in range(40):
            for pair in pairs:
                for layer in pair:
                    changes[step * 7 % 31 % len(changes)](layer)
                    layer.update(*rows(1 + step % 3 * 40, step))
            if step in (5, 17):  # a saved prompt, deep and shallow: both go on by themselves
                pairs += [copy.deepcopy(pairs[0]), tuple(copy.copy(layer) for layer in pairs[0])]
            for ours, theirs in pairs:
                assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
                assert ours.get_seq_length() == theirs.get_seq_length()
    for ours, theirs in pairs:  # inference tensors may not be written to outside
        with torch.no_grad():
            ours.update(*rows(2, 50)), theirs.update(*rows(2, 50))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


@torch.no_grad()
def grown_pair() -> tuple[Any, Any]:
    """`layer_pair` with seven rows, behind which the growing one has room."""
    pair = layer_pair()
    for layer in pair:
        layer.update(*rows(5, 0))
        layer.update(*rows(2, 1))
    return pair


@torch.no_grad()
def test_rows_once_handed_out_do_not_change() -> None:
    layer, _ = grown_pair()
    first = layer.keys
    kept = first.clone()
    twin = copy.copy(layer)
    for layer_, seed in ((layer, 1), (twin, 2), (layer, 3)):
        layer_.update(*rows(1, seed))
    layer.crop(-3)
    layer.update(*rows(4, 4))
    assert torch.equal(first, kept)


@torch.no_grad()
def test_shallow_copies_share_rows_but_no_room() -> None:
    layer, _ = grown_pair()
    twins = [copy.copy(layer), copy.copy(layer)]
    assert all(twin.keys is layer.keys for twin in twins)
    for seed, twin in enumerate(twins):
        twin.update(*rows(1, seed))
    assert len({holder.keys.data_ptr() for holder in (layer, *twins)}) == 3


@torch.no_grad()
@pytest.mark.parametrize("saved", ["pickle", "torch.save", "deepcopy"])
def test_saved_layers_hold_their_rows_only(saved: str) -> None:
    layer, theirs = grown_pair()
    size = len(pickle.dumps(layer))
    assert size < len(pickle.dumps(theirs)) + 500
    if saved == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(layer) if saved == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert other.keys.untyped_storage().nbytes() == other.keys.numel() * other.keys.element_size()
    for step in (2, 3):
        for each in (other, theirs):
            each.update(*rows(1, step))
            each.crop(-1)
            each.update(*rows(2, step + 10))
    assert torch.equal(other.keys, theirs.keys) and torch.equal(other.values, theirs.values)
    assert layer.get_seq_length() == 7


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.reset(),
        lambda layer: layer.crop(-2),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.batch_select_indices(torch.tensor([0])),
    ],
    ids=["reset", "crop", "reorder", "repeat", "select"],
)
def test_a_room_is_freed_with_the_rows_in_it(change: Any) -> None:
    layer, _ = grown_pair()
    assert layer._key_room is not None and layer._value_room is not None
    change(layer)
    assert layer._key_room is None and layer._value_room is None


@torch.no_grad()
def test_rows_of_another_batch_are_refused_as_by_a_dynamic_layer() -> None:
    for layer in grown_pair():
        with pytest.raises(RuntimeError, match="must match except in dimension 2"):
            layer.update(*(new[:1] for new in rows(1, 2)))
    fused, _ = models_of("llama", "eager")
    integration.fuse(fused)
    for before, after in ((2, 1), (1, 2)):
        cache = fused(tokens(before, 9)).past_key_values
        fused(tokens(before, 1), past_key_values=cache)
        with pytest.raises(RuntimeError, match="must match except in dimension 2"):
            fused(tokens(after, 1), past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_of_another_dtype_are_joined_as_by_a_dynamic_layer(dtype: torch.dtype) -> None:
    ours, theirs = grown_pair()
    for layer in (ours, theirs):
        layer.update(*(new.to(dtype) for new in rows(3, 2)))
        layer.update(*rows(1, 3))
    assert ours.keys.dtype == theirs.keys.dtype
    assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


@torch.no_grad()
def test_a_step_under_autocast_leaves_the_cache_its_dtype() -> None:
    fused, theirs = models_of("llama", "flagattn")
    integration.fuse(fused)
    oracle = models_of("llama", "eager")[1].double()
    found = []
    for model in (fused, theirs, oracle):
        cache = transformers.DynamicCache()
        model(tokens(2, 9), past_key_values=cache)
        with torch.autocast("cpu", torch.bfloat16, enabled=model is not oracle):
            model(tokens(2, 1, seed=2), past_key_values=cache)
        model(tokens(2, 1, seed=3), past_key_values=cache)
        found.append(cache.layers[0].keys)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert_close_to_oracle(*found, "keys")  # one step's rows are bf16, in ours and in plain


@torch.no_grad()
def test_head_dims_that_attention_pads_go_transformers_way() -> None:
    ours, theirs = layer_pair()
    for layer in (ours, theirs):
        for step in range(3):
            layer.update(torch.full((1, 2, 1, 12), float(step)), torch.full((1, 2, 1, 12), float(step)))
    assert torch.equal(ours.keys, theirs.keys) and ours._key_room is None


@pytest.mark.parametrize("pads", [[30, 0], [8, 20]])
def test_a_left_pad_may_be_longer_than_what_is_cached(pads: list[int]) -> None:
    fused, theirs = models_of("llama", "eager")
    integration.fuse(fused)
    mask = (torch.arange(36) >= torch.tensor(pads).unsqueeze(1)).long()
    with_chunks = [
        generations(m, tokens(2, 36), attention_mask=mask, prefill_chunk_size=8, max_new_tokens=4)
        for m in (fused, theirs)
    ]
    assert torch.equal(with_chunks[0].sequences, with_chunks[1].sequences)
    found = []
    with torch.no_grad():
        for model in (fused, theirs):  # a prefix cached without a mask, which then covers it
            cache = model(tokens(2, 6)).past_key_values
            logits = model(tokens(2, 30, seed=2), attention_mask=mask, past_key_values=cache).logits
            found.append(logits[mask[:, 6:].bool()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_caches_with_an_update_of_their_own_are_asked() -> None:
    class Counting(transformers.DynamicCache):
        count = 0

        def update(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().update(*args, **kwargs)

    fused, _ = models_of("llama", "eager")
    integration.fuse(fused)
    caches = [Counting(), transformers.DynamicCache()]
    plain, calls = caches[1].update, []

    def own_update(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args[2])
        return plain(*args, **kwargs)

    caches[1].update = types.MethodType(own_update, caches[1])
    with torch.no_grad():
        for cache in caches:
            for step in range(4):
                fused(tokens(2, 1, seed=step), past_key_values=cache)
    assert caches[0].count == len(calls) == 4 * 2  # layers


def test_gradients_flow_through_a_fused_models_cache() -> None:
    fused, theirs = models_of("llama", "eager")
    integration.fuse(fused)
    gradients = []
    for model in (fused, theirs):
        cache = model(tokens(2, 6)).past_key_values
        model(tokens(2, 1, seed=2), past_key_values=cache).logits.square().sum().backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def assert_gradients_are_those_of_a_plain_model(gradients_of: Any) -> None:
    fused, plain = models_of("llama", "flagattn")
    integration.fuse(fused)
    for ours, theirs in zip(gradients_of(fused), gradients_of(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_a_prefix_in_the_cache_of_a_frozen_model_is_trained() -> None:
    def gradients_of(model: Any) -> list[Any]:
        model.requires_grad_(False)
        torch.manual_seed(3)
        prefix = [torch.randn(2, 2, 5, 8, requires_grad=True) for _ in range(4)]
        cache = transformers.DynamicCache()
        for index in range(2):
            cache.update(*prefix[2 * index : 2 * index + 2], index)
        model(tokens(2, 6), past_key_values=cache).logits.square().sum().backward()
        return [rows.grad for rows in prefix]

    assert_gradients_are_those_of_a_plain_model(gradients_of)


def test_queries_are_trained_over_chunks_on_one_cache() -> None:
    def gradients_of(model: Any) -> list[Any]:
        weight = model.requires_grad_(False).model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
        cache = transformers.DynamicCache(config=model.config)
        chunks = [model(tokens(2, 6, seed=step), past_key_values=cache).logits.square().sum() for step in range(3)]
        sum(chunks, torch.zeros(())).backward()
        return [weight.grad]

    assert_gradients_are_those_of_a_plain_model(gradients_of)


def test_rows_behind_learnable_ones_may_be_joined_twice() -> None:
    gradients = []
    for layer in layer_pair():
        learnable = [operand.requires_grad_() for operand in rows(5, 0)]
        layer.update(*learnable)
        loss = sum(layer.update(*rows(1, step))[0].square().sum() for step in (1, 2))
        loss.backward()
        gradients.append(learnable[0].grad)
    assert torch.equal(*gradients)
