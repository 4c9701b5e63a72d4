"""Fused attention: FlashAttention-2's functions.

Every function computes, for each query row i and head h of a sequence with Sq queries and Sk keys,

    out_i = sum_j softmax_j(s_ij) v_j        s_ij = softmax_scale * q_i . k_j, or softcap * tanh(that / softcap),
    lse_i = log sum_j exp(s_ij)                     less alibi_slope_h * |i + Sk - Sq - j| where there are slopes

over the keys j the row sees: i + Sk - Sq - left <= j <= i + Sk - Sq + right, where -1 lifts a bound of `window_size` =
(left, right) and `causal` sets right to 0, so the last query is aligned with the last key. Query head h reads key/value
head h // (heads_q / heads_k). A row that sees no key gives 0 and an LSE of -inf. Softmax, LSE and all sums are fp32.

A sink is one more key of its head, of a given score and of value 0, that every row sees: it joins the denominator of
the softmax and the LSE. Dropout sets softmax_j to 0 with probability dropout_p and multiplies what it keeps by
1 / (1 - dropout_p); the LSE knows nothing of it.

The semantics are those of Dao, "FlashAttention-2" (2023), whose argument order and defaults are kept.
"""

from __future__ import annotations

from torch import Tensor

from flagattn._attention_calls import Output, dense_attention, packed_attention, returned
from flagattn._cache_calls import packed_queries_over_cache
from flagattn._checks import check_stacked_operand, fail_on_types
from flagattn._errors import explained


@explained
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Output:
    """Attention of dense batches: out = softmax(softmax_scale q k^T + mask) v.

    Args:
        q: (batch, seqlen_q, heads_q, head_dim), float32, bfloat16 or float16, head_dim up to 256 (copied with
            padding unless it is a multiple of 8).
        k: (batch, seqlen_k, heads_k, head_dim), where heads_k divides heads_q.
        v: (batch, seqlen_k, heads_k, head_dim_v).
        dropout_p: probability of dropping a weight, from 0 to 1; applied whenever it is not 0 (pass 0 in evaluation).
            Which weights are dropped is a function of two numbers drawn from torch's generator (docs/kernels/masks.md).
        softmax_scale: defaults to 1 / sqrt(head_dim).
        causal: row i sees no key behind i + seqlen_k - seqlen_q.
        window_size: (left, right), inclusive around i + seqlen_k - seqlen_q; -1 is unbounded.
        softcap: bounds the scores softly to (-softcap, softcap); 0 switches it off.
        alibi_slopes: (heads_q,) or (batch, heads_q), floating: every score loses slope * |i + seqlen_k - seqlen_q - j|.
            Not differentiated, so they must not require a gradient.
        deterministic: accepted; gradients are always the same from run to run.
        return_attn_probs: return (out, lse, None); the probabilities themselves are never formed.
        sinks: (heads_q,), floating: one more key per head, of this score and of value 0, that every row sees.
        return_lse: return (out, lse).

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v) in q's dtype, and where asked for lse (batch, heads_q, seqlen_q) in
        float32, natural log, sinks included. Rows that see no key give 0 and -inf, or with sinks their head's sink.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.

    Differentiable once in q, k, v and sinks, through out and lse; under autocast q, k, v are cast to its dtype.
    """
    joined = (dropout_p, alibi_slopes, sinks)
    out, lse = dense_attention(q, k, v, softmax_scale, causal, window_size, softcap, joined)
    return returned(out, lse, return_attn_probs, return_lse)


@explained
def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Output:
    """`flash_attn_func` of k and v stacked in one tensor, whose gradient comes out stacked.

    Args:
        q: (batch, seqlen_q, heads_q, head_dim).
        kv: (batch, seqlen_k, 2, heads_k, head_dim); read in place.

    The other arguments, the results, the errors and the differentiability are those of `flash_attn_func`.
    """
    check_stacked_operand(kv, "kv", 2, "(batch, seqlen, 2, heads, head_dim)")
    k, v = kv.unbind(dim=2)
    joined = (dropout_p, alibi_slopes, sinks)
    out, lse = dense_attention(q, k, v, softmax_scale, causal, window_size, softcap, joined)
    return returned(out, lse, return_attn_probs, return_lse)


@explained
def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Output:
    """`flash_attn_func` of q, k and v stacked in one tensor, whose gradient comes out stacked.

    Args:
        qkv: (batch, seqlen, 3, heads, head_dim); read in place.

    The other arguments, the results, the errors and the differentiability are those of `flash_attn_func`.
    """
    check_stacked_operand(qkv, "qkv", 3, "(batch, seqlen, 3, heads, head_dim)")
    q, k, v = qkv.unbind(dim=2)
    joined = (dropout_p, alibi_slopes, sinks)
    out, lse = dense_attention(q, k, v, softmax_scale, causal, window_size, softcap, joined)
    return returned(out, lse, return_attn_probs, return_lse)


@explained
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
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Output:
    """Attention of sequences of different lengths, packed one behind the other: each attends to itself only.

    Args:
        q: (total_q, heads_q, head_dim), float32, bfloat16 or float16, head_dim up to 256.
        k: (total_k, heads_k, head_dim), where heads_k divides heads_q.
        v: (total_k, heads_k, head_dim_v).
        cu_seqlens_q: (batch + 1,), int32: sequence b has the query rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] - 1.
        cu_seqlens_k: (batch + 1,), int32, the same for its keys. Sequences may be empty.
        max_seqlen_q: at least the longest sequence's number of query rows.
        max_seqlen_k: at least the longest sequence's number of keys.
        block_table: (batch, pages of a sequence), int32: k and v are then pages of any size, (pages, page_size,
            heads_k, head_dim or head_dim_v). Sequence b has the first cu_seqlens_k[b + 1] - cu_seqlens_k[b] rows of
            the pages block_table[b], read where they lie; entries it does not use may be anything. Without dropout.

    The other arguments are those of `flash_attn_func`.

    Returns:
        out (total_q, heads_q, head_dim_v) in q's dtype, and where asked for lse (heads_q, total_q) in float32. Rows
        behind the last sequence are 0 and -inf, and take no gradient. With pages on the CPU the bits are those of the
        same keys packed.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        RuntimeError: on the CPU, cu_seqlens does not rise from 0, or exceeds the tensors or the maximal length; a
            sequence has more keys than its pages hold, or a page that is none. In a backward with block_table.
        NotImplementedError: with block_table, dropout_p is not 0, or the operands are neither on CPU nor on CUDA.

    Differentiable once in q, k, v and sinks, through out and lse, but not with block_table. Under autocast q, k, v are
    cast to its dtype; with block_table q is cast to the pages' dtype.
    """
    if block_table is not None:
        if not isinstance(cu_seqlens_k, Tensor):
            fail_on_types((cu_seqlens_k,), ("cu_seqlens_k",))
        out, lse = packed_queries_over_cache(
            q,
            k,
            v,
            cu_seqlens_q,
            max_seqlen_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_k=max_seqlen_k,
            block_table=block_table,
            dropout_p=dropout_p,
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
        )
        return returned(out, lse, return_attn_probs, return_lse)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    joined = (dropout_p, alibi_slopes, sinks)
    out, lse = packed_attention(q, k, v, packing, softmax_scale, causal, window_size, softcap, joined)
    return returned(out, lse, return_attn_probs, return_lse)


@explained
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
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Output:
    """`flash_attn_varlen_func` of k and v stacked in one tensor, whose gradient comes out stacked.

    Args:
        q: (total_q, heads_q, head_dim).
        kv: (total_k, 2, heads_k, head_dim); read in place.

    The other arguments, the results, the errors and the differentiability are those of `flash_attn_varlen_func`.
    """
    check_stacked_operand(kv, "kv", 2, "(total, 2, heads, head_dim)")
    k, v = kv.unbind(dim=1)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    joined = (dropout_p, alibi_slopes, sinks)
    out, lse = packed_attention(q, k, v, packing, softmax_scale, causal, window_size, softcap, joined)
    return returned(out, lse, return_attn_probs, return_lse)


@explained
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Output:
    """`flash_attn_varlen_func` of q, k and v stacked in one tensor, whose gradient comes out stacked.

    Args:
        qkv: (total, 3, heads, head_dim); read in place.
        cu_seqlens: (batch + 1,), int32, of queries and keys alike.
        max_seqlen: at least the longest sequence's length.

    The other arguments, the results, the errors and the differentiability are those of `flash_attn_varlen_func`.
    """
    check_stacked_operand(qkv, "qkv", 3, "(total, 3, heads, head_dim)")
    q, k, v = qkv.unbind(dim=1)
    packing = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    joined = (dropout_p, alibi_slopes, sinks)
    out, lse = packed_attention(q, k, v, packing, softmax_scale, causal, window_size, softcap, joined)
    return returned(out, lse, return_attn_probs, return_lse)
