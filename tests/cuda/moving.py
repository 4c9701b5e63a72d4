"""Tensors on their way to another device, as views of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor


def moved_to(tensor: Tensor, device: str) -> Tensor:
    """A copy with the strides and the storage offset of `tensor`, NaN around it; gradients flow back.

    Elements that share memory are copied once for each place.
    """
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
        return tensor.to(device)
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    fill = torch.nan if tensor.is_floating_point() else 0
    storage = torch.full((elements,), fill, dtype=tensor.dtype, device=device)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(tensor)
