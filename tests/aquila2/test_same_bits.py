"""A batch-invariant model gives a token the same bits in training, prefill and decoding, whatever is beside it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import flagattn
from aquila2 import Aquila2Config, Aquila2ForCausalLM, KVCache, Linear, Sampling
from aquila2.generate import DecodingBatch
from aquila2.rope import rope_tables

LENGTHS = (37, 1, 150, 12, 300)
THREADS = (1, 2, 3, 8)


@pytest.fixture(params=["plain", "interleaved, biased, tied", "bf16"])
def model(request: pytest.FixtureRequest) -> Aquila2ForCausalLM:
    config = Aquila2Config.named("tiny", vocab_size=304, max_position_embeddings=512, initializer_range=0.2)
    if request.param.startswith("interleaved"):
        config = config.replace(
            rope_interleaved=True, attention_bias=True, tie_word_embeddings=True, rope_scaling="linear",
            rope_scaling_factor=4.0,
        )  # fmt: skip
    model = Aquila2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    if request.param == "bf16":
        model = model.to(torch.bfloat16)
    model.set_batch_invariant()
    return model.eval()


def log_probabilities(logits: Tensor, following: Tensor) -> Tensor:
    losses = flagattn.cross_entropy(logits.flatten(0, -2), following.flatten(), reduction="none")
    assert isinstance(losses, Tensor)
    return -losses.detach()


def in_training(model: Aquila2ForCausalLM, documents: list[Tensor]) -> list[Tensor]:
    """Every document's log-probabilities in one packed batch with a graph, in which a backward pass runs too."""
    ids = torch.cat([document[:-1] for document in documents])[None]
    following = torch.cat([document[1:] for document in documents])
    lengths = [len(document) - 1 for document in documents]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    model.train()
    logits = model(ids, cu_seqlens=bounds, max_seqlen=max(lengths)).logits
    model.eval()
    assert logits.requires_grad
    logits.float().logsumexp(-1).sum().backward()
    return list(log_probabilities(logits, following).split(lengths))


@torch.no_grad()
def in_prefill(model: Aquila2ForCausalLM, document: Tensor) -> Tensor:
    return log_probabilities(model(document[None, :-1]).logits, document[1:])


@torch.no_grad()
def in_decoding(model: Aquila2ForCausalLM, documents: list[Tensor], capacity: int) -> list[Tensor]:
    """Token by token with the cache, all documents at once; shorter ones drop out."""
    cache = KVCache(model.config, len(documents), capacity, model.lm_head.weight.dtype)
    rows: list[list[Tensor]] = [[] for _ in documents]
    for place in range(max(len(document) for document in documents) - 1):
        active = [row for row, document in enumerate(documents) if place < len(document) - 1]
        cache.begin([int(row in active) for row in range(len(documents))])
        ids = torch.stack([documents[row][place] for row in active])[None]
        logits = model(ids, cache=cache).logits
        following = torch.stack([documents[row][place + 1] for row in active])
        for row, value in zip(active, log_probabilities(logits, following), strict=True):
            rows[row].append(value)
    return [torch.stack(row) for row in rows]


def test_training_prefill_and_decoding_agree_in_every_bit(model: Aquila2ForCausalLM, set_threads) -> None:
    documents = [torch.randint(304, (length + 1,)) for length in LENGTHS]
    set_threads(1)
    expected = [in_prefill(model, document) for document in documents]
    assert all(row.isfinite().all() for row in expected)

    def agree(rows: list[Tensor], wanted: list[Tensor]) -> bool:
        return all(torch.equal(ours, theirs) for ours, theirs in zip(rows, wanted, strict=True))

    for threads in THREADS:
        set_threads(threads)
        assert agree([in_prefill(model, document) for document in documents], expected)
        for chosen in (slice(None), slice(1, 3), slice(4, None)):
            assert agree(in_training(model, documents[chosen]), expected[chosen])
    for threads, chosen in ((1, slice(0, 2)), (2, slice(0, 4)), (3, slice(3, 4))):
        set_threads(threads)
        assert agree(in_decoding(model, documents[chosen], capacity=160), expected[chosen])


def test_pieces_of_a_prompt_agree_too(model: Aquila2ForCausalLM) -> None:
    document = torch.randint(304, (130,))
    with torch.no_grad():
        expected = model(document[None]).logits[0]
        cache = KVCache(model.config, 3, 200, model.lm_head.weight.dtype)
        logits = []
        for begin, end in ((0, 60), (60, 61), (61, 64), (64, 130)):
            others = torch.randint(304, (20,))  # a row that comes along
            cache.begin([end - begin, 0, 20])
            logits.append(model(torch.cat([document[begin:end], others])[None], cache=cache).logits[0, : end - begin])
    assert torch.equal(torch.cat(logits), expected)


def test_sampled_rows_do_not_depend_on_their_neighbours(model: Aquila2ForCausalLM) -> None:
    prompts = [[5, 6, 7], list(range(9, 50)), [200]]

    def tokens(prompts: list[list[int]], seed: int) -> list[list[int]]:
        batch = DecodingBatch(model, prompts, 12, Sampling(temperature=1.0, seed=seed))
        steps = [batch.step() for _ in range(12)]
        return [[step[row] for step in steps] for row in range(len(prompts))]

    together = tokens(prompts, 3)
    assert together == [tokens([prompt], 3 + row)[0] for row, prompt in enumerate(prompts)]


def test_the_loss_and_its_gradients_do_not_depend_on_threads(model: Aquila2ForCausalLM, set_threads) -> None:
    ids = torch.randint(304, (3, 41))
    runs = []
    for threads in THREADS:
        set_threads(threads)
        model.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        runs.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))
    logits = model(ids[:, :-1]).logits
    expected = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(runs[0][0], expected.detach(), rtol=1e-5, atol=1e-6)


def test_compiled_it_is_the_same_model(model: Aquila2ForCausalLM) -> None:
    ids = torch.randint(304, (2, 33))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(ids).logits, model(ids).logits)


def test_the_switch() -> None:
    model = Aquila2ForCausalLM(Aquila2Config.named("tiny", vocab_size=304))
    ids = torch.randint(304, (1, 9))
    plain = model(ids).logits
    model.set_batch_invariant()
    assert all(module.batch_invariant for module in model.modules() if isinstance(module, Linear))
    torch.testing.assert_close(model(ids).logits, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)
    model.set_batch_invariant(False)
    assert torch.equal(model(ids).logits, plain)
    model.model.layers[1].mlp.up_proj = nn.Linear(64, 192)
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj is a Linear; a batch-invariant model"):
        model.set_batch_invariant()


@pytest.mark.parametrize("scaling", ["none", "linear"])
@pytest.mark.parametrize("head_dim", [2, 16, 50, 128])
def test_rotary_tables_do_not_depend_on_their_length(scaling: str, head_dim: int) -> None:
    config = Aquila2Config.named("tiny", head_dim=head_dim, rope_scaling=scaling, rope_scaling_factor=2.0)
    longest = rope_tables(config, 3000, "cpu")
    for length in (1, 2, 3, 7, 8, 9, 31, 100, 1023, 2999):
        for table, whole in zip(rope_tables(config, length, "cpu"), longest, strict=True):
            assert torch.equal(table, whole[:length])
