"""How the sequences of a Hugging Face batch lie: worked out once per forward pass, kept on the tensor that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from flagattn.compat._operands import cumulative

Result = TypeVar("Result")


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


def packing_of(position_ids: Tensor, batch: int) -> tuple[Tensor, Tensor, int, int] | None:
    """(cu_seqlens, cu_seqlens, longest, longest) over the flattened batch; None where every row is one sequence."""
    return _kept_on(position_ids, "_flagattn_packing", lambda positions: _packing(positions, batch))


def first_half_of(table: Tensor) -> Tensor:
    """The first half of a table's last dimension."""
    # A copy: a view kept on the tensor that it views would keep it alive for ever.
    return _kept_on(table, "_flagattn_half", lambda whole: whole[..., : whole.shape[-1] // 2].clone())


def _padding(keys: Tensor) -> Padding:
    keys = keys.bool()
    lengths = keys.sum(dim=1, dtype=torch.int32)
    starts = keys.shape[1] - lengths
    to_the_end = torch.arange(keys.shape[1], device=keys.device) >= starts.unsqueeze(1)
    indices = keys.flatten().nonzero().flatten()
    shortest, longest = torch.stack(lengths.aminmax()).tolist() if lengths.numel() else (0, 0)
    return Padding(indices, cumulative(lengths), shortest, longest, starts if torch.equal(to_the_end, keys) else None)


def _packing(position_ids: Tensor, batch: int) -> tuple[Tensor, Tensor, int, int] | None:
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids.diff(dim=-1) != 1
    if not bool(begins[:, 1:].any()):
        return None
    begins = begins.expand(batch, -1).flatten()
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


# The mask functions of transformers that attention's own arguments express.
_EXPRESSED = {
    "causal_mask_function",
    "bidirectional_mask_function",
    "sliding_window_overlay.<locals>.inner_mask",
    "packed_sequence_mask_function.<locals>.inner_mask",
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
