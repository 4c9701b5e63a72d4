"""The ways from the public functions to the ops that read caches: copies where they are needed, the call, its fakes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flagattn import _load
from flagattn._attention_ops import outputs_like
from flagattn._autograd import not_differentiable
from flagattn._cache_checks import check_cache_indices, check_cached_operands
from flagattn._checks import (
    DTYPES,
    check_integer,
    check_prefix_sums,
    check_softcap,
    prepared,
    scale_or_default,
    window_bounds,
)
from flagattn._score_options import score_options

_load.load()
_ops: Any = torch.ops.flagattn

_varlen_op = not_differentiable(
    _ops.attention_kvcache_varlen.default,
    "attention of packed queries over a cache has no gradient: gather the keys and values of the pages, and give them "
    "to flash_attn_varlen_func without block_table",
)


def in_dtype_of(cache: Tensor, *operands: Any) -> tuple[Any, ...]:
    """Under autocast the operands in the cache's dtype, which cannot follow autocast's; else as they are."""
    if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")) or not isinstance(cache, Tensor):
        return operands
    return tuple(o.to(cache.dtype) if isinstance(o, Tensor) and o.dtype in DTYPES else o for o in operands)


def padded_to_eight(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, -tensor.shape[-1] % 8))


def call_on_caches(
    op: Any,
    queries: tuple[Tensor, ...],
    caches: tuple[Tensor, ...],
    new: tuple[Tensor, ...],
    numbers: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    """Calls the op with its operands in order; head dims that are no multiple of 8 go through padded copies."""
    queries, new = prepared(*queries), prepared(*new) if new else ()
    narrow = any(cache.shape[-1] % 8 != 0 for cache in caches)
    wide = tuple(padded_to_eight(cache) for cache in caches) if narrow else caches
    if narrow:
        queries, new = tuple(map(padded_to_eight, queries)), tuple(map(padded_to_eight, new))
    keys = (wide[0],) if len(queries) == 1 else (wide[0], queries[1], wide[1])
    out, lse = op(queries[0], *keys, wide[-1], *new, *numbers)
    if new:
        for cache, copy in zip(caches, wide):
            if narrow:
                cache.copy_(copy[..., : cache.shape[-1]])
            elif not torch.compiler.is_compiling() and not cache.is_inference():
                torch.autograd.graph.increment_version(cache)  # so that a graph that saved it notices
    return out, lse


def append_and_attend(
    q: Tensor,
    caches: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    seqlens: Tensor,
    leftpad: Tensor | None,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> Tensor:
    """`flash_attn_with_kvcache` for callers in this package that made the caches and looked at the new rows.

    All are (batch, seqlen, heads, head_dim) of one dtype on one device, the caches no inference tensors unless in
    inference mode, the head dims multiples of 8, no gradient is asked for and autocast changes nothing; that q fits the
    caches is checked here.
    """
    check_cached_operands(q, *caches, False, ("q", "k_cache", "v_cache"))
    check_softcap(softcap)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, q.shape[-1])
    numbers = (seqlens, None, leftpad, None, scale, left, right, softcap, None, None)
    without_rotation = (None, None, False)
    op = _ops.attention_kvcache_append.default
    return call_on_caches(op, (q,), caches, new, (*without_rotation, *numbers))[0]


def packed_queries_over_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: Any,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: Any = 0,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    names: tuple[str, str, str] = ("q", "k", "v"),
) -> tuple[Tensor, Tensor]:
    """(out, lse) of q (total_q, heads_q, head_dim) over caches k and v, which nothing is appended to.

    The rows that a sequence has in the cache are told by cu_seqlens_k or by cache_seqlens; without either they are all.
    """
    (q,) = in_dtype_of(k, q)
    head_dim, head_dim_v = check_cached_operands(q, k, v, block_table is not None, names, packed=True)
    check_prefix_sums(q, cu_seqlens_q, *(() if cu_seqlens_k is None else (cu_seqlens_k,)))
    check_integer(max_seqlen_q, "max_seqlen_q")
    check_integer(max_seqlen_k, "max_seqlen_k")
    if dropout_p != 0.0:
        raise NotImplementedError(f"dropout_p is {dropout_p}; attention over caches drops nothing, so it must be 0")
    batch = cu_seqlens_q.shape[0] - 1
    seqlens = check_cache_indices(q, batch, k, cache_seqlens, cache_batch_idx, cache_leftpad, block_table, names[1])
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    check_softcap(softcap)
    _, _, slopes, sinks, *_ = score_options(q, batch, alibi_slopes=alibi_slopes, sinks=sinks)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    indices = (seqlens, cache_batch_idx, cache_leftpad, block_table)
    numbers = (*packing, *indices, scale, left, right, softcap, slopes, sinks)
    out, lse = call_on_caches(_varlen_op, (q,), (k, v), (), numbers)
    return out if out.shape[-1] == head_dim_v else out[..., :head_dim_v], lse


# ---- for tracing ----


def _attention_kvcache_fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return outputs_like(q, v_cache)


def _piecewise_kvcache_fake(
    q1: Tensor, k1_cache: Tensor, q2: Tensor, k2_cache: Tensor, v_cache: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return outputs_like(q1, v_cache)


_register_fake: Any = torch.library.register_fake
_register_fake("flagattn::attention_kvcache", _attention_kvcache_fake)
_register_fake("flagattn::attention_kvcache_varlen", _attention_kvcache_fake)
_register_fake("flagattn::attention_kvcache_append", _attention_kvcache_fake)
_register_fake("flagattn::piecewise_kvcache", _piecewise_kvcache_fake)
_register_fake("flagattn::piecewise_kvcache_append", _piecewise_kvcache_fake)
