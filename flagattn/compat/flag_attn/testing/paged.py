"""`flag_attn.testing.paged`: every sequence's pages gathered, then attended to."""

from __future__ import annotations

from torch import Tensor

from flagattn.reference.kvcache import attention_with_kvcache


def attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """One query row (sequences, heads_q, head_dim) over pages (pages, heads_k, page size, head_dim)."""
    pages = [cache.transpose(1, 2) for cache in (key_cache, value_cache)]
    out, _ = attention_with_kvcache(
        query.unsqueeze(1), pages, context_lens.tolist(), block_table=block_tables, softmax_scale=scale
    )
    return out.squeeze(1)
