"""FlagAttention's four functions on this library's kernels: `from flagattn.compat import flag_attn`.

Operands are (batch, heads, seqlen, head_dim), with any strides. Unlike there, head dims need not be powers of two,
piecewise attention takes grouped heads, and the log normaliser is differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn
from flagattn.compat._dropout import next_rng_state

_native: Any = flagattn  # its results depend on flags

# The version whose functions and arguments are mirrored.
__version__ = "0.2"

__all__ = ["flash_attention", "flash_attention_split_kv", "paged_attention", "piecewise_attention"]


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    sm_scale: float | None = None,
    dropout_p: float = 0.0,
    return_log_normalizer: bool = False,
    return_total_attention: bool = False,
    return_seed_offset: bool = False,
) -> Any:
    """softmax(sm_scale q k^T + mask) v, causal aligned at the last query and the last key.

    Args:
        q: (batch, heads_q, seqlen_q, head_dim).
        k, v: (batch, heads_k, seqlen_k, head_dim), where heads_k divides heads_q.

    Returns:
        out like q. Where any of the return_* arguments is set, always the five (out, log normaliser (batch, heads_q,
        seqlen_q) fp32, total attention (batch, heads_q, seqlen_k) fp32, seed, offset), None where not asked for. The
        total attention of a key is the sum over the queries of its probabilities before dropout; it has no gradient.
        The integers seed and offset are the rng_state of flagattn.reference.dropout.dropout_keep_mask; without dropout
        they are None too.
    """
    rng_state = next_rng_state(dropout_p, q.device) if return_seed_offset and dropout_p > 0.0 else None
    heads_first = (operand.transpose(1, 2) for operand in (q, k, v))
    out, lse = _native.flash_attn_func(*heads_first, dropout_p, sm_scale, causal, return_lse=True)
    out = out.transpose(1, 2)
    if not (return_log_normalizer or return_total_attention or return_seed_offset):
        return out
    total = None
    if return_total_attention:
        with torch.no_grad():
            total = _native.attention_column_sums(q.transpose(1, 2), k.transpose(1, 2), lse, causal, sm_scale)
    seed, offset = (None, None) if rng_state is None else rng_state.tolist()
    return out, lse if return_log_normalizer else None, total, seed, offset


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


def flash_attention_split_kv(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, sm_scale: float | None = None
) -> Tensor:
    """`flash_attention` without gradient; how the keys are split over threads does not change its bits."""
    with torch.no_grad():
        return flash_attention(q, k, v, causal, sm_scale)


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
