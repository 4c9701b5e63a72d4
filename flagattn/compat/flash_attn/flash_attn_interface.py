"""FlashAttention-2's functions: its seven public ones and the four below autograd that training frameworks call.

They are those of `flagattn` of the same names, with what FlashAttention-2 does differently: the LSE of a row that sees
no key is +inf, negative window bounds are unbounded, maximal lengths may be tensors, `block_table` may page the keys of
packed sequences, and `return_attn_probs` gives a third result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn
from flagattn._cache_calls import packed_queries_over_cache
from flagattn.compat._dropout import next_rng_state, signed_weights
from flagattn.compat._gradients import attention_gradients
from flagattn.compat._operands import (
    detached,
    integer,
    lse_for_fa2,
    lse_from_fa2,
    used_rows,
    window_of,
)

_native: Any = flagattn  # its results depend on flags

# ROCm's Triton backend is not mirrored.
USE_TRITON_ROCM = False


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flagattn.flash_attn_func`; with `return_attn_probs` (out, lse, S_dmask).

    S_dmask is empty without dropout. With it, it is (batch, heads_q, seqlen_q, seqlen_k), the lengths rounded up to
    multiples of 128: exp(score - the row's maximum), negative where dropout took the weight. It is for tests.
    """
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, detached(alibi_slopes), deterministic)
    rng_state = _watched(return_attn_probs, dropout_p, q)
    results = _native.flash_attn_func(q, k, v, *masks, return_attn_probs)
    return _returned(results, rng_state, q, k, masks)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flagattn.flash_attn_kvpacked_func`, with the results of `flash_attn_func`."""
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, detached(alibi_slopes), deterministic)
    rng_state = _watched(return_attn_probs, dropout_p, q)
    results = _native.flash_attn_kvpacked_func(q, kv, *masks, return_attn_probs)
    return _returned(results, rng_state, q, kv[:, :, 0], masks)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flagattn.flash_attn_qkvpacked_func`, with the results of `flash_attn_func`."""
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, detached(alibi_slopes), deterministic)
    rng_state = _watched(return_attn_probs, dropout_p, qkv)
    results = _native.flash_attn_qkvpacked_func(qkv, *masks, return_attn_probs)
    return _returned(results, rng_state, qkv[:, :, 0], qkv[:, :, 1], masks)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """`flagattn.flash_attn_varlen_func`; with `block_table` k and v are (pages, page size, heads_k, head_dim)."""
    packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, detached(alibi_slopes), deterministic)
    rng_state = _watched(return_attn_probs, dropout_p, q)
    results = _native.flash_attn_varlen_func(q, k, v, *packing, *masks, return_attn_probs, block_table)
    return _returned(results, rng_state, q, k, masks, packing)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flagattn.flash_attn_varlen_kvpacked_func`, with the results of `flash_attn_func`."""
    packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, detached(alibi_slopes), deterministic)
    rng_state = _watched(return_attn_probs, dropout_p, q)
    results = _native.flash_attn_varlen_kvpacked_func(q, kv, *packing, *masks, return_attn_probs)
    return _returned(results, rng_state, q, kv[:, 0], masks, packing)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flagattn.flash_attn_varlen_qkvpacked_func`, with the results of `flash_attn_func`."""
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, detached(alibi_slopes), deterministic)
    length = integer(max_seqlen)
    rng_state = _watched(return_attn_probs, dropout_p, qkv)
    results = _native.flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, length, *masks, return_attn_probs)
    packing = (cu_seqlens, cu_seqlens, length, length)
    return _returned(results, rng_state, qkv[:, 0], qkv[:, 1], masks, packing)


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
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """`flagattn.flash_attn_with_kvcache`; with `return_softmax_lse` (out, lse), +inf for rows that see no key."""
    out, lse = _native.flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k,
        v,
        rotary_cos,
        rotary_sin,
        cache_seqlens,
        cache_batch_idx,
        cache_leftpad,
        block_table,
        softmax_scale,
        causal,
        window_of(window_size),
        softcap,
        rotary_interleaved,
        detached(alibi_slopes),
        num_splits,
        True,
    )
    return (out, lse_for_fa2(lse)) if return_softmax_lse else out


# ---- below autograd ----


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, S_dmask, rng_state) of dense operands, without gradient."""
    masks = (dropout_p, softmax_scale, causal, window_of((window_size_left, window_size_right)), softcap, alibi_slopes)
    rng_state = next_rng_state(dropout_p, q.device)
    with torch.no_grad():
        results = _native.flash_attn_func(q, k, v, *masks, return_attn_probs=True)
        watched = rng_state if return_softmax and dropout_p > 0.0 else q.new_empty(0)
        return *_returned(results, watched, q, k, masks), rng_state


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
    num_splits: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, S_dmask, rng_state) of packed or paged keys, without gradient.

    seqused_k (batch,) says how many keys of each sequence count, leftpad_k (batch,) how many of those are left out at
    the front of a sequence.
    """
    masks = (dropout_p, softmax_scale, causal, window_of((window_size_left, window_size_right)), softcap, alibi_slopes)
    rng_state = next_rng_state(dropout_p, q.device)
    with torch.no_grad():
        if block_table is not None:
            out, lse = packed_queries_over_cache(
                q,
                k,
                v,
                cu_seqlens_q,
                integer(max_seqlen_q),
                cu_seqlens_k=cu_seqlens_k if seqused_k is None else None,
                max_seqlen_k=integer(max_seqlen_k),
                cache_seqlens=seqused_k,
                cache_leftpad=leftpad_k,
                block_table=block_table,
                dropout_p=dropout_p,
                softmax_scale=softmax_scale,
                causal=causal,
                window_size=masks[3],
                softcap=softcap,
                alibi_slopes=alibi_slopes,
            )
            return out, lse_for_fa2(lse), q.new_empty(0), rng_state
        if seqused_k is not None or leftpad_k is not None:
            index, cu_seqlens_k = used_rows(cu_seqlens_k, seqused_k, leftpad_k)
            k, v = k[index], v[index]
        packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
        results = _native.flash_attn_varlen_func(q, k, v, *packing, *masks, return_attn_probs=True)
        watched = rng_state if return_softmax and dropout_p > 0.0 else q.new_empty(0)
        return *_returned(results, watched, q, k, masks, packing), rng_state


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Writes dq, dk, dv where they are given; returns the row sums of dout * out, (batch, heads, seqlen_q)."""
    options = (alibi_slopes, dropout_p, _given_with(dropout_p, rng_state))
    window = _bounds(window_size_left, window_size_right, causal)
    gradients = attention_gradients(
        dout, q, k, v, out, lse_from_fa2(softmax_lse), None, softmax_scale, window, softcap, *options
    )
    return _written(gradients, dq, dk, dv)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """Writes dq, dk, dv where they are given; returns the row sums of dout * out, (heads, total_q)."""
    options = (alibi_slopes, dropout_p, _given_with(dropout_p, rng_state))
    window = _bounds(window_size_left, window_size_right, causal)
    packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
    gradients = attention_gradients(
        dout, q, k, v, out, lse_from_fa2(softmax_lse), packing, softmax_scale, window, softcap, *options
    )
    return _written(gradients, dq, dk, dv)


# torch.compile and hooks reach the functions by these names too.
_wrapped_flash_attn_forward = _flash_attn_forward
_wrapped_flash_attn_varlen_forward = _flash_attn_varlen_forward
_wrapped_flash_attn_backward = _flash_attn_backward
_wrapped_flash_attn_varlen_backward = _flash_attn_varlen_backward


# ---- helpers ----


def _get_block_size_n(device: Any, head_dim: int, is_dropout: bool, is_causal: bool) -> int:
    """How many keys share the maximum that a row of S_dmask is relative to: here all of them."""
    return 2**30


def _watched(return_attn_probs: bool, dropout_p: float, like: Tensor) -> Tensor | None:
    """None where no probabilities are asked for; else where dropout will draw, or nothing if there is none."""
    if not return_attn_probs:
        return None
    return next_rng_state(dropout_p, like.device) if dropout_p > 0.0 else like.new_empty(0)


def _returned(
    results: Any, rng_state: Tensor | None, q: Tensor, k: Tensor, masks: tuple[Any, ...], packing: Any = None
) -> Any:
    """`results` as FlashAttention-2 returns them: (out, lse, S_dmask) where rng_state is a tensor."""
    if rng_state is None:
        return results
    out, lse, _ = results
    if rng_state.numel() == 0:
        return out, lse_for_fa2(lse), out.new_empty(0)
    dropout_p, softmax_scale, causal, window, _, alibi_slopes, *_ = masks
    with torch.no_grad():
        weights = signed_weights(q, k, softmax_scale, causal, window, alibi_slopes, dropout_p, rng_state, packing)
    return out, lse_for_fa2(lse), weights


def _bounds(left: int, right: int, causal: bool) -> tuple[int, int]:
    left, right = window_of((left, right))
    return left, 0 if causal else right


def _given_with(dropout_p: float, rng_state: Tensor | None) -> Tensor | None:
    if dropout_p > 0.0 and rng_state is None:
        raise ValueError(f"dropout_p is {dropout_p} and rng_state is None; the backward needs the forward's rng_state")
    return rng_state


def _written(gradients: tuple[Tensor, ...], *targets: Tensor | None) -> Tensor:
    *computed, delta = gradients
    for target, gradient in zip(targets, computed):
        if target is not None:
            target.copy_(gradient)
    return delta
