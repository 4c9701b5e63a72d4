"""The one way from the public functions to the attention op: checks, copies where they are needed, the call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flagattn._attention_ops import attention_op
from flagattn._checks import (
    check_dense_operands,
    check_packed_operands,
    check_packing,
    check_softcap,
    padded,
    prepared,
    scale_or_default,
    under_autocast,
    window_bounds,
)
from flagattn._score_options import checked_mask, score_options

Output = Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, None]
# (dropout_p, alibi_slopes, sinks)
Joined = tuple[float, Tensor | None, Tensor | None]

_NAMES = ("q", "k", "v")


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    joined: Joined,
    attn_mask: Tensor | None = None,
    names: tuple[str, str, str] = _NAMES,
) -> tuple[Tensor, Tensor]:
    """Of (batch, seqlen, heads, head_dim) operands; attn_mask is torch's."""
    q, k, v = under_autocast(q, k, v)
    seqlen_q, seqlen_k, head_dim, head_dim_v = check_dense_operands(q, k, v, names)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    check_softcap(softcap)
    mask = (None, None) if attn_mask is None else checked_mask(attn_mask, q, seqlen_k)
    options = score_options(q, q.shape[0], *joined, *mask)
    q, k, v = prepared(q, k, v)
    if head_dim % 8 != 0 or head_dim_v % 8 != 0:
        q, k, v = padded(q, k, v)
    out, lse = attention_op(q, k, v, None, None, seqlen_q, seqlen_k, scale, left, right, softcap, *options)
    return out if head_dim_v % 8 == 0 else out[..., :head_dim_v], lse


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: tuple[Tensor, Tensor, Any, Any],
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    joined: Joined,
) -> tuple[Tensor, Tensor]:
    """Of (total, heads, head_dim) operands and (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)."""
    q, k, v = under_autocast(q, k, v)
    head_dim, head_dim_v = check_packed_operands(q, k, v, _NAMES)
    check_packing(*packing, q)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    check_softcap(softcap)
    options = score_options(q, packing[0].shape[0] - 1, *joined)
    q, k, v = prepared(q, k, v)
    if head_dim % 8 != 0 or head_dim_v % 8 != 0:
        q, k, v = padded(q, k, v)
    out, lse = attention_op(q, k, v, *packing, scale, left, right, softcap, *options)
    return out if head_dim_v % 8 == 0 else out[..., :head_dim_v], lse


def returned(out: Tensor, lse: Tensor, return_attn_probs: bool, return_lse: bool) -> Output:
    if return_attn_probs:
        return out, lse, None
    return (out, lse) if return_lse else out
