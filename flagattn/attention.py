"""Fused attention: FlashAttention-2's functions and torch's scaled_dot_product_attention.

Every function computes, for each query row i and head h of a sequence with Sq queries and Sk keys,

    out_i = sum_j softmax_j(s_ij) v_j        s_ij = softmax_scale * q_i . k_j, or softcap * tanh(that / softcap)
    lse_i = log sum_j exp(s_ij)

over the keys j the row sees: i + Sk - Sq - left <= j <= i + Sk - Sq + right, where -1 lifts a bound of `window_size` =
(left, right) and `causal` sets right to 0, so the last query is aligned with the last key. Query head h reads key/value
head h // (heads_q / heads_k). A row that sees no key gives 0 and an LSE of -inf. Softmax, LSE and all sums are fp32.

The semantics are those of Dao, "FlashAttention-2" (2023), whose argument order and defaults are kept.
"""

from __future__ import annotations

from torch import Tensor

from flagattn._attention_ops import attention_op
from flagattn._checks import (
    check_dense_operands,
    check_packed_operands,
    check_packing,
    check_ranks,
    check_softcap,
    check_stacked_operand,
    padded,
    prepared,
    refuse_unsupported,
    scale_or_default,
    under_autocast,
    window_bounds,
)

Output = Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, None]

_NAMES = ("q", "k", "v")


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
        dropout_p: must be 0.
        softmax_scale: defaults to 1 / sqrt(head_dim).
        causal: row i sees no key behind i + seqlen_k - seqlen_q.
        window_size: (left, right), inclusive around i + seqlen_k - seqlen_q; -1 is unbounded.
        softcap: bounds the scores softly to (-softcap, softcap); 0 switches it off.
        alibi_slopes: must be None.
        deterministic: accepted; gradients are always the same from run to run.
        return_attn_probs: return (out, lse, None); the probabilities themselves are never formed.
        sinks: must be None.
        return_lse: return (out, lse).

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v) in q's dtype, and where asked for lse (batch, heads_q, seqlen_q) in
        float32, natural log, -inf for rows that see no key.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        NotImplementedError: dropout_p, alibi_slopes or sinks is asked for.

    Differentiable once in q, k and v, through out and lse; under autocast q, k, v are cast to its dtype.
    """
    refuse_unsupported(dropout_p, alibi_slopes, sinks)
    out, lse = _dense(q, k, v, softmax_scale, causal, window_size, softcap)
    return _returned(out, lse, return_attn_probs, return_lse)


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
    refuse_unsupported(dropout_p, alibi_slopes, sinks)
    check_stacked_operand(kv, "kv", 2, "(batch, seqlen, 2, heads, head_dim)")
    k, v = kv.unbind(dim=2)
    out, lse = _dense(q, k, v, softmax_scale, causal, window_size, softcap)
    return _returned(out, lse, return_attn_probs, return_lse)


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
    refuse_unsupported(dropout_p, alibi_slopes, sinks)
    check_stacked_operand(qkv, "qkv", 3, "(batch, seqlen, 3, heads, head_dim)")
    q, k, v = qkv.unbind(dim=2)
    out, lse = _dense(q, k, v, softmax_scale, causal, window_size, softcap)
    return _returned(out, lse, return_attn_probs, return_lse)


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
        block_table: must be None.

    The other arguments are those of `flash_attn_func`.

    Returns:
        out (total_q, heads_q, head_dim_v) in q's dtype, and where asked for lse (heads_q, total_q) in float32. Rows
        behind the last sequence are 0 and -inf, and take no gradient.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        RuntimeError: on the CPU, cu_seqlens does not rise from 0, or exceeds the tensors or the maximal length.
        NotImplementedError: dropout_p, alibi_slopes, block_table or sinks is asked for.

    Differentiable once in q, k and v, through out and lse; under autocast q, k, v are cast to its dtype.
    """
    refuse_unsupported(dropout_p, alibi_slopes, sinks, block_table)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = _packed(q, k, v, packing, softmax_scale, causal, window_size, softcap)
    return _returned(out, lse, return_attn_probs, return_lse)


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
    refuse_unsupported(dropout_p, alibi_slopes, sinks)
    check_stacked_operand(kv, "kv", 2, "(total, 2, heads, head_dim)")
    k, v = kv.unbind(dim=1)
    packing = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = _packed(q, k, v, packing, softmax_scale, causal, window_size, softcap)
    return _returned(out, lse, return_attn_probs, return_lse)


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
    refuse_unsupported(dropout_p, alibi_slopes, sinks)
    check_stacked_operand(qkv, "qkv", 3, "(total, 3, heads, head_dim)")
    q, k, v = qkv.unbind(dim=1)
    packing = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    out, lse = _packed(q, k, v, packing, softmax_scale, causal, window_size, softcap)
    return _returned(out, lse, return_attn_probs, return_lse)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention on this library's kernels.

    Args:
        query: (batch, heads_q, seqlen_q, head_dim), float32, bfloat16 or float16, head_dim up to 256.
        key: (batch, heads_k, seqlen_k, head_dim), where heads_k equals heads_q, or divides it with enable_gqa.
        value: (batch, heads_k, seqlen_k, head_dim_v).
        attn_mask: must be None.
        dropout_p: must be 0.
        is_causal: row i sees the keys 0 to i; unlike in `flash_attn_func` the first query is aligned with the first
            key.
        scale: defaults to 1 / sqrt(head_dim).
        enable_gqa: allow fewer key/value heads than query heads.

    Returns:
        (batch, heads_q, seqlen_q, head_dim_v) in query's dtype; a transposed view of a contiguous
        (batch, seqlen_q, heads_q, head_dim_v) tensor.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        NotImplementedError: attn_mask or dropout_p is asked for.

    Differentiable once in query, key and value; under autocast they are cast to its dtype.
    """
    if attn_mask is not None:
        raise NotImplementedError("attn_mask is given; attention masks are not implemented, so it must be None")
    refuse_unsupported(dropout_p, None, None)
    check_ranks((query, key, value), ("query", "key", "value"), "(batch, heads, seqlen, head_dim)")
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads and key {key.shape[1]}; they must be equal unless enable_gqa is True"
        )
    seqlen_q, seqlen_k = query.shape[2], key.shape[2]
    window_size = (-1, -1)
    if is_causal:
        # j <= i in terms of the kernels' j <= i + Sk - Sq + right. Keys behind the last query are seen by no row.
        if seqlen_k > seqlen_q:
            key, value = key[:, :, :seqlen_q], value[:, :, :seqlen_q]
            window_size = (-1, 0)
        else:
            window_size = (-1, int(seqlen_q - seqlen_k))
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    out, _ = _dense(q, k, v, scale, False, window_size, 0.0, ("query", "key", "value"))
    return out.transpose(1, 2)


# ---- one way to the op ----


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    names: tuple[str, str, str] = _NAMES,
) -> tuple[Tensor, Tensor]:
    q, k, v = under_autocast(q, k, v)
    seqlen_q, seqlen_k, head_dim, head_dim_v = check_dense_operands(q, k, v, names)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    check_softcap(softcap)
    q, k, v = prepared(q, k, v)
    if head_dim % 8 != 0 or head_dim_v % 8 != 0:
        q, k, v = padded(q, k, v)
    out, lse = attention_op(q, k, v, None, None, seqlen_q, seqlen_k, scale, left, right, softcap)
    return out if head_dim_v % 8 == 0 else out[..., :head_dim_v], lse


def _packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: tuple[Tensor, Tensor, int, int],
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = under_autocast(q, k, v)
    head_dim, head_dim_v = check_packed_operands(q, k, v, _NAMES)
    check_packing(*packing, q)
    left, right = window_bounds(window_size, causal)
    scale = scale_or_default(softmax_scale, head_dim)
    check_softcap(softcap)
    q, k, v = prepared(q, k, v)
    if head_dim % 8 != 0 or head_dim_v % 8 != 0:
        q, k, v = padded(q, k, v)
    out, lse = attention_op(q, k, v, *packing, scale, left, right, softcap)
    return out if head_dim_v % 8 == 0 else out[..., :head_dim_v], lse


def _returned(out: Tensor, lse: Tensor, return_attn_probs: bool, return_lse: bool) -> Output:
    if return_attn_probs:
        return out, lse, None
    return (out, lse) if return_lse else out
