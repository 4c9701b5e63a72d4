"""Values of tensors that ranks have in parts (DTensor); a tensor that a rank has whole is its own part."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; all ranks of its mesh have to ask together."""
    if not isinstance(tensor, DTensor):
        return tensor
    for dim in range(tensor.device_mesh.ndim):  # one after the other, from the copies on: two at once are not merged
        placements = [Replicate()] * (dim + 1) + list(tensor.placements[dim + 1 :])
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> Tensor:
    """Puts values that this rank has whole into the part of a tensor that it has, and returns the tensor."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None).to_local()
    local(target).copy_(values)
    return target


def total_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The Euclidean norm of all gradients, of all ranks' parts; all ranks have to ask together."""
    return math.hypot(*(_norm(layout, group) for layout, group in _by_layout(parameters).items()))


def clip(parameters: Iterable[nn.Parameter], limit: float, norm: float) -> None:
    """Scales gradients whose norm is larger than `limit` down to it."""
    for group in _by_layout(parameters).values():
        torch.nn.utils.clip_grads_with_norm_(group, limit, torch.tensor(norm))


Layout = tuple[DeviceMesh, tuple[Placement, ...]]


def _norm(layout: Layout | None, parameters: Iterable[nn.Parameter]) -> float:
    norm = torch.nn.utils.get_total_norm([local(p.grad) for p in parameters if p.grad is not None])
    if layout is None:
        return float(norm)
    mesh, placements = layout
    sums = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return math.sqrt(float(whole(DTensor.from_local(norm.square(), mesh, sums))))


def _by_layout(parameters: Iterable[nn.Parameter]) -> dict[Layout | None, list[nn.Parameter]]:
    """Parameters with gradients by the layout of these: torch's functions on several want them on one mesh."""
    groups: dict[Layout | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            layout = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
            groups.setdefault(layout, []).append(parameter)
    return groups
