"""A model on the ranks of a run: who has other samples, who has the same weights, and how gradients are summed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.distributed.device_mesh import init_device_mesh

from aquila2.config import Aquila2Config
from aquila2.heurimentor.data.stream import Part
from aquila2.heurimentor.engine.gradients import GradientSum
from aquila2.heurimentor.engine.world import World
from aquila2.model import IGNORE_INDEX, Aquila2ForCausalLM
from aquila2.parallel.mesh import Layout, layout_for, mesh_of
from aquila2.parallel.pipeline import MicroBatch, Pipeline, check_stages
from aquila2.parallel.shard import ShardedGradients, shard
from aquila2.parallel.start import draw, give_memory
from aquila2.parallel.tensor import check_tensor, split
from aquila2.training.data import Batch
from aquila2.training.options import ParallelOptions


class Placement(NamedTuple):
    """How a model lies on the ranks of a run.

    Attributes:
        data: One rank for each part of a step's samples, this one among them.
        copies: The ranks that have the same part of the weights as this one.
        sharers: Those that share its layers, and have the same of all else.
        stages: Those that have the other layers, and take the same samples.
        gradients: Sums them over the ranks.
        divided: Whether no rank has all weights, so that all have to go through the model equally often.
        pipeline: The stage that this rank has.
    """

    data: World
    copies: World
    sharers: World
    stages: World
    gradients: GradientSum | ShardedGradients
    divided: bool
    pipeline: Pipeline | None = None

    def evened(self, part: Part, world: World, row_tokens: int) -> Part:
        """A rank's part of a step, with batches that have no target where it has fewer than others."""
        if not self.divided:
            return part
        ids = torch.zeros(1, row_tokens, dtype=torch.int64)
        bounds = torch.tensor([0, row_tokens], dtype=torch.int32)
        empty = Batch(ids, torch.full_like(ids, IGNORE_INDEX), bounds, row_tokens, [])
        most = world.largest(len(part.batches))
        if most and self.pipeline is not None:
            most = max(most, self.stages.size)  # 1F1B wants a batch for every stage
        return Part(part.batches + [empty] * (most - len(part.batches)), part.digest)

    def stage_batches(self, part: Part, count: int, micro: int, device: torch.device) -> list[MicroBatch]:
        """A rank's part of a step for the pipeline, whose batches all have `micro` rows: some without a target."""
        return [_filled(batch, micro, batch.num_targets / count, device) for batch in part.batches]


def place(
    config: Aquila2Config,
    options: ParallelOptions,
    world: World,
    device: torch.device,
    bf16: bool = False,
    fresh: bool = True,
) -> tuple[Aquila2ForCausalLM, Placement]:
    """A new model with the first rank's weights on all ranks, each of which has the part that it has to have.

    Args:
        config: The model's.
        options: How it is divided.
        world: All ranks of the run.
        device: Of this rank.
        bf16: Whether passes of pipeline stages are under autocast.
        fresh: Whether its weights are drawn; what a checkpoint will fill may do without.

    Raises:
        ValueError: The options do not fit the ranks.
        OtherRankFailed: The same, on the other ranks than the first.
    """
    layout = world.tell(lambda: _layout(options, world.size, config))
    if not layout.is_divided:
        model = Aquila2ForCausalLM(config).to(device)
        world.spread(model.parameters())
        alone = World.alone()
        return model, Placement(world, world, alone, alone, GradientSum(model.parameters(), world), divided=False)
    with torch.device("meta"):
        model = Aquila2ForCausalLM(config)
    mesh = mesh_of(layout, device.type)
    pipeline = None
    if layout.stages > 1:
        pipeline = Pipeline(model, options.stages, mesh["stage"].get_group(), device, bf16)
    else:
        if layout.tensor > 1:
            split(model, mesh["tensor"])
        shard(model, mesh["replicate", "shard"] if layout.replicate > 1 else mesh["shard"])
    give_memory(model, device)
    if fresh:
        draw(model, world.is_first, world.spread)
        torch.set_rng_state(world.tell(torch.get_rng_state))  # only one has drawn
    if pipeline is not None:
        data, stages = World(mesh["replicate"].get_group()), World(mesh["stage"].get_group())
        gradients = GradientSum(model.parameters(), data)
        return model, Placement(data, data, World.alone(), stages, gradients, divided=True, pipeline=pipeline)
    data, sharers = world, World.alone()
    if layout.tensor > 1:
        rows = init_device_mesh(device.type, (world.size // layout.tensor, layout.tensor), mesh_dim_names=("data", "t"))
        data, sharers = World(rows["data"].get_group()), World(mesh["tensor"].get_group())
    copies = World(mesh["replicate"].get_group()) if layout.replicate > 1 else World.alone()
    return model, Placement(data, copies, sharers, World.alone(), ShardedGradients(model), divided=True)


def _layout(options: ParallelOptions, ranks: int, config: Aquila2Config) -> Layout:
    check_stages(config, options.stages)
    layout = layout_for(ranks, options.replicate, options.shard, options.tensor, max(1, len(options.stages)))
    check_tensor(config, layout.tensor)
    return layout


def _filled(batch: Batch, micro: int, weight: float, device: torch.device) -> MicroBatch:
    rows, length = batch.input_ids.shape
    ids = torch.zeros(micro - rows, length, dtype=torch.int64)
    bounds = torch.arange(rows + 1, micro + 1, dtype=torch.int32) * length
    return MicroBatch(
        torch.cat([batch.input_ids, ids]).to(device),
        torch.cat([batch.targets, torch.full_like(ids, IGNORE_INDEX)]).to(device),
        torch.cat([batch.cu_seqlens, bounds]).to(device),
        weight,
    )
