"""What every key got from all queries, as `flag_attn.total.total_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn

_native: Any = flagattn  # its results depend on flags


def total_attention(
    q: Tensor,
    k: Tensor,
    l: Tensor,  # noqa: E741 - its name there
    causal: bool = False,
    sm_scale: float | None = None,
) -> Tensor:
    """Every key's probabilities summed over the queries, from the log normaliser that `flash_attention` returned.

    Args:
        q: (batch, heads_q, seqlen_q, head_dim).
        k: (batch, heads_k, seqlen_k, head_dim).
        l: (batch, heads_q, seqlen_q), float32.

    Returns:
        (batch, heads_q, seqlen_k), float32, without gradient.
    """
    with torch.no_grad():
        total: Tensor = _native.attention_column_sums(q.transpose(1, 2), k.transpose(1, 2), l, causal, sm_scale)
    return total
