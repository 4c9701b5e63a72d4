"""A training step of a small Aquila2 against the Llama of transformers with the same weights, eager and compiled.

Each takes its own way to the same loss: Aquila2 its `loss`, as `aquila2 train` does, which never makes the logits;
Llama its logits and torch's cross-entropy, which is what its own loss does. The optimizer is one for all.
"""

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
SECONDS = 40.0  # of rounds per case


def llama_like(model: Aquila2ForCausalLM) -> nn.Module:
    """transformers' Llama with SDPA attention and the model's weights."""
    skipped = ("architectures", "model_type")
    entries = {key: value for key, value in model.config.to_hf().items() if key not in skipped}
    llama: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**entries, attn_implementation="sdpa"))
    llama.load_state_dict(model.state_dict())
    return llama


Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of_logits(logits_of: Callable[[Tensor], Tensor]) -> Loss:
    return lambda ids, targets: F.cross_entropy(logits_of(ids).flatten(0, 1), targets.flatten())


def steps(model: nn.Module, loss_of: Loss, batches: list[Tensor]) -> list[Thunk]:
    """Forward, loss, backward and AdamW on each batch of (batch, seqlen + 1) ids."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(ids: Tensor) -> Tensor:
        loss = loss_of(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return [partial(step, ids) for ids in batches]


def products(model: nn.Module, tokens: int) -> Peer:
    """A probe: the products of the linear layers alone, forward and both gradients, as torch forms them for Llama."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [layer.weight.detach() for layer in layers]  # each (outputs, inputs)
    widths = {width for weight in weights for width in weight.shape}
    rows = {width: torch.randn(tokens, width) for width in widths}

    def multiply() -> None:
        for weight in weights:
            x, dy = rows[weight.shape[1]], rows[weight.shape[0]]
            F.linear(x, weight), dy @ weight, dy.t() @ x

    return Peer([multiply], flops=6.0 * tokens * sum(weight.numel() for weight in weights))


@pytest.mark.parametrize("rival", ["eager", "compiled"])
def bench_step(benchmark: Any, rival: str) -> None:
    if rival == "compiled" and not benchmark.enabled:
        pytest.skip("torch.compile of transformers' Llama is only measured: it takes a minute")
    size, seqlen = ("25m", SEQLEN) if benchmark.enabled else ("tiny", 24)
    config = Aquila2Config.named(size, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    model = Aquila2ForCausalLM(config)
    llama = llama_like(model)
    batches = [torch.randint(config.vocab_size, (BATCH, seqlen + 1)) for _ in range(4)]

    def llama_logits(ids: Tensor) -> Tensor:
        return llama(ids, use_cache=False).logits

    forward = llama_logits if rival == "eager" else compiled(llama_logits)
    # Both start from the same weights and see the same batches, so their losses stay together.
    peers = {f"HF Llama {rival}": Peer(steps(llama, loss_of_logits(forward), batches), agrees=agree(1e-3))}
    peers["products alone"] = products(llama, BATCH * seqlen)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    multiplied = parameters - model.model.embed_tokens.weight.numel()
    tokens = BATCH * seqlen
    case = Case(
        "training step",
        f"fp32 beside {rival}",
        f"{parameters / 1e6:.1f}M B {BATCH} S {seqlen}",
        flops=6.0 * multiplied * tokens,
        facts={"tokens": tokens},
    )
    race(benchmark, case, steps(model, model.loss, batches), peers, budget=SECONDS)
