"""FlashAttention-3's functions, in its argument order: unlike FlashAttention-2's, the fourth is the scale.

`qv` (a second product of queries with values in the scores) is taken where head_dim + head_dim_v <= 256;
`attention_chunk` confines each query to the chunk of positions it lies in; values may be 512 wide. How work is split
(`num_splits`, `pack_gqa`, `sm_margin`, `scheduler_metadata`) changes no bits here and is accepted. The 8-bit descales
must be None.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn
from flagattn._cache_calls import packed_queries_over_cache
from flagattn._cache_checks import check_splits
from flagattn._checks import MAX_HEAD_DIM
from flagattn.compat._chunks import chunked_packing
from flagattn.compat._gradients import attention_gradients
from flagattn.compat._operands import cumulative, integer, lengths_of, used_rows, window_of, written_to

_native: Any = flagattn  # its results depend on flags


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of dense batches, (batch, seqlen, heads, head_dim); returns out, or (out, lse) where asked for."""
    _refuse_descales(q_descale, k_descale, v_descale)
    q, k = _with_values_in_scores(q, k, v, qv)
    if attention_chunk > 0:
        out, lse = _dense_in_chunks(q, k, v, attention_chunk, softmax_scale, causal, window_size, softcap)
    else:
        window = window_of(window_size)

        def of_values(values: Tensor) -> tuple[Tensor, Tensor]:
            return _native.flash_attn_func(q, k, values, 0.0, softmax_scale, causal, window, softcap, return_lse=True)

        out, lse = _in_parts_of_values(v, of_values)
    return (out, lse) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` of q, k and v in one tensor.

    Args:
        qkv: (batch, seqlen, 3, heads, head_dim), or (batch, seqlen, num_heads_q + 2 * num_heads_k, head_dim) with
            num_heads_q given.
    """
    if qkv.dim() == 5:
        q, k, v = qkv.unbind(dim=-3)
    elif num_heads_q is None:
        raise ValueError(
            f"qkv has shape {tuple(qkv.shape)} and num_heads_q is None; without a dimension of 3 it is needed"
        )
    else:
        heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split([num_heads_q, heads_k, heads_k], dim=-2)
    descales = (q_descale, k_descale, v_descale)
    return flash_attn_func(
        q,
        k,
        v,
        softmax_scale,
        causal,
        None,
        *descales,
        window_size,
        attention_chunk,
        softcap,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of packed sequences, (total, heads, head_dim); returns out, or (out, lse) where asked for.

    Args:
        seqused_q, seqused_k: (batch,), how many rows of each sequence count; the rows behind them give 0 and an LSE of
            -inf, and take no gradient.

    The other arguments are those of `flash_attn_func` and of `flagattn.flash_attn_varlen_func`.
    """
    _refuse_descales(q_descale, k_descale, v_descale)
    q, k = _with_values_in_scores(q, k, v, qv)
    masks = (softmax_scale, causal, window_size, softcap)
    packing: Any = (cu_seqlens_q, cu_seqlens_k, integer(max_seqlen_q), integer(max_seqlen_k))
    rows = q.shape[0]
    if seqused_k is not None:
        index_k, used_cu_k = used_rows(cu_seqlens_k, seqused_k)
        k, v = k.index_select(0, index_k), v.index_select(0, index_k)
        packing = (packing[0], used_cu_k, *packing[2:])
    if seqused_q is not None:
        index_q, used_cu_q = used_rows(cu_seqlens_q, seqused_q, side="q")
        q = q.index_select(0, index_q)
        packing = (used_cu_q, *packing[1:])
    out, lse = _packed(q, k, v, packing, attention_chunk, *masks)
    if seqused_q is not None:
        out = out.new_zeros(rows, *out.shape[1:]).index_copy(0, index_q, out)
        lse = lse.new_full((lse.shape[0], rows), -torch.inf).index_copy(1, index_q, lse)
    return (out, lse) if return_attn_probs else out


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """`flagattn.flash_attn_with_kvcache`; returns out, or (out, lse, two empty tensors) where asked for.

    Args:
        page_table: (batch, pages), int32, of caches (pages, page size, heads, head_dim).
        cu_seqlens_q: (batch + 1,), int32: q is packed, (total_q, heads, head_dim), out alike, and lse (heads, total_q).
            Needs max_seqlen_q, and nothing is appended then.
        qv, cu_seqlens_k_new: must be None, and so must k, v, rotary_cos, rotary_sin with cu_seqlens_q.
        rotary_seqlens: where rotation begins; None, or equal to cache_seqlens.
        attention_chunk: must be 0.
    """
    _refuse_descales(q_descale, k_descale, v_descale)
    absent = {
        "qv": qv,
        "cu_seqlens_k_new": cu_seqlens_k_new,
        "rotary_seqlens": None if _rotates_at_its_rows(rotary_cos, rotary_seqlens, cache_seqlens) else rotary_seqlens,
        "attention_chunk": attention_chunk or None,
    }
    if cu_seqlens_q is not None:
        absent |= {"k": k, "v": v, "rotary_cos": rotary_cos, "rotary_sin": rotary_sin}
        check_splits(num_splits)
    for name, value in absent.items():
        if value is not None:
            queries = "" if cu_seqlens_q is None else " for packed queries"
            raise NotImplementedError(f"{name} is given; caches are read without it here{queries}, so leave it out")
    if page_table is not None and cache_batch_idx is not None:
        page_table, cache_batch_idx = page_table[cache_batch_idx], None  # there it chooses rows of the table
    options: dict[str, Any] = {
        "cache_seqlens": cache_seqlens,
        "cache_batch_idx": cache_batch_idx,
        "cache_leftpad": cache_leftpad,
        "block_table": page_table,
        "softmax_scale": softmax_scale,
        "causal": causal,
        "window_size": window_of(window_size),
        "softcap": softcap,
    }
    if cu_seqlens_q is not None:
        longest, names = integer(_given(max_seqlen_q, "max_seqlen_q")), ("q", "k_cache", "v_cache")
        out, lse = packed_queries_over_cache(q, k_cache, v_cache, cu_seqlens_q, longest, names=names, **options)
    else:
        rotary = {"rotary_cos": rotary_cos, "rotary_sin": rotary_sin, "rotary_interleaved": rotary_interleaved}
        out, lse = _native.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, **rotary, **options, num_splits=num_splits, return_lse=True
        )
    return (out, lse, *_no_partial_results(q)) if return_softmax_lse else out


def flash_attn_combine(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over all keys from attention over parts of them.

    Args:
        out_partial: (parts, batch, seqlen, heads, head_dim), or (parts, total, heads, head_dim).
        lse_partial: (parts, batch, seqlen, heads), or (parts, total, heads), fp32; -inf for empty parts.
        out: where the result is written.
        out_dtype: its dtype, out_partial's if None.

    Returns:
        (out (batch, seqlen, heads, head_dim), lse (batch, seqlen, heads)), packed alike.
    """
    merged, lse = _native.merge_attention_states(list(out_partial.float()), list(lse_partial.transpose(-1, -2)))
    result = merged.to(out_partial.dtype if out_dtype is None else out_dtype)
    return written_to(out, result), lse.transpose(-1, -2)


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    cache_seqlens: Tensor,
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: Any = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Tensor:
    """One int32 zero: work is distributed without a plan made beforehand, and the argument it goes to is ignored."""
    return torch.zeros(1, dtype=torch.int32, device=cache_seqlens.device)


# ---- below autograd ----


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    qv: Tensor | None = None,
    out_: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    page_table: Tensor | None = None,
    kv_batch_idx: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    seqlens_rotary: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, two empty tensors), without gradient: dense, packed with cu_seqlens_q, or of a cache otherwise."""
    window = (window_size_left, window_size_right)
    descales = (q_descale, k_descale, v_descale)
    masks: Any = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window, "softcap": softcap}
    of_cache = {"k_new": k_new, "v_new": v_new, "cu_seqlens_k_new": cu_seqlens_k_new, "page_table": page_table}
    of_cache |= {"kv_batch_idx": kv_batch_idx, "leftpad_k": leftpad_k, "seqlens_rotary": seqlens_rotary}
    of_cache |= {"rotary_cos": rotary_cos, "rotary_sin": rotary_sin}
    given = [name for name, operand in of_cache.items() if operand is not None]
    cached = cu_seqlens_k is None and (seqused_k is not None or bool(given))
    if given and not cached:
        raise NotImplementedError(f"{given[0]} is given with cu_seqlens_k; it belongs to caches, so leave one out")
    if cached and seqused_q is not None:
        raise NotImplementedError("seqused_q is given; queries of caches are all used here, so leave it out")
    with torch.no_grad():
        if cached:
            out, lse, *_ = flash_attn_with_kvcache(
                q,
                k,
                v,
                k_new,
                v_new,
                qv,
                rotary_cos,
                rotary_sin,
                seqused_k,
                kv_batch_idx,
                leftpad_k,
                page_table,
                cu_seqlens_q,
                cu_seqlens_k_new,
                max_seqlen_q,
                seqlens_rotary,
                *descales,
                attention_chunk=attention_chunk,
                rotary_interleaved=rotary_interleaved,
                return_softmax_lse=True,
                **masks,
            )
        elif cu_seqlens_q is not None and cu_seqlens_k is not None:
            out, lse = flash_attn_varlen_func(
                q,
                k,
                v,
                cu_seqlens_q,
                cu_seqlens_k,
                _given(max_seqlen_q, "max_seqlen_q"),
                _given(max_seqlen_k, "max_seqlen_k"),
                seqused_q,
                seqused_k,
                qv=qv,
                attention_chunk=attention_chunk,
                return_attn_probs=True,
                **masks,
            )
        else:
            _refuse_descales(*descales)
            out, lse = flash_attn_func(q, k, v, qv=qv, attention_chunk=attention_chunk, return_attn_probs=True, **masks)
        out = out if out_ is None else out_.copy_(out)
    return out, lse, *_no_partial_results(q)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    sequed_q: Tensor | None = None,
    sequed_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    softmax_scale: float | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    """Writes dq, dk, dv where they are given; returns the row sums of dout * out, laid out like softmax_lse."""
    for name, used in (("sequed_q", sequed_q), ("sequed_k", sequed_k)):
        if used is not None:
            raise NotImplementedError(f"{name} is given; this backward has no unused rows, so it must be None")
    packing = None
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        longest = (integer(_given(max_seqlen_q, "max_seqlen_q")), integer(_given(max_seqlen_k, "max_seqlen_k")))
        packing = (cu_seqlens_q, cu_seqlens_k, *longest)
    left, right = window_of((window_size_left, window_size_right))
    window = (left, 0 if is_causal else right)
    *gradients, delta = attention_gradients(dout, q, k, v, out, softmax_lse, packing, softmax_scale, window, softcap)
    for target, gradient in zip((dq, dk, dv), gradients):
        if target is not None:
            target.copy_(gradient)
    return delta


# ---- helpers ----


def _refuse_descales(*descales: Tensor | None) -> None:
    for name, descale in zip(("q_descale", "k_descale", "v_descale"), descales):
        if descale is not None:
            raise NotImplementedError(f"{name} is given; 8-bit operands are not implemented, so it must be None")


def _rotates_at_its_rows(rotary_cos: Any, rotary_seqlens: Any, cache_seqlens: Any) -> bool:
    """Whether new rows are rotated at the places they are written to, or not at all."""
    if rotary_cos is None or rotary_seqlens is None:
        return True
    return isinstance(cache_seqlens, Tensor) and torch.equal(rotary_seqlens, cache_seqlens)


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise ValueError(f"{name} is None; packed sequences need it")
    return value


def _with_values_in_scores(q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None) -> tuple[Tensor, Tensor]:
    """(q, k) whose product is q k + qv v."""
    if qv is None:
        return q, k
    if q.shape[-1] + qv.shape[-1] > MAX_HEAD_DIM:
        raise NotImplementedError(
            f"q has head_dim {q.shape[-1]} and qv {qv.shape[-1]}; together they must not exceed {MAX_HEAD_DIM}"
        )
    return torch.cat((q, qv), dim=-1), torch.cat((k, v), dim=-1)


def _in_parts_of_values(v: Tensor, attention: Any) -> tuple[Tensor, Tensor]:
    """(out, lse) where v may be wider than the kernels take: the scores are then computed for each part of v."""
    if v.shape[-1] <= MAX_HEAD_DIM:
        return attention(v)
    outs, lses = zip(*(attention(part) for part in v.split(MAX_HEAD_DIM, dim=-1)))
    return torch.cat(outs, dim=-1), lses[0]


def _packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Any,
    attention_chunk: int,
    softmax_scale: float | None,
    causal: bool,
    window_size: Any,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    if attention_chunk > 0:
        packing = chunked_packing(lengths_of(packing[0]), lengths_of(packing[1]), attention_chunk)
    masks = (0.0, softmax_scale, causal, window_of(window_size), softcap)

    def of_values(values: Tensor) -> tuple[Tensor, Tensor]:
        return _native.flash_attn_varlen_func(q, k, values, *packing, *masks, return_lse=True)

    return _in_parts_of_values(v, of_values)


def _dense_in_chunks(q: Tensor, k: Tensor, v: Tensor, attention_chunk: int, *masks: Any) -> tuple[Tensor, Tensor]:
    batch, seqlen_q = q.shape[:2]
    packing = [cumulative(torch.full((batch,), rows, device=q.device)) for rows in (seqlen_q, k.shape[1])]
    q, k, v = (operand.flatten(0, 1) for operand in (q, k, v))
    out, lse = _packed(q, k, v, (*packing, seqlen_q, k.shape[1]), attention_chunk, *masks)
    return out.unflatten(0, (batch, seqlen_q)), lse.unflatten(1, (batch, seqlen_q)).transpose(0, 1)


def _no_partial_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """What splits leave behind there; here they leave nothing."""
    return q.new_empty(0, dtype=torch.float32), q.new_empty(0, dtype=torch.float32)
