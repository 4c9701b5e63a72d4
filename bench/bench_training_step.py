"""A training step of a small Aquila2 against the Llama of transformers with the same weights, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aquila2 import Aquila2Config, Aquila2ForCausalLM
from bench.peers import compiled
from bench.timing import Case, Peer, Thunk, agree, race

transformers = pytest.importorskip("transformers")

BATCH, SEQLEN = 2, 512


def llama_like(model: Aquila2ForCausalLM) -> nn.Module:
    """transformers' Llama with SDPA attention and the model's weights."""
    skipped = ("architectures", "model_type")
    entries = {key: value for key, value in model.config.to_hf().items() if key not in skipped}
    llama: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**entries, attn_implementation="sdpa"))
    llama.load_state_dict(model.state_dict())
    return llama


def steps(model: nn.Module, logits_of: Callable[[Tensor], Tensor], batches: list[Tensor]) -> list[Thunk]:
    """Forward, loss, backward and AdamW on each batch; every contestant has the same loss and optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(ids: Tensor) -> Tensor:
        loss = F.cross_entropy(logits_of(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return [partial(step, ids) for ids in batches]


def bench_step(benchmark: Any) -> None:
    size, seqlen = ("25m", SEQLEN) if benchmark.enabled else ("tiny", 24)
    config = Aquila2Config.named(size, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    model = Aquila2ForCausalLM(config)
    rivals = [llama_like(model) for _ in range(2)]
    batches = [torch.randint(config.vocab_size, (BATCH, seqlen + 1)) for _ in range(4)]
    check = agree(1e-3)  # all start from the same weights and see the same batches, so their losses stay together

    peers = {
        "HF Llama eager": Peer(
            steps(rivals[0], lambda ids: rivals[0](ids, use_cache=False).logits, batches), agrees=check
        )
    }
    if benchmark.enabled:
        forward = compiled(lambda ids: rivals[1](ids, use_cache=False).logits)
        peers["HF Llama compiled"] = Peer(steps(rivals[1], forward, batches), agrees=check)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    multiplied = parameters - model.model.embed_tokens.weight.numel()
    tokens = BATCH * seqlen
    case = Case(
        "training step",
        "fp32",
        f"{parameters / 1e6:.1f}M B {BATCH} S {seqlen}",
        flops=6.0 * multiplied * tokens,
        facts={"tokens": tokens},
    )
    race(benchmark, case, steps(model, lambda ids: model(ids).logits, batches), peers, budget=6.0)
