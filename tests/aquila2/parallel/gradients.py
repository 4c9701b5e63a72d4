"""Gradients of a small model, divided in some way over forked ranks, for comparison with those of one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2 import Aquila2Config
from aquila2.heurimentor.data.stream import Part
from aquila2.heurimentor.engine.placement import place
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.ledger.book import share_out
from aquila2.parallel.values import clip, local, total_norm, whole
from aquila2.training.data import Batch
from aquila2.training.options import ParallelOptions
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

ROWS, LENGTH = 8, 16


def save_gradients(
    path: Path, shares: list[int], parallel: dict[str, Any], recompute: bool, rows: int = ROWS, **config: Any
) -> None:
    """Forks as many ranks as the layout wants and saves `path`-RANK.pt; to be called where torch has run no threads.

    Args:
        path: Where to.
        shares: Rows of every rank that has others.
        parallel: The options of that name.
        recompute: With activation checkpointing.
        rows: Of all ranks together.
        config: Of the model.
    """
    options = ParallelOptions(**parallel)

    def work(rank: int) -> None:
        torch.manual_seed(rank)  # other weights on every rank: those of the first count
        model, placement = place(
            Aquila2Config.named("tiny", vocab_size=304, **config), options, World(), torch.device("cpu")
        )
        model.train().set_activation_checkpointing(recompute)
        weights = {name: whole(parameter.detach()).clone() for name, parameter in model.named_parameters()}
        torch.manual_seed(0)
        ids = torch.randint(304, (rows, LENGTH + 1))
        targets = ids[:, 1:].clone()
        for row in range(rows):
            targets[row, : 2 * row] = -100  # rows count differently
        bounds = torch.tensor([0, LENGTH], dtype=torch.int32)
        for _ in range(2):  # the second time must not find anything of the first
            model.zero_grad()
            places = share_out(rows, shares)[placement.data.rank]
            mine = [Batch(ids[i : i + 1, :-1], targets[i : i + 1], bounds, LENGTH, []) for i in places]
            count = placement.data.sum(sum(batch.num_targets for batch in mine))
            batches = placement.evened(Part(mine, 0), World(), LENGTH).batches
            if placement.pipeline is not None:
                placement.pipeline.passes(placement.stage_batches(Part(batches, 0), count, 1, torch.device("cpu")))
            else:
                for number, batch in enumerate(batches):
                    if number == len(batches) - 1:
                        placement.gradients.begin()
                    (model.loss(batch.input_ids, batch.targets) * (batch.num_targets / count)).backward()
            placement.gradients.finish()

        def norm_of_all() -> float:
            return math.hypot(*placement.stages.gather(total_norm(model.parameters())))

        norm = norm_of_all()
        gradients = {n: whole(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None}
        held = sum(local(parameter).numel() for parameter in model.parameters())
        clip(model.parameters(), norm / 2, norm)
        torch.save((weights, gradients, norm, norm_of_all(), held), f"{path}-{rank}.pt")

    ranks = len(shares) * options.tensor * max(1, len(options.stages))
    assert fork_ranks(ranks, work) == [0] * ranks


def compare_gradients(path: Path, alone: Path, ranks: int) -> float:
    """Compares what all ranks have saved with what one alone has; returns the copies of weights that they have.

    First weights have the same bits, gradients the same values.
    """
    first, expected, norm, _, size = torch.load(f"{alone}-0.pt")
    held = 0
    seen: set[str] = set()
    for rank in range(ranks):
        weights, gradients, found, clipped, mine = torch.load(f"{path}-{rank}.pt")
        seen |= set(gradients)
        assert all(torch.equal(weight, first[name]) for name, weight in weights.items())
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=2e-5, atol=2e-7)
        assert found == pytest.approx(norm, rel=1e-5)
        assert clipped == pytest.approx(norm / 2, rel=1e-5)
        held += mine
    assert seen == set(expected)
    return held / size
