"""Attention to chosen keys: blocks of 64 neighbours and single columns, of its own for every tile of 64 query rows.

The kernels get a mask of the chosen keys and skip tiles that no row sees. It takes a byte per score, or four where a
key is chosen twice; vLLM's kernel reads the indices themselves.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from flagattn._attention_calls import dense_attention
from flagattn._checks import check_dense_operands, check_packed_operands, check_packing
from flagattn.compat._operands import integer, lse_for_fa2, written_to

_Choice = tuple[Tensor, Tensor, Tensor, Tensor]  # block_count, block_offset, column_count, column_index

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
        RuntimeError: a count is negative or exceeds its entries, or an offset or a column that counts is not a key.

    Source: Jiang et al., "MInference 1.0", 2024, appendix C.4.2.
    """
    seqlen_q, *_ = check_dense_operands(q, k, v, ("q", "k", "v"))
    choice = _checked(q, q.shape[0], seqlen_q, block_count, block_offset, column_count, column_index)
    with torch.no_grad():
        result, lse = _attention(q, k, v, choice, (dropout_p, softmax_scale, causal, softcap, alibi_slopes))
        out = written_to(out, result)
    return (out, lse) if return_softmax_lse else out


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
        cu_seqlens_q, cu_seqlens_k: (batch + 1,), int32, checked as in `flagattn.flash_attn_varlen_func`.
        max_seqlen_q, max_seqlen_k: the longest sequences; tiles = ceil(max_seqlen_q / 64).

    The other arguments and the errors are those of `sparse_attn_func`; keys count from the start of their sequence.

    Returns:
        out like q, or (out, lse (heads_q, total_q)) with return_softmax_lse; rows behind the last sequence give 0 and
        +inf.
    """
    check_packed_operands(q, k, v, ("q", "k", "v"))
    longest_q, longest_k = integer(max_seqlen_q), integer(max_seqlen_k)
    check_packing(cu_seqlens_q, cu_seqlens_k, longest_q, longest_k, q)
    batch = cu_seqlens_q.shape[0] - 1
    starts_q = _starts(cu_seqlens_q, "cu_seqlens_q", q.shape[0], longest_q)
    starts_k = _starts(cu_seqlens_k, "cu_seqlens_k", k.shape[0], longest_k)
    choice = _checked(q, batch, longest_q, block_count, block_offset, column_count, column_index)
    result = q.new_zeros(*q.shape[:2], v.shape[2])
    lse = q.new_full((q.shape[1], q.shape[0]), torch.inf, dtype=torch.float32)
    with torch.no_grad():
        for b in range(batch):
            rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
            tiles = -(-(rows.stop - rows.start) // TILE)
            blocks, offsets, columns, indices = (tensor[b : b + 1, :, :tiles] for tensor in choice)
            slopes = alibi_slopes[b : b + 1] if alibi_slopes is not None and alibi_slopes.dim() == 2 else alibi_slopes
            scores = (dropout_p, softmax_scale, causal, softcap, slopes)
            of_tiles = (blocks, offsets, columns, indices)
            part, part_lse = _attention(q[None, rows], k[None, keys], v[None, keys], of_tiles, scores, b)
            result[rows], lse[:, rows] = part[0], part_lse[0]
        out = written_to(out, result)
    return (out, lse) if return_softmax_lse else out


def _attention(
    q: Tensor, k: Tensor, v: Tensor, choice: _Choice, scores: tuple[Any, ...], first: int = 0
) -> tuple[Tensor, Tensor]:
    """Of dense operands; errors count sequences from `first` on."""
    dropout_p, softmax_scale, causal, softcap, alibi_slopes = scores
    mask = _mask(*choice, q.shape[1], k.shape[1], first)
    joined = (dropout_p, alibi_slopes, None)
    out, lse = dense_attention(q, k, v, softmax_scale, causal, (-1, -1), softcap, joined, mask)
    return out, lse_for_fa2(lse)


def _starts(cu_seqlens: Tensor, name: str, total: int, longest: int) -> list[int]:
    """The values of cu_seqlens, which obey what `flagattn.flash_attn_varlen_func` wants of them."""
    starts: list[int] = cu_seqlens.tolist()
    if starts[0] != 0:
        raise RuntimeError(f"{name} starts with {starts[0]}; it must start with 0")
    for b, (begin, end) in enumerate(itertools.pairwise(starts)):
        if end < begin:
            raise RuntimeError(f"{name} falls from {begin} to {end} at index {b + 1}; it must not decrease")
        if end - begin > longest:
            raise RuntimeError(
                f"{name} gives sequence {b} the length {end - begin}, but its max_seqlen is {longest}; "
                "no sequence may be longer"
            )
    if starts[-1] > total:
        raise RuntimeError(
            f"{name} ends with {starts[-1]}, but the tensor has {total} rows; it must not end behind them"
        )
    return starts


def _checked(
    q: Tensor, batch: int, seqlen_q: int, block_count: Any, block_offset: Any, column_count: Any, column_index: Any
) -> _Choice:
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
    first: int,
) -> Tensor:
    """(batch, heads_q, seqlen_q, seqlen_k), bool; or how often each is chosen, as a logarithm, where one is twice."""
    begins = _used(block_count, block_offset, seqlen_k, ("block_count", "block_offset"), first)
    within = torch.arange(TILE, device=begins.device)
    keys = (begins.unsqueeze(-1) + within).flatten(-2)
    columns = _used(column_count, column_index, seqlen_k, ("column_count", "column_index"), first)
    keys = torch.cat((keys, columns), dim=-1)
    # What lies behind the last key, and entries that do not count, fall into one more column.
    chosen = torch.zeros(*keys.shape[:3], seqlen_k + 1, dtype=torch.int32, device=keys.device)
    keys = keys.clamp(max=seqlen_k)
    chosen = chosen.scatter_add_(-1, keys, torch.ones_like(keys, dtype=torch.int32))[..., :seqlen_k]
    mask = chosen.float().log() if bool((chosen > 1).any()) else chosen.bool()
    return mask.repeat_interleave(TILE, dim=2)[:, :, :seqlen_q]


def _used(count: Tensor, entries: Tensor, seqlen_k: int, names: tuple[str, str], first: int) -> Tensor:
    """The first `count` entries of every tile, in int64, and seqlen_k for the others."""
    most = entries.shape[-1]
    used = torch.arange(most, device=entries.device) < count.unsqueeze(-1)
    _refuse((count < 0) | (count > most), count, names[0], f"be from 0 to {most}", first)
    outside = used & ((entries < 0) | (entries >= seqlen_k))
    _refuse(outside, entries, names[1], f"be a key, from 0 to {seqlen_k - 1}", first)
    return torch.where(used, entries, seqlen_k).long()


def _refuse(wrong: Tensor, values: Tensor, name: str, allowed: str, first: int) -> None:
    places = wrong.nonzero()
    if places.numel():
        place = places[0].tolist()
        told = [first + place[0], *place[1:]]
        raise RuntimeError(f"{name}{told} is {int(values[tuple(place)])}; it must {allowed}")
