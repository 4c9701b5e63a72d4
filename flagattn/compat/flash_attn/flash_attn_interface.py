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
from flagattn.compat._gradients import attention_gradients
from flagattn.compat._operands import (
    cumulative,
    integer,
    lengths_of,
    lse_for_fa2,
    lse_from_fa2,
    rows_of_pages,
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
    """`flagattn.flash_attn_func`; with `return_attn_probs` (out, lse, an empty tensor)."""
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, alibi_slopes, deterministic)
    return _returned(_native.flash_attn_func(q, k, v, *masks, return_attn_probs), return_attn_probs)


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
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, alibi_slopes, deterministic)
    return _returned(_native.flash_attn_kvpacked_func(q, kv, *masks, return_attn_probs), return_attn_probs)


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
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, alibi_slopes, deterministic)
    return _returned(_native.flash_attn_qkvpacked_func(qkv, *masks, return_attn_probs), return_attn_probs)


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
    if block_table is not None:
        k, v = _from_pages(k, v, block_table, lengths_of(cu_seqlens_k))
    packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, alibi_slopes, deterministic)
    return _returned(_native.flash_attn_varlen_func(q, k, v, *packing, *masks, return_attn_probs), return_attn_probs)


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
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, alibi_slopes, deterministic)
    results = _native.flash_attn_varlen_kvpacked_func(q, kv, *packing, *masks, return_attn_probs)
    return _returned(results, return_attn_probs)


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
    masks = (dropout_p, softmax_scale, causal, window_of(window_size), softcap, alibi_slopes, deterministic)
    results = _native.flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, integer(max_seqlen), *masks, return_attn_probs)
    return _returned(results, return_attn_probs)


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
        alibi_slopes,
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
    window = window_of((window_size_left, window_size_right))
    with torch.no_grad():
        out, lse = _native.flash_attn_func(
            q, k, v, dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, return_lse=True
        )
    return out, lse_for_fa2(lse), q.new_empty(0), _no_rng_state(q)


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
    """(out, lse, S_dmask, rng_state) of packed operands, without gradient.

    seqused_k (batch,) says how many keys of each sequence count, leftpad_k (batch,) how many of those are left out at
    the front of a sequence.
    """
    window = window_of((window_size_left, window_size_right))
    with torch.no_grad():
        if block_table is not None:
            lengths = lengths_of(cu_seqlens_k) if seqused_k is None else seqused_k
            k, v = _from_pages(k, v, block_table, lengths, leftpad_k)
            cu_seqlens_k = cumulative(lengths if leftpad_k is None else lengths - leftpad_k)
        elif leftpad_k is not None:
            raise NotImplementedError("leftpad_k is given; it needs a block_table, so it must be None without one")
        elif seqused_k is not None:
            index, cu_seqlens_k = used_rows(cu_seqlens_k, seqused_k)
            k, v = k[index], v[index]
        packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
        out, lse = _native.flash_attn_varlen_func(
            q, k, v, *packing, dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, return_lse=True
        )
    return out, lse_for_fa2(lse), q.new_empty(0), _no_rng_state(q)


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
    _refuse_in_backward(dropout_p, alibi_slopes)
    window = _bounds(window_size_left, window_size_right, causal)
    gradients = attention_gradients(dout, q, k, v, out, lse_from_fa2(softmax_lse), None, softmax_scale, window, softcap)
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
    _refuse_in_backward(dropout_p, alibi_slopes)
    window = _bounds(window_size_left, window_size_right, causal)
    packing = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
    gradients = attention_gradients(
        dout, q, k, v, out, lse_from_fa2(softmax_lse), packing, softmax_scale, window, softcap
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


def _returned(results: Any, return_attn_probs: bool) -> Any:
    if not return_attn_probs:
        return results
    out, lse, _ = results
    return out, lse_for_fa2(lse), out.new_empty(0)


def _from_pages(
    k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor, leftpad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sequences' keys and values one behind the other, copied out of (pages, page size, heads, head_dim)."""
    rows = rows_of_pages(block_table, k.shape[1], lengths, leftpad)
    return k.flatten(0, 1)[rows], v.flatten(0, 1)[rows]


def _bounds(left: int, right: int, causal: bool) -> tuple[int, int]:
    left, right = window_of((left, right))
    return left, 0 if causal else right


def _refuse_in_backward(dropout_p: float, alibi_slopes: Tensor | None) -> None:
    if dropout_p != 0.0:
        raise NotImplementedError(f"dropout_p is {dropout_p}; this backward has no dropout, so it must be 0")
    if alibi_slopes is not None:
        raise NotImplementedError("alibi_slopes is given; this backward has no ALiBi, so it must be None")


def _written(gradients: tuple[Tensor, ...], *targets: Tensor | None) -> Tensor:
    *computed, delta = gradients
    for target, gradient in zip(targets, computed):
        if target is not None:
            target.copy_(gradient)
    return delta


def _no_rng_state(q: Tensor) -> Tensor:
    return torch.zeros(2, dtype=torch.int64, device=q.device)
