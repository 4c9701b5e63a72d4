"""The functions of `vllm_flash_attn.flash_attn_interface`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn
from flagattn._cache_calls import packed_queries_over_cache
from flagattn.compat._operands import integer, window_of, written_to
from flagattn.compat.flash_attn_3 import flash_attn_interface as _fa3
from flagattn.compat.vllm._sparse import sparse_attn_func, sparse_attn_varlen_func

_native: Any = flagattn  # its results depend on flags

DEFAULT_FA_VERSION = 2

__all__ = [
    "fa_version_unsupported_reason",
    "flash_attn_varlen_func",
    "get_scheduler_metadata",
    "is_fa_version_supported",
    "sparse_attn_func",
    "sparse_attn_varlen_func",
]


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    max_seqlen_q: int,
    cu_seqlens_q: Tensor,
    max_seqlen_k: int,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    q_v: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: list[int] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    return_softmax_lse: bool = False,
    out: Tensor | None = None,
    scheduler_metadata: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    num_splits: int = 0,
    fa_version: int = DEFAULT_FA_VERSION,
    s_aux: Tensor | None = None,
    cp_world_size: int = 1,
    cp_rank: int = 0,
    cp_tot_seqused_k: Tensor | None = None,
) -> Any:
    """Attention of packed queries against packed or paged keys, without gradient.

    Args:
        q: (total_q, heads_q, head_dim).
        k, v: (total_k, heads_k, head_dim), or with block_table (pages, page size, heads_k, head_dim).
        max_seqlen_q, max_seqlen_k: the longest sequences.
        cu_seqlens_q: (batch + 1,), int32.
        cu_seqlens_k: (batch + 1,), int32; exactly one of it and seqused_k is given.
        seqused_k: (batch,), int32, the number of keys of each sequence; needed with block_table.
        block_table: (batch, most pages of one), int32, the pages of each sequence in order.
        window_size: [left, right], or None for none.
        out: where the output is written; it is returned.
        s_aux: (heads_q,), the logits of attention sinks.
        scheduler_metadata, num_splits, fa_version: accepted; they change no bits here.
        dropout_p, alibi_slopes, softcap, softmax_scale, causal: as in `flagattn.flash_attn_varlen_func`.
        q_v, the descales: must be None. cp_world_size: must be 1.

    Returns:
        out like q, or (out, lse (heads_q, total_q)) with return_softmax_lse.
    """
    for name, value in {"q_v": q_v, "q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}.items():
        if value is not None:
            raise NotImplementedError(f"{name} is given; it is not implemented, so it must be None")
    if cp_world_size != 1:
        raise NotImplementedError(
            f"cp_world_size is {cp_world_size}; context parallelism is not in here, so it must be 1"
        )
    if (cu_seqlens_k is None) == (seqused_k is None):
        raise ValueError("exactly one of cu_seqlens_k and seqused_k must be given")
    if block_table is not None and seqused_k is None:
        raise ValueError("block_table is given without seqused_k, which says how many keys each sequence has")
    if block_table is None and seqused_k is not None:
        raise ValueError("seqused_k is given without a block_table; packed keys have cu_seqlens_k")
    masks: dict[str, Any] = {
        "dropout_p": dropout_p,
        "softmax_scale": softmax_scale,
        "causal": causal,
        "window_size": window_of(window_size),
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": s_aux,
    }
    longest = integer(max_seqlen_q), integer(max_seqlen_k)
    with torch.no_grad():
        if block_table is not None:
            result, lse = packed_queries_over_cache(
                q, k, v, cu_seqlens_q, longest[0], cache_seqlens=seqused_k, block_table=block_table, **masks
            )
        else:
            packing = (cu_seqlens_q, cu_seqlens_k, *longest)
            result, lse = _native.flash_attn_varlen_func(q, k, v, *packing, return_lse=True, **masks)
        out = written_to(out, result)
    return (out, lse) if return_softmax_lse else out


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
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Tensor:
    """One int32 zero: work is distributed without a plan made beforehand."""
    return _fa3.get_scheduler_metadata(
        batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens
    )


def _is_fa2_supported(device: Any = None) -> tuple[bool, str | None]:
    return True, None


def _is_fa3_supported(device: Any = None) -> tuple[bool, str | None]:
    return True, None


def _is_fa4_supported(device: Any = None) -> tuple[bool, str | None]:
    return False, fa_version_unsupported_reason(4, device)


def is_fa_version_supported(fa_version: int, device: Any = None) -> bool:
    """Whether the functions of that version have their semantics here: 2 and 3."""
    return fa_version in (2, 3)


def fa_version_unsupported_reason(fa_version: int, device: Any = None) -> str | None:
    """Why a version is not supported, in a sentence, or None."""
    return None if is_fa_version_supported(fa_version) else f"flagattn mirrors versions 2 and 3, not {fa_version}"
