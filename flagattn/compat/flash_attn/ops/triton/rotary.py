"""Rotary position embedding at offsets and in packed sequences; no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn._checks import rows_contiguous
from flagattn.rotary import write_rotated

_ops: Any = torch.ops.flagattn


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] channels of each row by its position.

    Args:
        x: (batch, seqlen, heads, head_dim), or (total, heads, head_dim) with cu_seqlens.
        cos, sin: (max_position, rotary_dim / 2).
        seqlen_offsets: the position of each sequence's first row, an integer or (batch,).
        cu_seqlens: (batch + 1,), where packed sequences begin and end.
        max_seqlen: accepted; the lengths are read from cu_seqlens.
        interleaved: pairs are channels (2i, 2i + 1); else (i, i + rotary_dim / 2).
        inplace: write into x and return it.
        conjugate: rotate by the negative angles, which is the gradient.
    """
    cos, sin = rows_contiguous(cos), rows_contiguous(sin)
    positions = None
    if cu_seqlens is not None:
        positions = _packed_positions(x, cu_seqlens, seqlen_offsets)
    elif isinstance(seqlen_offsets, Tensor):
        positions = seqlen_offsets.long().unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
    elif seqlen_offsets != 0:
        cos, sin = cos[seqlen_offsets:], sin[seqlen_offsets:]
    if positions is None and x.shape[-3] > cos.shape[0]:
        raise ValueError(
            f"x has {x.shape[-3]} rows, but cos has {cos.shape[0]} from the offset on; it needs one per row"
        )
    if not inplace:
        return _ops.apply_rotary(rows_contiguous(x), cos, sin, positions, interleaved, conjugate)
    return write_rotated(x, cos, sin, positions, interleaved, conjugate)


def _packed_positions(x: Tensor, cu_seqlens: Tensor, offsets: int | Tensor) -> Tensor:
    """(total,): the position of every row in its sequence, plus the sequence's offset; 0 behind the last sequence."""
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens[1:].long() - starts
    shift = (offsets.long() if isinstance(offsets, Tensor) else offsets) - starts
    covered = torch.arange(int(cu_seqlens[-1]), device=x.device) + torch.repeat_interleave(
        shift.expand_as(starts), lengths
    )
    return torch.nn.functional.pad(covered, (0, x.shape[0] - covered.shape[0]))
