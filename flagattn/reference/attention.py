"""Attention and piecewise attention by their definitions: the whole score matrix, one mask, one softmax.

Dense tensors are (batch, seqlen, heads, head_dim), packed ones (total, heads, head_dim). Matrix products run in the
dtype of the operands; scores are scaled, capped, masked and normalised in at least fp32. The LSE is natural-log,
(batch, heads, seqlen_q) or (heads, total_q), and differentiable. Rows that see no key give 0 and -inf, or with a sink
its value as LSE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flagattn.reference.masks import UNBOUNDED, far_mask, keep_mask, signed_distance

Outputs = tuple[Tensor, Tensor]

HIDING = -1e38  # biases below hide their key, as -inf does


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (UNBOUNDED, UNBOUNDED),
    softcap: float = 0.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_keep: Tensor | None = None,
) -> Outputs:
    """dropout(softmax(cap(scale q k^T) + bias - slope |d| + mask)) v, and the log-sum-exp of its rows.

    `bias` (added) and `keep` (bool) broadcast to (batch, heads, seqlen_q, seqlen_k), where `dropout_keep` is False the
    weights are dropped. `alibi_slopes` are (heads) or (batch, heads), `sinks` (heads) are keys of that score and of
    value 0.
    """
    seen = keep_mask(q.shape[1], k.shape[1], causal=causal, window_size=window_size, device=q.device)
    scores = _cap(_dot(q, k).mul(_scale_of(q, softmax_scale)), softcap)
    if alibi_slopes is not None:
        distance = signed_distance(q.shape[1], k.shape[1], q.device).abs()
        scores = scores - alibi_slopes.to(scores.dtype)[..., None, None] * distance
    if bias is not None:
        hidden = bias < HIDING
        scores = scores + bias.masked_fill(hidden, 0.0).to(scores.dtype)
        seen = seen & ~hidden
    if keep is not None:
        seen = seen & keep
    return _softmax_times(scores, seen.expand(scores.shape), v, sinks, dropout_p, dropout_keep)


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
    sinks: Tensor | None = None,
) -> Outputs:
    """Attention whose score is q2.k2 where i + (Sk - Sq) - j >= dist_threshold, and q1.k1 elsewhere."""
    seqlen_q, seqlen_k = q1.shape[1], k1.shape[1]
    keep = keep_mask(seqlen_q, seqlen_k, causal=causal, window_size=window_size, device=q1.device)
    far = far_mask(seqlen_q, seqlen_k, dist_threshold, q1.device)
    scale = _scale_of(q1, softmax_scale)
    scores = torch.where(far, _dot(q2, k2).mul(scale), _dot(q1, k1).mul(scale))
    return _softmax_times(_cap(scores, softcap), keep.expand(scores.shape), v, sinks)


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
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_keep: Tensor | None = None,
) -> Outputs:
    """`attention` of every sequence by itself. Rows behind the last sequence give 0 and -inf.

    Of `dropout_keep`, (batch, heads, max_seqlen_q, max_seqlen_k), a sequence takes what lies within its lengths.
    """

    def one_sequence(index: int, rows: slice, keys: slice) -> Outputs:
        kept = None
        if dropout_keep is not None:
            kept = dropout_keep[index, :, : rows.stop - rows.start, : keys.stop - keys.start]
        by_sequence = alibi_slopes is not None and alibi_slopes.dim() == 2
        return attention(
            q[None, rows],
            k[None, keys],
            v[None, keys],
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
            alibi_slopes=alibi_slopes[index] if by_sequence and alibi_slopes is not None else alibi_slopes,
            sinks=sinks,
            dropout_p=dropout_p,
            dropout_keep=kept,
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
    sinks: Tensor | None = None,
) -> Outputs:
    """`piecewise_attention` of every sequence by itself. Rows behind the last sequence give 0 and -inf."""

    def one_sequence(_: int, rows: slice, keys: slice) -> Outputs:
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
            sinks=sinks,
        )

    return _for_each_sequence(one_sequence, q1, v, cu_seqlens_q, cu_seqlens_k)


def attention_column_sums(
    q: Tensor, k: Tensor, lse: Tensor, *, causal: bool = False, softmax_scale: float | None = None
) -> Tensor:
    """sum over the rows of exp(scale q k^T - lse): (batch, heads, seqlen_k). Rows whose LSE is -inf give nothing."""
    keep = keep_mask(q.shape[1], k.shape[1], causal=causal, device=q.device)
    scores = _dot(q, k).mul(_scale_of(q, softmax_scale))
    empty = torch.isneginf(lse)
    weights = torch.exp(scores - lse.masked_fill(empty, 0.0).to(scores.dtype)[..., None])
    return weights.masked_fill(~keep, 0.0).masked_fill(empty[..., None], 0.0).sum(dim=-2)


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


def _softmax_times(
    scores: Tensor,
    keep: Tensor,
    v: Tensor,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_keep: Tensor | None = None,
) -> Outputs:
    # Rows that see no key are given zeros to normalise, so that neither they nor their gradients become NaN.
    empty = ~keep.any(dim=-1, keepdim=True)
    visible = scores.masked_fill(~keep, -math.inf)
    if sinks is None:
        visible = visible.masked_fill(empty, 0.0)
        lse = torch.logsumexp(visible, dim=-1, keepdim=True)
    else:
        one_more = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        lse = torch.logsumexp(torch.cat((visible, one_more), dim=-1), dim=-1, keepdim=True)
    probabilities = torch.exp(visible - lse).masked_fill(~keep, 0.0)
    if dropout_keep is not None:
        probabilities = probabilities * dropout_keep / (1.0 - dropout_p)
    out = torch.einsum("bhqk,bkhd->bqhd", probabilities.to(v.dtype), _for_each_query_head(v, scores.shape[1]))
    return out, (lse if sinks is not None else lse.masked_fill(empty, -math.inf)).squeeze(-1)


def _for_each_sequence(
    one_sequence: Callable[[int, slice, slice], Outputs],
    q: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
) -> Outputs:
    bounds_q, bounds_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    total_q, heads = q.shape[0], q.shape[1]
    outs, lses = [], []
    for index in range(len(bounds_q) - 1):
        out, lse = one_sequence(
            index, slice(bounds_q[index], bounds_q[index + 1]), slice(bounds_k[index], bounds_k[index + 1])
        )
        outs.append(out[0])
        lses.append(lse[0])
    unused = total_q - bounds_q[-1]
    outs.append(v.new_zeros(unused, heads, v.shape[-1]))
    lses.append(q.new_full((heads, unused), -math.inf, dtype=_softmax_dtype(q)))
    return torch.cat(outs), torch.cat(lses, dim=1)
