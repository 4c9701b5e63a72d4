"""The first weights of a divided model: the bits that a whole one would draw, and no rank ever holds a whole one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from aquila2.config import Aquila2Config
from aquila2.model import Aquila2ForCausalLM, reset_module
from aquila2.parallel.values import fill, local

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def give_memory(model: Aquila2ForCausalLM, device: torch.device) -> None:
    """Gives a divided model on the meta device memory for this rank's part, where all is NaN until it gets weights."""
    model.to_empty(device=device)
    if model.config.tie_word_embeddings:  # two modules that share a weight are given memory each
        model.lm_head.weight = model.model.embed_tokens.weight
    for parameter in model.parameters():
        local(parameter).fill_(math.nan)


@torch.no_grad()
def draw(model: Aquila2ForCausalLM, draws: bool, spread: Callable[[Iterable[Tensor]], None]) -> None:
    """Puts the first weights into a divided model.

    One rank draws, one layer's matrix after the other, and all ranks have to ask together. Each holds its part and one
    whole tensor at a time.

    Args:
        model: Divided; with memory for this rank's part.
        draws: Whether this rank is the one that draws, from torch's generator.
        spread: Puts that rank's values into the tensors of all.
    """
    mine = dict(model.named_parameters(remove_duplicate=False))
    for name, values in _drawn(model.config, draws, spread):
        if name in mine:
            fill(mine[name], values)


def _drawn(
    config: Aquila2Config, draws: bool, spread: Callable[[Iterable[Tensor]], None]
) -> Iterator[tuple[str, Tensor]]:
    """The weights of `Aquila2ForCausalLM(config)` by their names, in the order in which that sets them."""
    with torch.device("meta"):
        whole = Aquila2ForCausalLM(config)
    if draws:
        for module in whole.modules():  # torch's own first values, which a whole model draws too, and draws over
            if isinstance(module, (nn.Linear, nn.Embedding)):
                _twin(module).reset_parameters()
    for place, module in whole.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        twin = _twin(module)
        if draws:
            reset_module(twin, config)
        for key, parameter in twin.named_parameters(recurse=False):
            spread([parameter])
            yield f"{place}.{key}", parameter.detach()


def _twin(module: M) -> M:
    """A copy in the processor's memory of a module on the meta device, without values."""
    return copy.deepcopy(module).to_empty(device="cpu")
