"""The forward and backward passes of a step, and which of its batches fared worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aquila2.heurimentor.data.schedule import Draws
from aquila2.heurimentor.data.stream import BatchStream, Part
from aquila2.heurimentor.engine.placement import Placement


def run_passes(
    loss: Callable[..., Tensor],
    part: Part,
    count: int,
    placement: Placement,
    micro: int,
    device: torch.device,
    bf16: bool,
) -> list[Tensor]:
    """Forward and backward passes of all micro-batches; returns what each adds to the mean loss.

    Args:
        loss: The model's, over the targets of a batch.
        part: This rank's samples of the step.
        count: Targets of the step on all ranks.
        placement: How the ranks divide the model.
        micro: Samples of a batch.
        device: Where the model computes.
        bf16: Whether it does under autocast.
    """
    if placement.pipeline is not None:
        return placement.pipeline.passes(placement.stage_batches(part, count, micro, device))
    losses = []
    for index, whole in enumerate(part.batches):
        batch = whole.to(device)
        if index == len(part.batches) - 1:
            placement.gradients.begin()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            mean = loss(batch.input_ids, batch.targets, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen)
        weighted = mean * (batch.num_targets / count)
        weighted.backward()
        losses.append(weighted.detach())
    return losses


def worst_batch(
    stream: BatchStream, draws: Draws, places: range, part: Part, losses: Sequence[Tensor], count: int, micro: int
) -> tuple[float, list[str]]:
    """This rank's worst batch: one whose loss is not finite, else the one of the largest mean loss; and its documents.

    Args:
        stream: What the samples are of.
        draws: The step's samples,
        places: and those of them that this rank took,
        part: in batches.
        losses: What each batch adds to the mean loss.
        count: Targets of the step on all ranks.
        micro: Samples of a batch.
    """
    means = [float(loss) * count / max(1, batch.num_targets) for loss, batch in zip(losses, part.batches, strict=True)]
    if not means:
        return -math.inf, []
    worst = max(range(len(means)), key=lambda i: (not math.isfinite(means[i]), means[i]))
    documents = stream.documents(draws, places[worst * micro : (worst + 1) * micro])
    return means[worst], [f"{domain}/{entry.id}" for domain, entry in documents]
