"""Attention over caches by its definition: the rows of every sequence are gathered, then attended to by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flagattn.reference.attention import Outputs, attention, piecewise_attention


def cached_rows(
    cache: Tensor,
    index: int,
    seqlen: int,
    *,
    leftpad: int = 0,
    batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """Rows leftpad to seqlen - 1 of sequence `index`: (length, heads, head_dim)."""
    if block_table is not None:
        size = cache.shape[1]
        rows = [cache[int(block_table[index, row // size]), row % size] for row in range(leftpad, seqlen)]
        return torch.stack(rows) if rows else cache.new_empty(0, *cache.shape[2:])
    return cache[index if batch_idx is None else int(batch_idx[index]), leftpad:seqlen]


def attention_with_kvcache(
    q: Tensor,
    caches: Sequence[Tensor],
    seqlens: Sequence[int],
    *,
    q2: Tensor | None = None,
    dist_threshold: int = 0,
    leftpad: Tensor | None = None,
    batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **options: Any,
) -> Outputs:
    """`attention` of q over (k_cache, v_cache), or with q2 `piecewise_attention` over (k1_cache, k2_cache, v_cache)."""
    outs, lses = [], []
    for b, seqlen in enumerate(seqlens):
        start = 0 if leftpad is None else int(leftpad[b])
        rows = [
            cached_rows(cache, b, seqlen, leftpad=start, batch_idx=batch_idx, block_table=block_table)[None].to(q.dtype)
            for cache in caches
        ]
        if q2 is None:
            slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b : b + 1]
            out, lse = attention(q[b : b + 1], *rows, alibi_slopes=slopes, **options)
        else:
            k1, k2, v = rows
            out, lse = piecewise_attention(q[b : b + 1], k1, q2[b : b + 1], k2, v, dist_threshold, **options)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)
