"""Hugging Face models with attn_implementation="flagattn" against the same models with eager attention and SDPA."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from flagattn.integrations import transformers as integration  # noqa: E402

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 5}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"sliding_window": 6, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 4},
    ),
}


FUSED = {**MODELS, "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {})}


def models_of(name: str, *others: str) -> list[Any]:
    """One model of random weights per implementation: ours first, then the others."""
    integration.register()
    torch.manual_seed(0)
    model_class, config_class, options = FUSED[name]
    config = getattr(transformers, config_class)(**SMALL, **options)
    ours = getattr(transformers, model_class)(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = []
    for implementation in ("flagattn", *others):
        model = copy.deepcopy(ours)
        model.set_attn_implementation(implementation)
        found.append(model)
    return found


def peers_of(name: str) -> tuple[str, ...]:
    return ("eager",) if name == "gemma2" else ("eager", "sdpa")  # SDPA has no softcap


def tokens(batch: int, seqlen: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, 64, (batch, seqlen), generator=torch.Generator().manual_seed(seed))


def results(model: Any, counts: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits where `counts`, and the gradient of every parameter."""
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights * counts.unsqueeze(-1)).sum().backward()
    return logits[counts].detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(name: str, counts: torch.Tensor, **inputs: Any) -> None:
    ours, *others = (results(model, counts, **inputs) for model in models_of(name, *peers_of(name)))
    for theirs in others:
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
        assert ours[1].keys() == theirs[1].keys()
        for key, gradient in theirs[1].items():
            torch.testing.assert_close(ours[1][key], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str) -> None:
    assert_same(name, torch.ones(2, 13, dtype=torch.bool), input_ids=tokens(2, 13))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(name: str, side: str) -> None:
    mask = torch.ones(3, 13, dtype=torch.long)
    if side == "left":
        mask[0, :4], mask[2, :9] = 0, 0
    else:
        mask[0, -4:], mask[2, -9:] = 0, 0
    assert_same(name, mask.bool(), input_ids=tokens(3, 13), attention_mask=mask)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("decoded", [5, 8])
def test_cross_attention_keeps_every_query(side: str, decoded: int) -> None:
    integration.register()
    torch.manual_seed(0)
    sizes = {"d_model": 32, "vocab_size": 64, "max_position_embeddings": 32, "init_std": 0.5, "dropout": 0.0}
    per_side = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    sides = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in per_side.items()}
    ours = transformers.BartModel(transformers.BartConfig(**sizes, **sides)).eval()
    theirs = copy.deepcopy(ours)
    ours.set_attn_implementation("flagattn")
    theirs.set_attn_implementation("sdpa")
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[0, -3:], mask[2, -6:] = 0, 0
    mask = mask.flip(1) if side == "left" else mask
    inputs = {"input_ids": tokens(3, 8), "attention_mask": mask, "decoder_input_ids": tokens(3, decoded, seed=2)}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found, expected = (model(**inputs).last_hidden_state for model in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_batches_with_holes() -> None:
    # Without a window, whose keys would be counted among those that count, as flash attention does.
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[1, 3] = mask[1, 7] = 0
    assert_same("llama", mask.bool(), input_ids=tokens(3, 13), attention_mask=mask)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [[[5, 1, 7]], [[5, 1, 7], [2, 8, 3]]], ids=["one row", "two rows"])
def test_packed_sequences_do_not_see_each_other(name: str, lengths: list[list[int]]) -> None:
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    ids = tokens(len(lengths), 13)
    assert_same(name, torch.ones_like(ids, dtype=torch.bool), input_ids=ids, position_ids=positions)
    ours, _ = models_of(name, "eager")
    with torch.no_grad():
        packed = ours(input_ids=ids, position_ids=positions, use_cache=False).logits
        begin = 0
        for length in lengths[0]:
            alone = ours(input_ids=ids[:1, begin : begin + length], use_cache=False).logits
            torch.testing.assert_close(packed[:1, begin : begin + length], alone, rtol=1e-4, atol=1e-4)
            begin += length


def test_one_tensor_of_positions_serves_any_batch() -> None:
    ours, theirs = models_of("llama", "sdpa")
    ids, positions = tokens(3, 8), torch.arange(4).repeat(2).unsqueeze(0)
    with torch.no_grad():
        for batch in (1, 3, 1):
            found, expected = (m(ids[:batch], position_ids=positions, use_cache=False).logits for m in (ours, theirs))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("begins", [0, 10])
def test_positions_that_jump_are_packed_where_transformers_packs_them(
    use_cache: bool, masked: bool, begins: int
) -> None:
    ours, theirs = models_of("llama", "sdpa")
    ids = tokens(3, 8)
    positions = torch.cat((torch.arange(4), torch.arange(begins, begins + 4))).expand(3, -1)
    inputs = {"position_ids": positions, "attention_mask": torch.ones_like(ids) if masked else None}
    with torch.no_grad():
        found, expected = (m(ids, use_cache=use_cache, **inputs).logits for m in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_row_starts_anew_at_position_zero_as_in_flash_attention() -> None:
    # With a cache, which a model has unless it is told otherwise, transformers' mask does not tell of packing.
    ours, _ = models_of("llama", "eager")
    ids, positions = tokens(1, 13), torch.cat([torch.arange(n) for n in (5, 1, 7)]).unsqueeze(0)
    with torch.no_grad():
        cached = ours(ids, position_ids=positions).logits
        assert torch.equal(cached, ours(ids, position_ids=positions, use_cache=False).logits)


def test_packed_rows_compile_into_one_graph() -> None:
    ours, _ = models_of("llama", "eager")
    ids, positions = tokens(2, 13), torch.cat([torch.arange(n) for n in (5, 1, 7)]).expand(2, -1)
    with torch.no_grad():
        expected = ours(ids, position_ids=positions, use_cache=False).logits
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        found = compiled(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_lengths_of_packed_sequences_may_be_given() -> None:
    ours, _ = models_of("llama", "eager")
    ids, cu = tokens(1, 13), torch.tensor([0, 5, 6, 13], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in (5, 1, 7)]).unsqueeze(0)
    packing = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 7, "max_length_k": torch.tensor(7)}
    with torch.no_grad():
        given = ours(input_ids=ids, position_ids=positions, use_cache=False, **packing).logits
        found = ours(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert torch.equal(given, found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_greedy_generation_gives_the_same_tokens(name: str, cache: str, padded: bool) -> None:
    ids = tokens(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5], mask[2, :2] = 0, 0
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "disable_compile": True}
    if cache == "static":
        options["cache_implementation"] = "static"
    generated = [
        model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options)
        for model in models_of(name, *peers_of(name))
    ]
    for theirs in generated[1:]:
        assert torch.equal(generated[0].sequences, theirs.sequences)
        for ours, other in zip(generated[0].logits, theirs.logits):
            torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3)


def test_prefill_in_pieces_equals_the_whole() -> None:
    ours, _ = models_of("mistral", "eager")
    ids = tokens(2, 13)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        whole = ours(input_ids=ids, attention_mask=mask, use_cache=False).logits
        cached = ours(input_ids=ids[:, :8], attention_mask=mask[:, :8])
        rest = ours(input_ids=ids[:, 8:], attention_mask=mask, past_key_values=cached.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 8:], rtol=1e-4, atol=1e-4)


def test_bf16_and_gradient_checkpointing() -> None:
    ours, eager = models_of("llama", "eager")
    ids = tokens(2, 11)
    found = []
    for model in (ours, eager):
        model = model.bfloat16().train()
        model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append(model.model.embed_tokens.weight.grad.float())
    assert (found[0] - found[1]).norm() <= 0.05 * found[1].norm()


def test_a_compiled_model_is_one_graph() -> None:
    ours, _ = models_of("llama", "eager")
    ids, positions = tokens(2, 11), torch.arange(11).unsqueeze(0)

    class Whole(torch.nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            module = ours.model.layers[0].self_attn
            return integration.attention(module, q, q[:, :2], q[:, :2], None, scaling=0.3)[0]

    q = torch.randn(2, 6, 11, 8, requires_grad=True)
    compiled = torch.compile(Whole(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), Whole()(q))
    assert ours(input_ids=ids, position_ids=positions).logits.isfinite().all()


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_change_nothing_but_rounding_and_can_be_undone(name: str) -> None:
    fused, plain = models_of(name, "flagattn")
    changed = integration.fuse(fused)
    # Two norms, attention, an MLP and the whole of each of two layers, the last norm and the layer of logits. Gemma2
    # has four norms, its own MLP and its own whole; Qwen3 has two norms more in attention.
    assert changed == {"gemma2": 12, "qwen3": 16}.get(name, 12)
    counts = torch.ones(2, 13, dtype=torch.bool)
    ours, theirs = (results(model, counts, input_ids=tokens(2, 13)) for model in (fused, plain))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][key], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    assert integration.unfuse(fused) == changed and integration.unfuse(fused) == 0
    assert torch.equal(results(fused, counts, input_ids=tokens(2, 13))[0], theirs[0])


def generations(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    options = {"max_new_tokens": 12, "do_sample": False, "disable_compile": True, **options}
    return model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 3}], ids=str)
def test_a_fused_model_generates_the_same_tokens(name: str, options: dict[str, Any]) -> None:
    fused, theirs = models_of(name, "eager")
    assert integration.fuse(fused) > 0
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :5] = 0
    ours, others = (generations(model, tokens(3, 9), attention_mask=mask, **options) for model in (fused, theirs))
    assert torch.equal(ours.sequences, others.sequences)
    for a, b in zip(ours.logits, others.logits):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_fused_model_with_another_attention_goes_its_own_way() -> None:
    fused, theirs = models_of("llama", "eager")
    integration.fuse(fused)
    fused.set_attn_implementation("eager")
    ours = fused(tokens(2, 9), output_attentions=True)
    assert ours.attentions[0].shape == (2, 6, 9, 9)
    torch.testing.assert_close(ours.logits, theirs(tokens(2, 9)).logits, rtol=1e-4, atol=1e-4)


def test_a_transformers_without_q_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def sdpa_mask(batch_size: int, cache_position: Any, kv_length: int) -> None: ...

    monkeypatch.setattr("transformers.masking_utils.sdpa_mask", sdpa_mask)
    with pytest.raises(ImportError, match="q_length"):
        integration.register()


def test_what_is_not_served_is_refused() -> None:
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(NotImplementedError, match="continuous batching"):
        integration.attention(torch.nn.Module(), q, q, q, None, cache=object())


def test_softcap_and_sinks_go_with_a_mask_of_four_dimensions() -> None:
    q, k, v = torch.randn(3, 2, 4, 6, 16).unbind()
    sinks, keep = torch.randn(4), torch.rand(2, 1, 6, 6) < 0.7
    scores = 3.0 * torch.tanh(q @ k.transpose(-1, -2) * 0.25 / 3.0)
    scores = scores.masked_fill(~keep, -torch.inf)
    column = sinks.view(1, 4, 1, 1).expand(2, 4, 6, 1)
    expected = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1] @ v
    out, _ = integration.attention(torch.nn.Module(), q, k, v, keep, scaling=0.25, softcap=3.0, s_aux=sinks)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_sinks_reach_cached_rows() -> None:
    q, k, v = torch.randn(2, 4, 1, 16), *torch.randn(2, 2, 4, 9, 16).unbind()
    sinks = torch.randn(4)
    scores = q @ k.transpose(-1, -2) * 0.25
    expected = torch.cat([scores, sinks.view(1, 4, 1, 1).expand(2, 4, 1, 1)], dim=-1).softmax(-1)[..., :-1] @ v
    with torch.no_grad():
        out, _ = integration.attention(torch.nn.Module(), q, k, v, None, scaling=0.25, s_aux=sinks)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_attentions_that_are_asked_for_are_missed_aloud() -> None:
    (model,) = models_of("llama")
    integration._warn_of_missing_probabilities.cache_clear()
    ids = torch.tensor([[1, 2, 3]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(ids)
        model(ids, output_attentions=True)
        model(ids, output_attentions=True)
    told = [str(warning.message) for warning in caught if "output_attentions" in str(warning.message)]
    assert len(told) == 1 and "set_attn_implementation('eager')" in told[0]
