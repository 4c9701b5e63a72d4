"""Attention with two kinds of scores, as `flag_attn.piecewise.attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import flagattn

_native: Any = flagattn  # its results depend on flags


def piecewise_attention(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    dist_threshold: int,
    causal: bool = False,
    sm_scale: float | None = None,
) -> Tensor:
    """Attention whose scores come from q2 k2 at distances >= dist_threshold and from q1 k1 below; see
    `flagattn.piecewise_attn_func`, which takes (batch, seqlen, heads, head_dim)."""
    operands = (operand.transpose(1, 2) for operand in (q1, k1, q2, k2, v))
    return _native.piecewise_attn_func(*operands, dist_threshold, sm_scale, causal).transpose(1, 2)


attention = piecewise_attention  # its name in its own module there
