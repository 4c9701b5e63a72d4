"""The head's cross-entropy, forward and backward, against torch's: eager, and its own linear_cross_entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench.cases import DTYPES, HEADS, LOGITS, TOLERANCE, HeadShape, RowsShape
from bench.peers import compiled
from bench.roofline import copy_probe, elementwise_bytes
from bench.timing import Case, Peer, Thunk, agree, race, sets_for

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    loss = flagattn.linear_cross_entropy(hidden, weight, targets)
    assert isinstance(loss, Tensor)
    return loss


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def torch_default(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = F.linear_cross_entropy(hidden, weight, targets)
    return loss


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    loss: Tensor = F.linear_cross_entropy(hidden, weight, targets, options=options)
    return loss


CONTESTANTS: dict[str, Loss] = {"ours": ours, "torch eager": eager}
if hasattr(F, "linear_cross_entropy"):  # torch 2.13
    CONTESTANTS |= {"F.linear_cross_entropy": torch_default, "F.linear_cross_entropy, chunked": torch_chunked}


def step(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    value = loss(hidden, weight, targets)
    return value.detach().float(), *torch.autograd.grad(value, (hidden, weight))


def operands(shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    dtype = DTYPES[shape.dtype]
    hidden = torch.randn(shape.tokens, shape.features).to(dtype).requires_grad_()
    weight = (torch.randn(shape.classes, shape.features) * shape.features**-0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(shape.classes, (shape.tokens,))


def prepared_step(name: str, shape: HeadShape, threads: int) -> Thunk:
    """For a process of its own. A small step first, so that libraries' own buffers are there already."""
    torch.set_num_threads(threads)
    step(CONTESTANTS[name], *operands(shape.shrunk()))
    return partial(step, CONTESTANTS[name], *operands(shape))


@pytest.mark.parametrize("shape", HEADS, ids=lambda shape: shape.name)
def bench_head(benchmark: Any, sized: Any, shape: HeadShape) -> None:
    from bench.memory import extra_bytes

    shape = sized(shape)
    given = operands(shape)
    rivals = {name: loss for name, loss in CONTESTANTS.items() if name != "ours"}
    check = agree(TOLERANCE[shape.dtype])
    peers = {name: Peer([partial(step, loss, *given)], agrees=check) for name, loss in rivals.items()}
    memory: dict[str, int | None] = {}
    if benchmark.enabled:
        memory = {name: extra_bytes(prepared_step, name, shape, torch.get_num_threads()) for name in CONTESTANTS}
    case = Case(
        "linear cross-entropy",
        shape.dtype,
        shape.label,
        flops=6.0 * shape.tokens * shape.features * shape.classes,
        facts={"extra_bytes": memory},
    )
    race(benchmark, case, [partial(step, ours, *given)], peers, warm_rounds=1)  # a round takes minutes


# Given logits


def loss_and_gradient(loss: Callable[[Tensor, Tensor], Any], logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(logits, targets)
    return value.detach().float(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("shape", LOGITS, ids=lambda shape: shape.name)
def bench_logits(benchmark: Any, sized: Any, shape: RowsShape) -> None:
    shape = sized(shape)
    moved = elementwise_bytes(shape.elements, shape.itemsize, reads=2, writes=1)  # logits; logits, their gradient
    sets = [
        (
            torch.randn(shape.rows, shape.features).mul(3).to(DTYPES[shape.dtype]).requires_grad_(),
            torch.randint(shape.features, (shape.rows,)),
        )
        for _ in range(sets_for(benchmark, moved, contestants=4))
    ]

    def thunks(loss: Callable[[Tensor, Tensor], Any]) -> list[Thunk]:
        return [partial(loss_and_gradient, loss, *given) for given in sets]

    check = agree(TOLERANCE[shape.dtype])
    peers = {"torch eager": Peer(thunks(F.cross_entropy), agrees=check), "copy": copy_probe(moved)}
    if benchmark.enabled:
        peers["torch.compile"] = Peer(thunks(compiled(F.cross_entropy)), agrees=check)
    case = Case("cross-entropy forward+backward", shape.dtype, shape.label, bytes=moved)
    race(benchmark, case, thunks(flagattn.cross_entropy), peers)
