"""One query row per sequence over pages, as `flag_attn.paged.attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn

_native: Any = flagattn  # its results depend on flags


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    attn_scale: float,
    max_context_len: int,
    num_splits: int = 0,
) -> Tensor:
    """One query row per sequence against its pages of the cache.

    Args:
        query: (sequences, heads_q, head_dim).
        key_cache, value_cache: (pages, heads_k, page size, head_dim).
        context_lens: (sequences,), how many keys of each count.
        block_tables: (sequences, most pages of one), the pages in order.
        attn_scale: multiplies the scores.
        max_context_len: accepted; the lengths are read from context_lens.
        num_splits: accepted; the bits do not depend on it.

    Returns:
        (sequences, heads_q, head_dim), without gradient.
    """
    out = _native.flash_attn_with_kvcache(
        query.unsqueeze(1),
        key_cache.transpose(1, 2),
        value_cache.transpose(1, 2),
        cache_seqlens=context_lens.to(torch.int32),
        block_table=block_tables.to(torch.int32),
        softmax_scale=attn_scale,
        num_splits=num_splits,
    )
    return out.squeeze(1)


attention = paged_attention  # its name in its own module there
