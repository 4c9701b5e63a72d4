"""Ranks that hold the same weights compare them, since those of unlike machines may drift apart."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from aquila2.heurimentor.engine.placement import Placement
from aquila2.heurimentor.engine.world import World, checksum
from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.tensor import is_held_alike
from aquila2.parallel.values import local


def ranks_that_differed(
    model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer, placement: Placement, world: World
) -> Iterator[list[int]]:
    """Compares what several ranks have of weights that are one, and yields the ranks that had others.

    They have those of the first by then, and its moments.
    """
    parameters = list(model.parameters())
    alike = [parameter for parameter in parameters if is_held_alike(parameter)]
    for holders, held in ((placement.copies, parameters), (placement.sharers, alike)):
        if holders.size > 1:
            differ = _level(holders, held, optimizer, world)
            if differ:
                yield differ


def _level(holders: World, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, world: World) -> list[int]:
    """Sends the first holder's weights and moments to the others where one has others; returns which had."""
    sums = holders.gather(checksum(local(parameter) for parameter in parameters))
    ranks = world.gather(sums[holders.rank] != sums[0])
    differ = [rank for rank, differs in enumerate(ranks) if differs]
    if differ:
        holders.spread(local(parameter) for parameter in parameters)
        states = [optimizer.state[parameter] for parameter in parameters]
        holders.spread(local(state[key]) for state in states for key in sorted(state))
    return differ
