"""Keys and values of tokens seen before, for generation with rows of different lengths and no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

import flagattn
from aquila2.config import Aquila2Config
from aquila2.rope import rope_tables


class KVCache:
    """One fixed stretch of `capacity` places per row and layer; row r holds `lengths[r]` tokens at its start.

    New tokens come packed, some or none of every row. Rows that bring equally many, as in decoding, are attended in one
    call of `flagattn.flash_attn_with_kvcache`, and else row by row: rows of any length, prompts in pieces, and rows
    that are finished need no padding, copies or masks.

    The rotary tables are made once for the whole capacity, so that under dynamic NTK scaling all keys of a generation
    are rotated with the same base.

    Args:
        config: Sizes of the model.
        rows: Number of sequences.
        capacity: Most tokens a row can take.
        dtype, device: Of the keys and values.
    """

    def __init__(
        self,
        config: Aquila2Config,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, rows, capacity, config.num_key_value_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.lengths = [0] * rows
        self.cos, self.sin = rope_tables(config, capacity, device)
        self.positions = torch.empty(1, 0, dtype=torch.int64, device=device)

    def begin(self, counts: Sequence[int]) -> None:
        """Makes room for the next call of the model, which brings `counts[r]` new tokens of row r, packed in row order.

        The model is then called with input_ids of shape (1, sum(counts)). Rows with count 0 are left alone.

        Raises:
            ValueError: Counts do not fit the rows or the capacity.
        """
        if len(counts) != len(self.lengths):
            raise ValueError(f"counts must have one number per row ({len(self.lengths)}), got {len(counts)}")
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if count < 0 or length + count > self.capacity:
                raise ValueError(
                    f"counts[{row}] must lie between 0 and the {self.capacity - length} free places, got {count}"
                )
        device = self.keys.device
        lengths, self.lengths = self.lengths, [n + c for n, c in zip(self.lengths, counts, strict=True)]
        places = [p for length, count in zip(lengths, counts, strict=True) for p in range(length, length + count)]
        self.positions = torch.tensor([places], dtype=torch.int64, device=device)
        rows = [row for row, count in enumerate(counts) if count > 0]
        alike = len({counts[row] for row in rows}) <= 1
        self._calls = [
            (
                len(group),
                counts[group[0]] if group else 0,
                torch.tensor(group, dtype=torch.int32, device=device),
                torch.tensor([lengths[row] for row in group], dtype=torch.int32, device=device),
            )
            for group in ([rows] if alike else [[row] for row in rows])
        ]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Appends k and v (1, T, Hk, D) of the tokens announced by `begin`; attends q (1, T, Hq, D) to all so far."""
        keys, values = self.keys[layer], self.values[layer]
        q, k, v = (operand[0].to(keys.dtype) for operand in (q, k, v))
        outs, begin = [], 0
        for rows, count, indices, lengths in self._calls:
            end = begin + rows * count
            q_new, k_new, v_new = (operand[begin:end].unflatten(0, (rows, count)) for operand in (q, k, v))
            begin = end
            out = flagattn.flash_attn_with_kvcache(
                q_new, keys, values, k_new, v_new,
                cache_seqlens=lengths, cache_batch_idx=indices, causal=True,
            )  # fmt: skip
            outs.append(cast(Tensor, out).flatten(0, 1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)
