"""transformers' Llama with this library's attention and fused layers switched on, against the same model with SDPA."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aquila2 import Aquila2Config
from bench.bench_training_step import Loss, loss_of_logits, steps
from bench.timing import Case, Peer, Thunk, agree, race
from flagattn.integrations import transformers as integration

transformers = pytest.importorskip("transformers")

# (batch, seqlen) of a training step; (batch, prompt, new tokens) of a generation, where one new token is the prompt
# alone, and behind a short prompt the tokens are nearly all
TRAINING = ((2, 512), (1, 2048))
GENERATION = ((1, 2048, 32), (4, 2048, 32), (1, 2048, 1), (4, 2048, 1), (1, 128, 64))
PEER = "HF Llama SDPA"
SECONDS = 30.0  # of rounds per case


def llamas(size: str) -> tuple[nn.Module, nn.Module, Aquila2Config]:
    """Two models of the same weights: ours switched on, and SDPA."""
    config = Aquila2Config.named(size, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    entries = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "model_type")}
    entries |= {"eos_token_id": None, "max_position_embeddings": 4096}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**entries, attn_implementation="sdpa"))
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation(integration.register())
    integration.fuse(ours)
    return ours, theirs, config


def loss_of(model: nn.Module) -> Loss:
    return loss_of_logits(lambda ids: model(ids, use_cache=False).logits)


@pytest.mark.parametrize(("batch", "seqlen"), TRAINING)
def bench_training(benchmark: Any, batch: int, seqlen: int) -> None:
    size, seqlen = ("25m", seqlen) if benchmark.enabled else ("tiny", 24)
    ours, theirs, config = llamas(size)
    batches = [torch.randint(config.vocab_size, (batch, seqlen + 1)) for _ in range(4)]
    peers = {PEER: Peer(steps(theirs, loss_of(theirs), batches), agrees=agree(1e-3))}
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    case = Case(
        "integration training step",
        "fp32",
        f"{parameters / 1e6:.1f}M B {batch} S {seqlen}",
        facts={"tokens": batch * seqlen},
    )
    race(benchmark, case, steps(ours, loss_of(ours), batches), peers, budget=SECONDS)


def same_tokens(ours: Tensor, theirs: Tensor) -> None:
    """Greedy tokens in fp32, where the best two of 8,200 logits lie much further apart than rounding moves them."""
    assert torch.equal(ours, theirs), "the models generate other tokens"


@pytest.mark.parametrize(("batch", "prompt", "new"), GENERATION)
def bench_generation(benchmark: Any, batch: int, prompt: int, new: int) -> None:
    size, prompt, new = ("25m", prompt, new) if benchmark.enabled else ("tiny", 12, 3)
    ours, theirs, config = llamas(size)
    prompts = [torch.randint(config.vocab_size, (batch, prompt)) for _ in range(2)]

    def generations(model: Any) -> list[Thunk]:
        def generate(ids: Tensor) -> Tensor:
            mask = torch.ones_like(ids)
            tokens: Tensor = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
            return tokens[:, prompt:]

        model.eval()
        return [partial(generate, ids) for ids in prompts]

    parameters = sum(parameter.numel() for parameter in ours.parameters())
    shape = f"{parameters / 1e6:.1f}M B {batch} prompt {prompt} new {new}"
    case = Case("integration generation", "fp32", shape, facts={"tokens": batch * new})
    race(benchmark, case, generations(ours), {PEER: Peer(generations(theirs), agrees=same_tokens)}, budget=SECONDS)
