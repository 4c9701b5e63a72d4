"""Piecewise attention: near keys are scored with one pair of projections, far keys with another.

With d = i + Sk - Sq - j, the signed distance by which key j lies behind query row i when the last query is aligned with
the last key,

    s_ij = softmax_scale * (q2_i . k2_j  if d >= dist_threshold  else  q1_i . k1_j)
    out_i = sum_j softmax_j(s_ij) v_j,   lse_i = log sum_j exp(s_ij)

over the keys the row sees, as in `flagattn.flash_attn_func`. dist_threshold is any integer: at 0 or below a causal row
has far keys only, at Sk or above near keys only. The operator is FlagAttention's (FlagOpen, 2023); here it also takes
grouped heads, windows, packed sequences, and returns a differentiable LSE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flagattn._attention_ops import piecewise_op
from flagattn._checks import (
    BEYOND,
    check_dense_operands,
    check_integer,
    check_packed_operands,
    check_packing,
    check_same_as,
    check_softcap,
    padded,
    prepared,
    scale_or_default,
    under_autocast,
    window_bounds,
)
from flagattn._errors import explained
from flagattn._score_options import checked_sinks

_NAMES = ("q1", "k1", "v")


@explained
def piecewise_attn_func(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    dist_threshold: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Piecewise attention of dense batches: scores are q2.k2 at distances d >= dist_threshold, and q1.k1 elsewhere.

    Args:
        q1, q2: (batch, seqlen_q, heads_q, head_dim), float32, bfloat16 or float16, head_dim up to 256.
        k1, k2: (batch, seqlen_k, heads_k, head_dim), where heads_k divides heads_q.
        v: (batch, seqlen_k, heads_k, head_dim_v).
        dist_threshold: the smallest distance i + seqlen_k - seqlen_q - j that counts as far; any integer.
        softmax_scale: defaults to 1 / sqrt(head_dim).
        causal: row i sees no key behind i + seqlen_k - seqlen_q, that is of d < 0.
        window_size: (left, right), inclusive around i + seqlen_k - seqlen_q; -1 is unbounded.
        softcap: bounds the scores softly to (-softcap, softcap); 0 switches it off.
        sinks: (heads_q,), floating: one more key per head, of this score and of value 0, that every row sees.
        return_lse: return (out, lse).

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v) in q1's dtype, and where asked for lse (batch, heads_q, seqlen_q) in
        float32, natural log, sinks included; -inf for rows that see no key.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.

    Differentiable once in q1, k1, q2, k2, v and sinks, through out and lse; under autocast q, k, v are cast to its
    dtype.
    """
    q1, k1, q2, k2, v = under_autocast(q1, k1, q2, k2, v)
    seqlen_q, seqlen_k, *head_dims = check_dense_operands(q1, k1, v, _NAMES)
    packing = (None, None, seqlen_q, seqlen_k)
    out, lse = _call(
        q1, k1, q2, k2, v, packing, head_dims, dist_threshold, softmax_scale, causal, window_size, softcap, sinks
    )
    return (out, lse) if return_lse else out


@explained
def piecewise_attn_varlen_func(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dist_threshold: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    *,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Piecewise attention of sequences of different lengths, packed one behind the other.

    Args:
        q1, q2: (total_q, heads_q, head_dim), float32, bfloat16 or float16, head_dim up to 256.
        k1, k2: (total_k, heads_k, head_dim), where heads_k divides heads_q.
        v: (total_k, heads_k, head_dim_v).
        cu_seqlens_q: (batch + 1,), int32: sequence b has the query rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] - 1.
        cu_seqlens_k: (batch + 1,), int32, the same for its keys. Sequences may be empty.
        max_seqlen_q: at least the longest sequence's number of query rows.
        max_seqlen_k: at least the longest sequence's number of keys.

    The other arguments are those of `piecewise_attn_func`, with every sequence's own lengths in its distances.

    Returns:
        out (total_q, heads_q, head_dim_v) in q1's dtype, and where asked for lse (heads_q, total_q) in float32. Rows
        behind the last sequence are 0 and -inf, and take no gradient.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        RuntimeError: on the CPU, cu_seqlens does not rise from 0, or exceeds the tensors or the maximal length.

    Differentiable once in q1, k1, q2, k2, v and sinks, through out and lse; under autocast q, k, v are cast to its
    dtype.
    """
    q1, k1, q2, k2, v = under_autocast(q1, k1, q2, k2, v)
    head_dims = check_packed_operands(q1, k1, v, _NAMES)
    check_packing(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q1)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = _call(
        q1, k1, q2, k2, v, packing, head_dims, dist_threshold, softmax_scale, causal, window_size, softcap, sinks
    )
    return (out, lse) if return_lse else out


def _call(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    packing: tuple[Any, Any, int, int],
    head_dims: Sequence[int],
    dist_threshold: int,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    check_same_as(q2, "q2", q1, "q1")
    check_same_as(k2, "k2", k1, "k1")
    check_integer(dist_threshold, "dist_threshold")
    check_softcap(softcap)
    if isinstance(dist_threshold, int):
        dist_threshold = max(-BEYOND, min(dist_threshold, BEYOND))
    left, right = window_bounds(window_size, causal)
    head_dim, head_dim_v = head_dims
    scale = scale_or_default(softmax_scale, head_dim)
    if sinks is not None:
        sinks = checked_sinks(sinks, q1)
    operands = prepared(q1, k1, q2, k2, v)
    if head_dim % 8 != 0 or head_dim_v % 8 != 0:
        operands = padded(*operands)
    out, lse = piecewise_op(*operands, *packing, dist_threshold, scale, left, right, softcap, sinks)
    return out if head_dim_v % 8 == 0 else out[..., :head_dim_v], lse
