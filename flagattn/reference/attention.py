"""Attention and piecewise attention by their definitions: the whole score matrix, one mask, one softmax.

Dense tensors are (batch, seqlen, heads, head_dim), packed ones (total, heads, head_dim). Matrix products run in the
dtype of the operands; scores are scaled, capped, masked and normalised in at least fp32. The LSE is natural-log,
(batch, heads, seqlen_q) or (heads, total_q), and differentiable. Rows that see no key give 0 and -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flagattn.reference.masks import UNBOUNDED, far_mask, keep_mask

Outputs = tuple[Tensor, Tensor]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    softcap: float = 0.0,
) -> Outputs:
    """softmax(cap(scale q k^T) + mask) v, and the log-sum-exp of its rows."""
    keep = keep_mask(q.shape[1], k.shape[1], causal=causal, window_size=window_size, device=q.device)
    scores = _cap(_dot(q, k).mul(_scale_of(q, softmax_scale)), softcap)
    return _softmax_times(scores, keep, v)


def piecewise_attention(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    dist_threshold: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    softcap: float = 0.0,
) -> Outputs:
    """Attention whose score is q2.k2 where i + (Sk - Sq) - j >= dist_threshold, and q1.k1 elsewhere."""
    seqlen_q, seqlen_k = q1.shape[1], k1.shape[1]
    keep = keep_mask(seqlen_q, seqlen_k, causal=causal, window_size=window_size, device=q1.device)
    far = far_mask(seqlen_q, seqlen_k, dist_threshold, q1.device)
    scale = _scale_of(q1, softmax_scale)
    scores = torch.where(far, _dot(q2, k2).mul(scale), _dot(q1, k1).mul(scale))
    return _softmax_times(_cap(scores, softcap), keep, v)


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    softcap: float = 0.0,
) -> Outputs:
    """`attention` of every sequence by itself. Rows behind the last sequence give 0 and -inf."""

    def one_sequence(rows: slice, keys: slice) -> Outputs:
        return attention(
            q[None, rows],
            k[None, keys],
            v[None, keys],
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
        )

    return _for_each_sequence(one_sequence, q, v, cu_seqlens_q, cu_seqlens_k)


def piecewise_attention_varlen(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    dist_threshold: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    softcap: float = 0.0,
) -> Outputs:
    """`piecewise_attention` of every sequence by itself. Rows behind the last sequence give 0 and -inf."""

    def one_sequence(rows: slice, keys: slice) -> Outputs:
        return piecewise_attention(
            q1[None, rows],
            k1[None, keys],
            q2[None, rows],
            k2[None, keys],
            v[None, keys],
            dist_threshold,
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
        )

    return _for_each_sequence(one_sequence, q1, v, cu_seqlens_q, cu_seqlens_k)


def merge_attention_states(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Outputs:
    """The (out, lse) of the union of disjoint key sets, from the (out, lse) of each: softmax-weighted by the LSEs."""
    stacked = torch.stack([lse.to(_softmax_dtype(lse)) for lse in lses])
    empty = torch.isneginf(stacked)
    all_empty = empty.all(dim=0)
    finite = stacked.masked_fill(all_empty, 0.0)
    lse = torch.logsumexp(finite, dim=0)
    weights = torch.exp(finite - lse).masked_fill(empty, 0.0).transpose(-1, -2).unsqueeze(-1)
    merged = sum(weight * out for weight, out in zip(weights, outs, strict=True))
    assert isinstance(merged, Tensor)
    return merged.to(outs[0].dtype), lse.masked_fill(all_empty, -math.inf)


# ---- one tile of it all ----


def _softmax_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _scale_of(q: Tensor, softmax_scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale


def _cap(scores: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(scores / softcap) if softcap > 0.0 else scores


def _for_each_query_head(tensor: Tensor, heads_q: int) -> Tensor:
    """Query head h reads key/value head h // (heads_q / heads_k)."""
    return tensor.repeat_interleave(heads_q // tensor.shape[2], dim=2)


def _dot(q: Tensor, k: Tensor) -> Tensor:
    """Scores (batch, heads, seqlen_q, seqlen_k), rounded to the operands' dtype and then widened for the softmax."""
    products = torch.einsum("bqhd,bkhd->bhqk", q, _for_each_query_head(k, q.shape[2]))
    return products.to(_softmax_dtype(q))


def _softmax_times(scores: Tensor, keep: Tensor, v: Tensor) -> Outputs:
    # Rows that see no key are given zeros to normalise, so that neither they nor their gradients become NaN.
    empty = ~keep.any(dim=-1, keepdim=True)
    visible = scores.masked_fill(~keep, -math.inf).masked_fill(empty, 0.0)
    lse = torch.logsumexp(visible, dim=-1, keepdim=True)
    probabilities = torch.exp(visible - lse).masked_fill(~keep, 0.0)
    out = torch.einsum("bhqk,bkhd->bqhd", probabilities.to(v.dtype), _for_each_query_head(v, scores.shape[1]))
    return out, lse.masked_fill(empty, -math.inf).squeeze(-1)


def _for_each_sequence(
    one_sequence: Callable[[slice, slice], Outputs], q: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor
) -> Outputs:
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    total_q, heads = q.shape[0], q.shape[1]
    outs, lses = [], []
    for index in range(len(bounds_q) - 1):
        out, lse = one_sequence(
            slice(bounds_q[index], bounds_q[index + 1]), slice(bounds_k[index], bounds_k[index + 1])
        )
        outs.append(out[0])
        lses.append(lse[0])
    unused = total_q - bounds_q[-1]
    outs.append(v.new_zeros(unused, heads, v.shape[-1]))
    lses.append(q.new_full((heads, unused), -math.inf, dtype=_softmax_dtype(q)))
    return torch.cat(outs), torch.cat(lses, dim=1)
