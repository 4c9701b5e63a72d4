"""Gradients summed over ranks in buckets whose content and order never change, while the backward pass still runs.

torch's DistributedDataParallel orders its buckets anew after the first step it sees. A run that is continued would so
add the same numbers in another order than one that was not interrupted, and from three ranks on get other bits. It also
wants a forward pass of every rank, where here a rank may have no rows in a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from aquila2.heurimentor.engine.world import World

BUCKET_BYTES = 25 << 20


class GradientSum:
    """Sums gradients over the ranks; each has to weight its own by its targets.

    Buckets are filled in the reverse order of the parameters, which is about that of the backward pass. They leave in
    their order, so that all ranks agree whatever order their passes take.

    Args:
        parameters: The model's, in the same order on all ranks.
        world: The ranks; one alone has nothing to sum.
        bucket_bytes: Gradients that travel together.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.world = world
        self._buckets = _buckets(parameters, bucket_bytes) if world.size > 1 else []
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, Any]] = []
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))

    def begin(self) -> None:
        """Announces that the next backward pass is the step's last: what it finishes leaves at once."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """Sends what is left, waits, and puts the sums in the place of the gradients."""
        self._missing = [0] * len(self._buckets)
        self._send()
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            for parameter, total in zip(bucket, _unflatten_dense_tensors(flat, tuple(bucket)), strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(total)
        self._missing, self._sent = [], []

    def _arrived(self, number: int) -> None:
        if self._missing:
            self._missing[number] -= 1
            self._send()

    def _send(self) -> None:
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            bucket = self._buckets[len(self._sent)]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = _flatten_dense_tensors(gradients)
            self._sent.append((flat, dist.all_reduce(flat, group=self.world.group, async_op=True)))


def _buckets(parameters: Iterable[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        bytes_of_it = parameter.numel() * parameter.element_size()
        if not buckets or size + bytes_of_it > limit or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += bytes_of_it
    return buckets
