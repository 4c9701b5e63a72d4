"""How the sequences of a Hugging Face batch lie: worked out once per forward pass, kept on the tensor that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from flagattn.compat._operands import cumulative

Result = TypeVar("Result")
Packing = tuple[Tensor, Tensor, int, int]  # cu_seqlens of queries and of keys, the longest of either


@dataclass(frozen=True)
class Padding:
    """The valid rows of a (batch, seqlen) mask."""

    indices: Tensor  # into the flattened rows
    cu_seqlens: Tensor
    shortest: int
    longest: int
    starts: Tensor | None  # (batch,) int32, where the valid rows of each sequence go on to its end; else None


def padding_of(keys: Tensor) -> Padding:
    return _kept_on(keys, "_flagattn_padding", _padding)


def packing_of(sequences: Tensor) -> Packing:
    """Of (batch, 1, seqlen) sequence numbers, each row's rising: the flattened batch, cut where they change."""
    return _kept_on(sequences, "_flagattn_packing", _packing)


def restarts_of(position_ids: Tensor) -> Packing | None:
    """Of (1, seqlen) positions that start anew at 0; None where they never do."""
    return _kept_on(position_ids, "_flagattn_restarts", _restarts)


def all_rows(batch: int, seqlen: int, device: torch.device) -> Tensor:
    """The cu_seqlens of a batch whose rows are all of one length."""
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * seqlen


def first_half_of(table: Tensor) -> Tensor:
    """The first half of a table's last dimension."""
    half = table.shape[-1] // 2
    if torch.compiler.is_compiling() or table.is_inference():
        return table[..., :half]
    # A copy: a view kept on the tensor that it views would keep it alive for ever.
    return _kept_on(table, "_flagattn_half", lambda whole: whole[..., :half].clone())


def _padding(keys: Tensor) -> Padding:
    keys = keys.bool()
    lengths = keys.sum(dim=1, dtype=torch.int32)
    starts = keys.shape[1] - lengths
    to_the_end = torch.arange(keys.shape[1], device=keys.device) >= starts.unsqueeze(1)
    indices = keys.flatten().nonzero().flatten()
    shortest, longest = torch.stack(lengths.aminmax()).tolist() if lengths.numel() else (0, 0)
    return Padding(indices, cumulative(lengths), shortest, longest, starts if torch.equal(to_the_end, keys) else None)


def _packing(sequences: Tensor) -> Packing:
    begins = torch.ones_like(sequences, dtype=torch.bool)
    begins[..., 1:] = sequences.diff(dim=-1) != 0
    return _beginning_at(begins.flatten())


def _restarts(position_ids: Tensor) -> Packing | None:
    begins = position_ids.flatten() == 0
    begins[:1] = True
    return _beginning_at(begins) if bool(begins[1:].any()) else None


def _beginning_at(begins: Tensor) -> Packing:
    ends = torch.tensor([begins.shape[0]], device=begins.device)
    cu_seqlens = torch.cat((begins.nonzero().flatten(), ends)).to(torch.int32)
    longest = int(cu_seqlens.diff().max().item())
    return cu_seqlens, cu_seqlens, longest, longest


def scattered(rows: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
    """(total, heads, head_dim) back to (batch, seqlen, heads, head_dim), zeros where no row belongs."""
    whole = rows.new_zeros((shape[0] * shape[1], *rows.shape[1:]))
    return whole.index_copy(0, indices, rows).unflatten(0, tuple(shape))


def _kept_on(tensor: Tensor, name: str, work_out: Callable[[Tensor], Result]) -> Result:
    """The result for this tensor as it is now: every layer of a forward pass brings the same one."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return work_out(tensor)
    kept = getattr(tensor, name, None)
    if kept is None or kept[0] != tensor._version:
        kept = (tensor._version, work_out(tensor))
        setattr(tensor, name, kept)
    return kept[1]


_PACKED = "packed_sequence_mask_function.<locals>.inner_mask"

# The mask functions of transformers that attention's own arguments express.
_EXPRESSED = {
    "causal_mask_function",
    "bidirectional_mask_function",
    "sliding_window_overlay.<locals>.inner_mask",
    _PACKED,
    "packed_sequence_compatibility_function.<locals>.inner_mask",
    "remap_positions_for_packed_sequence.<locals>.inner_mask",
}


def follows_from_arguments(mask_function: Any) -> bool:
    """Whether a mask is made of causality, a sliding window and packed sequences only."""
    name = getattr(mask_function, "__qualname__", "")
    if name in _EXPRESSED:
        return all(
            follows_from_arguments(cell.cell_contents)
            for cell in mask_function.__closure__ or ()
            if callable(cell.cell_contents)
        )
    if name != "and_masks.<locals>.and_mask":
        return False
    (parts,) = (cell.cell_contents for cell in mask_function.__closure__)
    return all(follows_from_arguments(part) for part in parts)


def packed_sequences(mask_function: Any) -> Tensor | None:
    """(batch, seqlen), the number of each row's sequence, where a mask keeps packed sequences apart."""
    for cell in getattr(mask_function, "__closure__", None) or ():
        part = cell.cell_contents
        if isinstance(part, Tensor) and mask_function.__qualname__ == _PACKED:
            return part
        for inner in part if isinstance(part, tuple) else (part,):
            found = packed_sequences(inner) if callable(inner) else None
            if found is not None:
                return found
    return None
