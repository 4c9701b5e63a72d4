"""Which query sees which key. Query row i and key j are compared after aligning the last row with the last key."""

from __future__ import annotations

import torch
from torch import Tensor

UNBOUNDED = -1


def signed_distance(seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu") -> Tensor:
    """d[i, j] = i + (Sk - Sq) - j: how far key j lies behind query i; negative for keys ahead of it."""
    rows = torch.arange(seqlen_q, device=device)[:, None]
    keys = torch.arange(seqlen_k, device=device)[None, :]
    return rows + (seqlen_k - seqlen_q) - keys


def keep_mask(
    seqlen_q: int,
    seqlen_k: int,
    *,
    causal: bool = False,
    window_size: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    device: torch.device | str = "cpu",
) -> Tensor:
    """True where -window_size[1] <= d <= window_size[0]; a side of -1 is unbounded; causal sets window_size[1] to 0."""
    left, right = window_size
    if causal:
        right = 0
    distance = signed_distance(seqlen_q, seqlen_k, device)
    keep = torch.ones_like(distance, dtype=torch.bool)
    if left != UNBOUNDED:
        keep &= distance <= left
    if right != UNBOUNDED:
        keep &= distance >= -right
    return keep


def far_mask(seqlen_q: int, seqlen_k: int, dist_threshold: int, device: torch.device | str = "cpu") -> Tensor:
    """True where piecewise attention scores with (q2, k2): d >= dist_threshold."""
    return signed_distance(seqlen_q, seqlen_k, device) >= dist_threshold
