"""Tensors with the same values in different memory layouts, surrounded by NaN."""

from __future__ import annotations

import torch
from torch import Tensor

# Every layout keeps the last dimension contiguous, as the kernels require of their operands.
LAYOUTS = ("contiguous", "heads_outside", "padded", "interleaved_rows", "odd_offset")


def laid_out(values: Tensor, layout: str) -> Tensor:
    """A copy of `values` (..., seqlen, heads, head_dim) whose storage holds NaN wherever `values` has no element."""
    *lead, seqlen, heads, head_dim = values.shape
    if layout == "contiguous":
        view = _nan(values, *lead, seqlen, heads, head_dim)
    elif layout == "heads_outside":  # (batch, heads, seqlen, head_dim) storage, as a model that transposes leaves it
        view = _nan(values, *lead, heads, seqlen, head_dim).transpose(-2, -3)
    elif layout == "padded":  # a slice in every dimension of a larger tensor
        buffer = _nan(values, *lead, seqlen + 3, heads + 1, head_dim + 8)
        view = buffer[..., 1 : seqlen + 1, 1:, 4 : head_dim + 4]
    elif layout == "interleaved_rows":  # every other row belongs to another tensor, as in a packed (S, 2, H, D) one
        view = _nan(values, *lead, seqlen, 2, heads, head_dim)[..., 1, :, :]
    elif layout == "odd_offset":  # starts one element into its storage, so no vector load is aligned
        flat = _nan(values, values.numel() + 1)
        view = flat[1:].view(values.shape)
    else:
        raise ValueError(f"layout must be one of {LAYOUTS}, not {layout!r}")
    view.copy_(values)
    return view


def _nan(like: Tensor, *shape: int) -> Tensor:
    return like.new_full(shape, torch.nan)
