"""Pipeline parallelism: each rank has some layers in a row, which may be more or fewer, and micro-batches pass through.

torch's pipelining keeps time (1F1B: a stage takes a backward pass as soon as there is one). What travels between stages
is the residual stream alone; ids, targets and bounds of documents are known to all stages, which read the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from aquila2.config import Aquila2Config
from aquila2.context import AttentionContext, context_of
from aquila2.model import Aquila2ForCausalLM, Observer


class MicroBatch:
    """What a stage is told of a micro-batch besides the stream.

    Attributes:
        input_ids: (B, S).
        targets: (B, S).
        cu_seqlens: Bounds of documents.
        weight: What its mean loss counts in the step's.
    """

    def __init__(self, input_ids: Tensor, targets: Tensor, cu_seqlens: Tensor, weight: float) -> None:
        self.input_ids, self.targets, self.cu_seqlens, self.weight = input_ids, targets, cu_seqlens, weight


def check_stages(config: Aquila2Config, stages: Sequence[int]) -> None:
    """Refuses stages that do not make up a model; none at all is no pipeline.

    Raises:
        ValueError: They have not the model's layers together, or the output head is the embedding.
    """
    if stages and (sum(stages) != config.num_hidden_layers or min(stages) < 1):
        raise ValueError(
            f"parallel.stages must be positive and sum to the model's {config.num_hidden_layers} layers, "
            f"got {list(stages)}"
        )
    if len(stages) > 1 and config.tie_word_embeddings:
        raise ValueError("parallel.stages needs a model whose tie_word_embeddings is false: two stages would share it")


class Pipeline:
    """One stage of a model, and the passes that it makes with the others.

    Args:
        model: Whole; left with the layers of this stage, the first also with the embedding, the last with the norm and
            the output head. Its `loss` becomes one that all stages have to call together, without gradient.
        layers: Of every stage.
        group: Its ranks are the stages, in order.
        device: Of this rank.
        bf16: Under autocast to bf16.
    """

    def __init__(
        self,
        model: Aquila2ForCausalLM,
        layers: Sequence[int],
        group: dist.ProcessGroup,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self._group, self._device, self._count = group, device, len(layers)
        self._stage = _Stage(model, layers, dist.get_rank(group), bf16, device)
        self._kept: tuple[tuple[int, ...], Schedule1F1B] | None = None
        # As FSDP does with a forward method: who asks for a loss need not know how the model lies.
        model.loss = self._loss  # type: ignore[method-assign]

    def passes(self, batches: list[MicroBatch]) -> list[Tensor]:
        """Forward and backward passes of a step.

        Args:
            batches: All of the same shape, the same on all stages.

        Returns:
            The weighted loss of each, on all stages.
        """
        if not batches:
            return []
        self._stage.batches = batches
        numbers = torch.arange(len(batches))
        losses: list[Tensor] = []
        schedule = self._schedule(len(batches), *batches[0].input_ids.shape)
        if self._stage.is_last:
            schedule.step(number=numbers, target=numbers, losses=losses)
        else:
            schedule.step(number=numbers)
        total = torch.stack(losses).detach() if losses else torch.empty(len(batches), device=self._device)
        dist.broadcast(total, group=self._group, group_src=self._count - 1)
        return list(total)

    def _schedule(self, *sizes: int) -> Schedule1F1B:
        """The last schedule, if it was for as many batches of the same shape: each has buffers for all of them."""
        if self._kept is None or self._kept[0] != sizes:
            stage = PipelineStage(self._stage, self._stage.rank, self._count, self._device, group=self._group)
            self._stage.only_shapes = True
            self._kept = sizes, Schedule1F1B(stage, sizes[0], loss_fn=lambda loss, _: loss.sum(), scale_grads=False)
        return self._kept[1]

    @torch.no_grad()
    def _loss(self, input_ids: Tensor, targets: Tensor, *, reduction: str = "mean", **bounds: Any) -> Tensor:
        stage = self._stage
        width, here = stage.model.config.hidden_size, self._device
        stream = [] if stage.rank == 0 else [torch.empty(*input_ids.shape, width, device=here)]
        if stream:
            dist.recv(stream[0], group=self._group, group_src=stage.rank - 1)
        out = stage.run(*stream, input_ids=input_ids, targets=targets, reduction=reduction, **bounds)
        if not stage.is_last:
            dist.send(out.contiguous(), group=self._group, group_dst=stage.rank + 1)
            out = torch.empty(input_ids.shape if reduction == "none" else (), device=here)
        dist.broadcast(out, group=self._group, group_src=self._count - 1)
        return out


class _Stage(nn.Module):
    """The layers of a stage as torch's pipelining wants them: the stream in, the stream or the loss out."""

    def __init__(
        self, model: Aquila2ForCausalLM, layers: Sequence[int], rank: int, bf16: bool, device: torch.device
    ) -> None:
        super().__init__()
        ends = list(accumulate(layers))
        self.model, self.rank, self.is_last = model, rank, rank == len(layers) - 1
        self.batches: list[MicroBatch] = []
        self.only_shapes = False  # whether the next pass only tells torch shapes, and its stream has no values
        self._bf16, self._device = bf16, device
        self._whole_loss = model.loss
        for number in range(len(model.model.layers)):
            if not ends[rank] - layers[rank] <= number < ends[rank]:
                model.model.layers[number] = _Elsewhere()
        self._entry = _Entry()
        if rank > 0:
            model.model.embed_tokens = self._entry  # type: ignore[assignment]
        if not self.is_last:
            model.model.norm = _Exit()  # type: ignore[assignment]
            model.lm_head = nn.Identity()  # type: ignore[assignment]

    def forward(self, *stream: Tensor, number: Tensor) -> Tensor:
        """The pass of a micro-batch, by its number in `batches`."""
        batch = self.batches[int(number)]
        bounds: dict[str, Any] = {"cu_seqlens": batch.cu_seqlens, "max_seqlen": batch.input_ids.shape[1]}
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16))
            if self.only_shapes:
                stack.enter_context(_unobserved(self.model))
            self.only_shapes = False
            out = self.run(*stream, input_ids=batch.input_ids, targets=batch.targets, **bounds)
        return (out * batch.weight).reshape(1) if self.is_last else out

    def run(
        self, *stream: Tensor, input_ids: Tensor, targets: Tensor, reduction: str = "mean", **bounds: Any
    ) -> Tensor:
        """The stream (B, S, E) after this stage's layers, or the loss after the last one's."""
        self._entry.stream = stream[0] if stream else None
        if self.is_last:
            return self._whole_loss(input_ids, targets, reduction=reduction, **bounds)
        context = context_of(
            self.model.config, input_ids, bounds.get("positions"), bounds["cu_seqlens"], bounds["max_seqlen"]
        )
        hidden: Tensor = self.model.model(input_ids, context)
        return hidden


@contextmanager
def _unobserved(model: Aquila2ForCausalLM) -> Iterator[None]:
    attentions: list[Any] = [layer.self_attn for layer in model.model.layers]
    before = [attention.observer for attention in attentions]
    for attention in attentions:
        attention.observer = None
    try:
        yield
    finally:
        for attention, observer in zip(attentions, before, strict=True):
            attention.observer = observer


class _Elsewhere(nn.Module):
    """In the place of a layer that another stage has."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = _Unseen()

    def forward(self, x: Tensor, residual: Tensor | None, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        return x, residual


class _Unseen(nn.Module):
    """In the place of that layer's attention: may be observed, and is never called."""

    observer: Observer | None = None


class _Entry(nn.Module):
    """In the place of the embedding: what the stage before has sent."""

    stream: Tensor | None = None

    def forward(self, input_ids: Tensor) -> Tensor:
        assert self.stream is not None
        return self.stream


class _Exit(nn.Module):
    """In the place of the last norm: the sum that the next stage's first norm would make."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor]:
        return (x + residual,)
