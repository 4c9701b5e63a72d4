"""Attention over caches of keys and values, for generation: contiguous or paged, with new rows appended on the way.

A sequence b of the batch owns a stretch of the cache: the batch row `cache_batch_idx[b]` (b by default), or, paged, the
pages `block_table[b]`, whose rows stand one behind the other. Its keys are rows `cache_leftpad[b]` (0 by default) to
`cache_seqlens[b] - 1`, and the new rows behind them. What a row of queries computes is what `flagattn.flash_attn_func`
or `flagattn.piecewise_attn_func` computes for these keys, bit for bit on the CPU, with the last query aligned with the
last key. Other rows and pages are never read.

The semantics are those of Dao, "FlashAttention-2" (2023), whose argument order and defaults are kept; pages may have
any size here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn import _load
from flagattn._cache_calls import call_on_caches, in_dtype_of
from flagattn._cache_checks import (
    check_cache_indices,
    check_cached_operands,
    check_new_rows,
    check_rotary_tables,
    check_splits,
    refuse_gradients,
)
from flagattn._checks import (
    BEYOND,
    check_integer,
    check_same_as,
    check_softcap,
    scale_or_default,
    window_bounds,
)
from flagattn._errors import explained
from flagattn._score_options import checked_sinks, score_options

_load.load()
_ops: Any = torch.ops.flagattn

_NAMES = ("q", "k_cache", "v_cache")
_PIECEWISE_NAMES = ("q1", "k1_cache", "v_cache")


@explained
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of q over a cache, to which k and v are appended first if they are given.

    ``out = softmax(softmax_scale q K^T + mask) V``, where K and V are the rows of the cache that sequence b uses.

    Args:
        q: (batch, seqlen_q, heads_q, head_dim), float32, bfloat16 or float16, head_dim up to 256 (the cache is copied
            with padding unless it is a multiple of 8).
        k_cache: (rows, capacity, heads_k, head_dim) with at least batch rows, or with block_table (pages, page_size,
            heads_k, head_dim); heads_k divides heads_q. Any strides, but the last dimension must be contiguous. To be
            appended to under torch.compile with symbolic sizes it needs storage of its own (docs/ops/caches.md).
        v_cache: the same with head_dim_v.
        k, v: (batch, seqlen_new, heads_k, head_dim or head_dim_v): written in place behind cache_seqlens rows. Needs
            cache_seqlens, and memory that is not a cache's.
        rotary_cos, rotary_sin: (positions, rotary_dim / 2), float32, bfloat16 or float16. k is rotated at positions
            cache_seqlens, cache_seqlens + 1, ... before it is written; so is q with causal or a window, and else q is
            rotated at cache_seqlens. q itself is left as it is. Needs k.
        cache_seqlens: (batch,), int32, or an int for all: rows in use before k is appended, left padding included. All
            by default.
        cache_batch_idx: (batch,), int32: the batch row of every sequence. Not with block_table.
        cache_leftpad: (batch,), int32: rows at the start of every sequence's stretch that are not keys.
        block_table: (batch, pages of a sequence), int32: the pages of every sequence; entries it does not use may be
            anything.
        softmax_scale: defaults to 1 / sqrt(head_dim).
        causal: row i sees no key behind i + seqlen_k - seqlen_q.
        window_size: (left, right), inclusive around i + seqlen_k - seqlen_q; -1 is unbounded.
        softcap: bounds the scores softly to (-softcap, softcap); 0 switches it off.
        rotary_interleaved: pairs are channels (2i, 2i + 1); else (i, i + rotary_dim / 2).
        alibi_slopes: (heads_q,) or (batch, heads_q), floating: every score loses slope * |i + seqlen_k - seqlen_q - j|.
        num_splits: accepted, >= 0; the work is cut at fixed keys, and the result does not depend on the cut.
        return_softmax_lse, return_lse: return (out, lse).
        sinks: (heads_q,), floating: one more key per head, of this score and of value 0, that every row sees.

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v) in q's dtype, and where asked for lse (batch, heads_q, seqlen_q) in
        float32, natural log, sinks included. Rows that see no key, those of an empty sequence among them, give 0 and
        -inf, or their sink.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        RuntimeError: on the CPU, and before anything is written: lengths, paddings, indices or pages outside the cache,
            positions outside the rotary tables, or new rows for a batch row or page that is used twice (on CUDA what
            lies outside is clamped, and new rows outside are not written). An operand that requires gradient. On CUDA
            float32, or operands that do not lie on 16-byte borders.
        NotImplementedError: the operands are neither on CPU nor on CUDA.

    Not differentiable: caches change in place. Under autocast q, k and v are cast to the cache's dtype.

    Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.
    """
    refuse_gradients("flash_attn_with_kvcache", q, k_cache, v_cache, k, v, sinks)
    q, k, v = in_dtype_of(k_cache, q, k, v)
    head_dim, head_dim_v = check_cached_operands(q, k_cache, v_cache, block_table is not None, _NAMES)
    seqlens = check_cache_indices(q, q.shape[0], k_cache, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    check_splits(num_splits)
    if (k is None) != (v is None):
        raise ValueError("k and v must be given together")
    if k is None and (rotary_cos is not None or rotary_sin is not None):
        raise ValueError("rotary_cos or rotary_sin is given without k; rotation is for rows that are appended")
    check_softcap(softcap)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    _, _, slopes, sinks, *_ = score_options(q, q.shape[0], alibi_slopes=alibi_slopes, sinks=sinks)
    numbers = (seqlens, cache_batch_idx, cache_leftpad, block_table, scale, left, right, softcap, slopes, sinks)
    if k is None or v is None:
        out, lse = call_on_caches(_ops.attention_kvcache.default, (q,), (k_cache, v_cache), (), numbers)
    else:
        check_new_rows(q, {"k": (k, k_cache), "v": (v, v_cache)}, cache_seqlens)
        rotary = (*check_rotary_tables(q, rotary_cos, rotary_sin), rotary_interleaved)
        out, lse = call_on_caches(
            _ops.attention_kvcache_append.default, (q,), (k_cache, v_cache), (k, v), (*rotary, *numbers)
        )
    out = out if out.shape[-1] == head_dim_v else out[..., :head_dim_v]
    return (out, lse) if return_softmax_lse or return_lse else out


@explained
def piecewise_attn_with_kvcache(
    q1: Tensor,
    q2: Tensor,
    k1_cache: Tensor,
    k2_cache: Tensor,
    v_cache: Tensor,
    dist_threshold: int,
    k1: Tensor | None = None,
    k2: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
    *,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Piecewise attention over caches: scores are q2.k2 at distances d >= dist_threshold, and q1.k1 elsewhere.

    Args:
        q1, q2: (batch, seqlen_q, heads_q, head_dim), already rotated.
        k1_cache, k2_cache: (rows, capacity, heads_k, head_dim), or with block_table (pages, page_size, heads_k,
            head_dim).
        v_cache: the same with head_dim_v.
        dist_threshold: the smallest distance i + seqlen_k - seqlen_q - j that counts as far; any integer.
        k1, k2, v: (batch, seqlen_new, heads_k, head_dim or head_dim_v), already rotated: written in place behind
            cache_seqlens rows. All three or none, and none in a cache's memory.

    The other arguments, the results and the errors are those of `flash_attn_with_kvcache`, and the scores those of
    `piecewise_attn_func`.

    Not differentiable: caches change in place. Under autocast q1, q2, k1, k2 and v are cast to the cache's dtype.

    Source: FlagAttention (FlagOpen, 2023), whose operator this is.
    """
    refuse_gradients("piecewise_attn_with_kvcache", q1, q2, k1_cache, k2_cache, v_cache, k1, k2, v, sinks)
    q1, q2, k1, k2, v = in_dtype_of(k1_cache, q1, q2, k1, k2, v)
    head_dim, head_dim_v = check_cached_operands(q1, k1_cache, v_cache, block_table is not None, _PIECEWISE_NAMES)
    check_same_as(q2, "q2", q1, "q1")
    check_same_as(k2_cache, "k2_cache", k1_cache, "k1_cache")
    if k2_cache.stride(-1) != 1:
        raise ValueError(f"k2_cache has strides {k2_cache.stride()}; its last dimension must be contiguous")
    seqlens = check_cache_indices(q1, q1.shape[0], k1_cache, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    check_splits(num_splits)
    check_integer(dist_threshold, "dist_threshold")
    if isinstance(dist_threshold, int):
        dist_threshold = max(-BEYOND, min(dist_threshold, BEYOND))
    check_softcap(softcap)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    if sinks is not None:
        sinks = checked_sinks(sinks, q1)
    numbers = (seqlens, cache_batch_idx, cache_leftpad, block_table, dist_threshold, scale, left, right, softcap, sinks)
    caches = (k1_cache, k2_cache, v_cache)
    if k1 is None and k2 is None and v is None:
        out, lse = call_on_caches(_ops.piecewise_kvcache.default, (q1, q2), caches, (), numbers)
    elif k1 is None or k2 is None or v is None:
        raise ValueError("k1, k2 and v must be given together")
    else:
        check_new_rows(q1, {"k1": (k1, k1_cache), "k2": (k2, k2_cache), "v": (v, v_cache)}, cache_seqlens)
        out, lse = call_on_caches(_ops.piecewise_kvcache_append.default, (q1, q2), caches, (k1, k2, v), numbers)
    out = out if out.shape[-1] == head_dim_v else out[..., :head_dim_v]
    return (out, lse) if return_lse else out
