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

    Rows are attended as packed sequences: with R rows the cache counts as 2 R sequences in memory order, the filled
    part of each row followed by its free part, and the free parts get no queries. So rows of any length, prompts in
    pieces, and rows that are finished share one varlen call without padding, copies or masks.

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
        shape = (config.num_hidden_layers, rows * capacity, config.num_key_value_heads, config.head_dim)
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
        places = [range(n, n + c) for n, c in zip(self.lengths, counts, strict=True)]
        self.positions = torch.tensor([[p for row in places for p in row]], dtype=torch.int64, device=device)
        slots = [row * self.capacity + p for row, row_places in enumerate(places) for p in row_places]
        self._slots = torch.tensor(slots, dtype=torch.int64, device=device)
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        bounds_q, bounds_k = [0], [0]
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            bounds_q += [bounds_q[-1] + count] * 2
            bounds_k += [row * self.capacity + length, (row + 1) * self.capacity]
        self._cu_seqlens_q = torch.tensor(bounds_q, dtype=torch.int32, device=device)
        self._cu_seqlens_k = torch.tensor(bounds_k, dtype=torch.int32, device=device)
        self._max_seqlen_q = max(counts, default=0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Appends k and v (1, T, Hk, D) of the tokens announced by `begin`; attends q (1, T, Hq, D) to all so far."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self._slots] = k[0].to(keys.dtype)
        values[self._slots] = v[0].to(values.dtype)
        out = flagattn.flash_attn_varlen_func(
            q[0].to(keys.dtype), keys, values, self._cu_seqlens_q, self._cu_seqlens_k,
            self._max_seqlen_q, self.capacity, causal=True,
        )  # fmt: skip
        return cast(Tensor, out)
