"""Between padded batches and packed sequences, by the names of `flash_attn.bert_padding`."""

from __future__ import annotations

import torch
from torch import Tensor

from flagattn.compat._operands import cumulative, rows_of_sequences


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """input[indices] along the first dimension; differentiable."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """Zeros of (first_axis_dim, ...) with values at the indices; differentiable."""
    return values.new_zeros((first_axis_dim, *values.shape[1:])).index_copy(0, indices.long(), values)


def index_first_axis_residual(input: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """(input[indices], input), for a block that continues from both."""
    return index_first_axis(input, indices), input


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The rows a mask keeps, one sequence behind the other.

    Args:
        hidden_states: (batch, seqlen, ...).
        attention_mask: (batch, seqlen), bool or integers; 1 is valid.
        unused_mask: (batch, seqlen), rows that are kept in the packing though they are not valid.

    Returns:
        (rows (total, ...), their indices into (batch * seqlen, ...), cu_seqlens (batch + 1,) int32, the longest
        sequence, the number of valid rows of each sequence (batch,) int32).
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    rows = index_first_axis(hidden_states.flatten(0, 1), indices)
    return rows, indices, cumulative(lengths), int(lengths.max().item()), used


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """`unpad_input` of rows that each hold several short sequences.

    Args:
        hidden_states: (batch, seqlen, ...).
        attention_mask_in_length: (batch, seqlen), integers: the lengths of a row's sequences in order, then zeros.

    Returns:
        (rows (total, ...), their indices, cu_seqlens over all sequences int32, the longest sequence).
    """
    per_row = attention_mask_in_length.sum(dim=-1).long()
    batch, seqlen = attention_mask_in_length.shape
    starts = torch.arange(batch, device=per_row.device) * seqlen
    _, indices = rows_of_sequences(starts, per_row)
    lengths = attention_mask_in_length[attention_mask_in_length != 0]
    rows = index_first_axis(hidden_states.flatten(0, 1), indices)
    return rows, indices, cumulative(lengths), int(lengths.max().item())


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: (total, ...) back to (batch, seqlen, ...), zeros where no row belongs."""
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(0, (batch, seqlen))
