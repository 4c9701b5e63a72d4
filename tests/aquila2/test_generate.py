"""Generation: the cache changes nothing, rows are independent, stops and streams are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aquila2 import Aquila2Config, Aquila2ForCausalLM, Aquila2Tokenizer, KVCache, Sampling, generate
from aquila2.generate import DecodingBatch, TextAssembler
from aquila2.sampling import kept_logits

PROMPTS = [[1, 50, 60, 70], [3], list(range(9, 40)), [200, 201]]


def continued(model: Aquila2ForCausalLM, prompts: list[list[int]], steps: int, sampling: Sampling) -> list[list[int]]:
    batch = DecodingBatch(model, prompts, steps, sampling)
    rows = [list(prompt) for prompt in prompts]
    for _ in range(steps):
        for row, token in batch.step().items():
            rows[row].append(token)
    return rows


def test_greedy_equals_a_loop_without_cache(tiny_model: Aquila2ForCausalLM) -> None:
    rows = continued(tiny_model, PROMPTS, 12, Sampling())
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(tiny_model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert row == ids


@pytest.mark.parametrize("seed", [0, 7])
def test_a_row_does_not_depend_on_its_neighbours(tiny_model: Aquila2ForCausalLM, seed: int) -> None:
    together = continued(tiny_model, PROMPTS, 10, Sampling(temperature=1.0, top_p=0.95, seed=seed))
    for row, prompt in enumerate(PROMPTS):
        alone = continued(tiny_model, [prompt], 10, Sampling(temperature=1.0, top_p=0.95, seed=seed + row))
        assert alone == [together[row]]


def test_a_finished_row_costs_nothing(tiny_model: Aquila2ForCausalLM) -> None:
    batch = DecodingBatch(tiny_model, PROMPTS, 4, Sampling())
    first = batch.step()
    batch.finish(2)
    assert sorted(batch.step()) == [0, 1, 3]
    assert batch.cache.lengths == [5, 2, 31, 3]
    assert sorted(first) == [0, 1, 2, 3]


def test_a_prompt_in_pieces_equals_a_whole_one(tiny_model: Aquila2ForCausalLM) -> None:
    ids = torch.randint(304, (1, 20))
    expected = tiny_model(ids).logits
    cache = KVCache(tiny_model.config, rows=2, capacity=32)
    logits = []
    for start, end in ((0, 7), (7, 8), (8, 20)):
        cache.begin([0, end - start])
        with torch.no_grad():
            logits.append(tiny_model(ids[:, start:end], cache=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_unused_places_of_the_cache_are_never_read(tiny_model: Aquila2ForCausalLM) -> None:
    cache = KVCache(tiny_model.config, rows=3, capacity=24)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    cache.begin([4, 0, 2])
    with torch.no_grad():
        assert tiny_model(torch.randint(304, (1, 6)), cache=cache).logits.isfinite().all()


def test_dynamic_scaling_rotates_all_keys_of_a_generation_alike() -> None:
    config = Aquila2Config.named(
        "tiny", vocab_size=304, max_position_embeddings=16, rope_scaling="dynamic", rope_scaling_factor=2.0,
        initializer_range=0.2,
    )  # fmt: skip
    model = Aquila2ForCausalLM(config).eval()
    ids = torch.randint(304, (1, 48))
    expected = model(ids).logits  # rotated for length 48
    cache = KVCache(config, rows=1, capacity=48)
    logits = []
    with torch.no_grad():
        for token in ids[0]:
            cache.begin([1])
            logits.append(model(token.view(1, 1), cache=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_cache_refuses_what_does_not_fit(tiny_config: Aquila2Config) -> None:
    cache = KVCache(tiny_config, rows=2, capacity=4)
    with pytest.raises(ValueError, match=r"counts\[1\] must lie between 0 and the 4 free places, got 5"):
        cache.begin([1, 5])
    with pytest.raises(ValueError, match=r"one number per row \(2\), got 1"):
        cache.begin([1])


def test_seeds(tiny_model: Aquila2ForCausalLM, tokenizer: Aquila2Tokenizer) -> None:
    def texts(seed: int | None) -> list[str]:
        sampling = Sampling(temperature=1.5, seed=seed)
        return [g.text for g in generate(tiny_model, tokenizer, ["The", "注意"], max_new_tokens=16, sampling=sampling)]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_streamed_pieces_make_the_text(tiny_model: Aquila2ForCausalLM, tokenizer: Aquila2Tokenizer) -> None:
    pieces: dict[int, list[str]] = {0: [], 1: [], 2: []}
    results = generate(
        tiny_model,
        tokenizer,
        ["The quick", "def", "注意力"],
        max_new_tokens=24,
        sampling=Sampling(temperature=1.0, seed=1),
        stop=["q", "xyz"],
        on_text=lambda row, piece: pieces[row].append(piece),
    )
    for row, result in enumerate(results):
        assert "".join(pieces[row]) == result.text
        assert "q" not in result.text
        assert result.finish_reason in ("eos", "stop", "length")


def test_ending_id_and_stop_string(tokenizer: Aquila2Tokenizer) -> None:
    """A model that always says the same: its embedding and head make one id win."""
    config = Aquila2Config.named("tiny", vocab_size=304)
    for said, reason in ((tokenizer.eos_token_id, "eos"), (tokenizer.encode("a")[0], "stop")):
        model = Aquila2ForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.model.embed_tokens.weight.fill_(1.0)
            model.lm_head.weight[said] = 1.0
        (result,) = generate(model, tokenizer, ["x"], max_new_tokens=8, stop=["aaa"])
        assert result.finish_reason == reason
        assert result.text == ""
        assert result.token_ids == [said] * (1 if reason == "eos" else 3)


@given(text=st.text(max_size=30), stops=st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_assembled_text_ends_before_the_first_stop_string(
    tokenizer: Aquila2Tokenizer, text: str, stops: list[str]
) -> None:
    assembler = TextAssembler(tokenizer, stops)
    assembled = ""
    for token in tokenizer.encode(text, allow_special=False):
        piece = assembler.add(token)
        assert not any(stop in assembled + piece for stop in stops)
        assembled += piece
        if assembler.stopped:
            break
    assembled += assembler.finish()
    places = [text.find(stop) for stop in stops if stop in text]
    assert assembled == (text[: min(places)] if places else text)


def test_temperature_then_top_k_then_top_p_as_in_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(64, 100) * 3
    for temperature, top_k, top_p in ((0.7, 20, 0.8), (1.3, 0, 0.5), (1.0, 5, 1.0), (2.0, 100, 0.95), (0.5, 1, 0.1)):
        expected = logits / temperature
        if top_k:
            expected = transformers.TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1.0:
            expected = transformers.TopPLogitsWarper(top_p)(None, expected)
        ours = kept_logits(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        assert torch.equal(ours, expected)


def test_bad_arguments(tiny_model: Aquila2ForCausalLM, tokenizer: Aquila2Tokenizer) -> None:
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        Sampling(temperature=-1.0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got 0"):
        Sampling(top_p=0.0)
    with pytest.raises(ValueError, match="top_k must be at least 0, got -2"):
        Sampling(top_k=-2)
    with pytest.raises(ValueError, match=r"prompts\[1\] must have at least one id"):
        DecodingBatch(tiny_model, [[1], []], 4, Sampling())
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        generate(tiny_model, tokenizer, ["x"], max_new_tokens=0)
    assert generate(tiny_model, tokenizer, []) == []
