"""A divided model made whole again, for what knows whole ones only: a checkpoint is the same however it came about."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.values import whole


@torch.no_grad()
def gathered(
    model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer, stages: dist.ProcessGroup | None, keep: bool
) -> tuple[Aquila2ForCausalLM, torch.optim.Optimizer]:
    """A whole copy of a divided model and of its optimizer's state, in the processor's memory.

    All ranks have to ask together; one tensor after the other is made whole.

    Args:
        model: Divided.
        optimizer: Of its parameters.
        stages: Those that have the other layers, the first of which gets them; None: there are none.
        keep: Whether this rank wants the copy; the others get one without values.
    """
    weights, moments = {}, {}
    for name, key, tensor in _from_stages(_named(model, optimizer, keep or stages is not None), stages):
        if key:
            moments[name, key] = tensor
        else:
            weights[name] = tensor
    with torch.device("meta"):
        twin = Aquila2ForCausalLM(model.config)
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    twin.load_state_dict(weights, assign=True, strict=keep)
    if model.config.tie_word_embeddings:
        twin.lm_head.weight = twin.model.embed_tokens.weight
    copy = torch.optim.AdamW(twin.parameters())
    parameters = dict(twin.named_parameters())
    for (name, key), tensor in moments.items():
        copy.state[parameters[name]][key] = tensor
    return twin, copy


Named = tuple[str, str, Tensor]  # the name of a parameter, of a moment of it or nothing, and the tensor


def _named(model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer, keep: bool) -> Iterator[Named]:
    home = torch.device("cpu" if keep else "meta")
    for name, parameter in model.named_parameters():
        yield name, "", whole(parameter.detach()).to(home, copy=True)
        for key, value in optimizer.state.get(parameter, {}).items():
            yield name, key, whole(value).to(home, copy=True)


def _from_stages(mine: Iterator[Named], stages: dist.ProcessGroup | None) -> Iterator[Named]:
    """Sends a later stage's tensors to the first stage, which yields all."""
    if stages is None:
        yield from mine
        return
    held = list(mine)
    rank, size = dist.get_rank(stages), dist.get_world_size(stages)
    told: list[list[tuple[str, str, torch.Size, torch.dtype]]] = [[] for _ in range(size)]
    dist.all_gather_object(told, [(name, key, value.shape, value.dtype) for name, key, value in held], group=stages)
    if rank:
        for _, _, value in held:
            dist.send(value.contiguous(), group=stages, group_dst=0)
    yield from held
    for stage in range(1, size if rank == 0 else 1):
        for name, key, shape, dtype in told[stage]:
            value = torch.empty(shape, dtype=dtype)
            dist.recv(value, group=stages, group_src=stage)
            yield name, key, value
