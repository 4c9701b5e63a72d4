"""Attention to chosen keys: blocks of 64 neighbours and single columns, of its own for every tile of 64 query rows.

The kernels get a mask of the chosen keys and skip tiles that no row sees. It takes a byte per
score, where vLLM's kernel reads the indices themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn._attention_calls import dense_attention
from flagattn._checks import check_dense_operands, check_packed_operands, check_packing
from flagattn.compat._operands import integer, lse_for_fa2

TILE = 64  # query rows that share a choice, and keys of a block


def sparse_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_count: Tensor,
    block_offset: Tensor,
    column_count: Tensor,
    column_index: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    return_softmax_lse: bool = False,
    out: Tensor | None = None,
) -> Any:
    """Attention of every tile of 64 query rows to the keys chosen for it, without gradient.

        out_i = sum_j softmax_j(softmax_scale q_i . k_j) v_j        over the chosen keys j of the tile i // 64

    Args:
        q: (batch, seqlen_q, heads_q, head_dim).
        k, v: (batch, seqlen_k, heads_k, head_dim), where heads_k divides heads_q.
        block_count: (batch, heads_q, tiles), an integer dtype, tiles = ceil(seqlen_q / 64): how many blocks are chosen.
        block_offset: (batch, heads_q, tiles, most blocks): the first key of each; a block has 64, or fewer at the end.
        column_count: (batch, heads_q, tiles): how many single keys are chosen.
        column_index: (batch, heads_q, tiles, most columns): these keys. Entries behind a count may be anything.
        dropout_p, softmax_scale, causal, softcap, alibi_slopes: as in `flagattn.flash_attn_func`, for every chosen key.
        deterministic, return_attn_probs: accepted; they change nothing.
        out: where the output is written; it is returned.

    Returns:
        out like q, or (out, lse (batch, heads_q, seqlen_q)) with return_softmax_lse. A row that sees no key gives 0 and
        an LSE of +inf. A key that is chosen twice counts twice.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        RuntimeError: an offset or a column that counts is not a key.

    Source: Jiang et al., "MInference 1.0", 2024, appendix C.4.2.
    """
    seqlen_q, seqlen_k, *_ = check_dense_operands(q, k, v, ("q", "k", "v"))
    choice = _checked(q, q.shape[0], seqlen_q, block_count, block_offset, column_count, column_index)
    with torch.no_grad():
        mask = _mask(*choice, seqlen_q, seqlen_k)
        joined = (dropout_p, alibi_slopes, None)
        result, lse = dense_attention(q, k, v, softmax_scale, causal, (-1, -1), softcap, joined, mask)
        out = result if out is None else out.copy_(result)
    return (out, lse_for_fa2(lse)) if return_softmax_lse else out


def sparse_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_count: Tensor,
    block_offset: Tensor,
    column_count: Tensor,
    column_index: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    return_softmax_lse: bool = False,
    out: Tensor | None = None,
) -> Any:
    """`sparse_attn_func` of packed sequences, one after the other.

    Args:
        q: (total_q, heads_q, head_dim).
        k, v: (total_k, heads_k, head_dim).
        cu_seqlens_q, cu_seqlens_k: (batch + 1,), int32.
        max_seqlen_q, max_seqlen_k: the longest sequences; tiles = ceil(max_seqlen_q / 64).

    The other arguments and the errors are those of `sparse_attn_func`; keys count from the start of their sequence.

    Returns:
        out like q, or (out, lse (heads_q, total_q)) with return_softmax_lse.
    """
    check_packed_operands(q, k, v, ("q", "k", "v"))
    longest = integer(max_seqlen_q)
    check_packing(cu_seqlens_q, cu_seqlens_k, longest, integer(max_seqlen_k), q)
    batch = cu_seqlens_q.shape[0] - 1
    choice = _checked(q, batch, longest, block_count, block_offset, column_count, column_index)
    out = torch.empty_like(q) if out is None else out
    out.zero_()
    lse = q.new_full((q.shape[1], q.shape[0]), torch.inf, dtype=torch.float32)
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(batch):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        tiles = -(-(rows.stop - rows.start) // TILE)
        blocks, offsets, columns, indices = (tensor[b : b + 1, :, :tiles] for tensor in choice)
        result, result_lse = sparse_attn_func(
            q[None, rows],
            k[None, keys],
            v[None, keys],
            blocks,
            offsets,
            columns,
            indices,
            dropout_p,
            softmax_scale,
            causal,
            softcap,
            alibi_slopes[b : b + 1] if alibi_slopes is not None and alibi_slopes.dim() == 2 else alibi_slopes,
            return_softmax_lse=True,
        )
        out[rows], lse[:, rows] = result[0], result_lse[0]
    return (out, lse) if return_softmax_lse else out


def _checked(
    q: Tensor, batch: int, seqlen_q: int, block_count: Any, block_offset: Any, column_count: Any, column_index: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (batch, q.shape[-2], -(-seqlen_q // TILE))
    named = {
        "block_count": block_count,
        "block_offset": block_offset,
        "column_count": column_count,
        "column_index": column_index,
    }
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is of type {type(tensor).__name__}; it must be a tensor")
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; it must be int32 or int64")
        rank = 3 if name.endswith("count") else 4
        if tensor.dim() != rank or tuple(tensor.shape[:3]) != shape:
            last = "" if rank == 3 else ", most of a tile"
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be (batch, heads_q, tiles of {TILE} rows{last}) = "
                f"({', '.join(map(str, shape))}{', ...' if last else ''})"
            )
    return block_count, block_offset, column_count, column_index


def _mask(
    block_count: Tensor,
    block_offset: Tensor,
    column_count: Tensor,
    column_index: Tensor,
    seqlen_q: int,
    seqlen_k: int,
) -> Tensor:
    """(batch, heads_q, seqlen_q, seqlen_k), bool; or how often each is chosen, as a logarithm, where one is twice."""
    begins = _used(block_count, block_offset, seqlen_k, "block_offset")
    within = torch.arange(TILE, device=begins.device)
    keys = (begins.unsqueeze(-1) + within).flatten(-2)
    keys = torch.cat((keys, _used(column_count, column_index, seqlen_k, "column_index")), dim=-1)
    # What lies behind the last key, and entries that do not count, fall into one more column.
    chosen = torch.zeros(*keys.shape[:3], seqlen_k + 1, dtype=torch.int32, device=keys.device)
    keys = keys.clamp(max=seqlen_k)
    chosen = chosen.scatter_add_(-1, keys, torch.ones_like(keys, dtype=torch.int32))[..., :seqlen_k]
    mask = chosen.float().log() if bool((chosen > 1).any()) else chosen.bool()
    return mask.repeat_interleave(TILE, dim=2)[:, :, :seqlen_q]


def _used(count: Tensor, entries: Tensor, seqlen_k: int, name: str) -> Tensor:
    """The first `count` entries of every tile, in int64, and seqlen_k for the others."""
    used = torch.arange(entries.shape[-1], device=entries.device) < count.unsqueeze(-1)
    outside = (used & ((entries < 0) | (entries >= seqlen_k))).nonzero()
    if outside.numel():
        at = tuple(outside[0].tolist())
        raise RuntimeError(f"{name}{list(at)} is {int(entries[at])}; it must be a key, from 0 to {seqlen_k - 1}")
    return torch.where(used, entries, seqlen_k).long()
