"""Caches of every kind with given contents: rows and pages that no sequence uses hold NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cache:
    """One cache per operand, and what says where the rows of every sequence lie."""

    tensors: tuple[Tensor, ...]
    seqlens: Tensor  # (batch,), left padding included
    leftpad: Tensor | None = None
    batch_idx: Tensor | None = None
    block_table: Tensor | None = None

    @property
    def arguments(self) -> dict[str, Tensor | None]:
        """The keyword arguments of the functions that work on caches."""
        names = ("seqlens", "leftpad", "batch_idx")
        return {f"cache_{name}": getattr(self, name) for name in names} | {"block_table": self.block_table}

    def stretch(self, index: int, operand: int) -> Tensor:
        """The rows of sequence `index` that it may use, in order; a copy."""
        cache = self.tensors[operand]
        if self.block_table is not None:
            return cache[self.block_table[index].long().clamp(0, cache.shape[0] - 1)].flatten(0, 1)
        return cache[index if self.batch_idx is None else int(self.batch_idx[index])].clone()


def make_cache(
    operands: Sequence[Sequence[Tensor]],
    *,
    room: int = 0,
    leftpads: Sequence[int] | None = None,
    page_size: int = 0,
    permuted: bool = False,
    seed: int = 0,
) -> Cache:
    """Caches whose sequence b holds the rows operands[i][b] (length, heads, head_dim) behind leftpads[b] others.

    There is room for `room` rows more. With a page size the pages lie in random order, and entries of the block table
    behind those are wild; `permuted` gives the sequences random batch rows among unused ones.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [rows.shape[0] for rows in operands[0]]
    batch = len(lengths)
    starts = list(leftpads) if leftpads is not None else [0] * batch
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    capacity = max(ends, default=0) + room
    cache = Cache((), torch.tensor(ends, dtype=torch.int32))
    if leftpads is not None:
        cache.leftpad = torch.tensor(starts, dtype=torch.int32)
    if page_size:
        counts = [-(-(end + room) // page_size) for end in ends]
        pages = torch.randperm(sum(counts) + 3, generator=generator).to(torch.int32)
        cache.block_table = torch.full((batch, max(counts, default=0)), -7, dtype=torch.int32)
        first = 0
        for b, count in enumerate(counts):
            cache.block_table[b, :count] = pages[first : first + count]
            first += count
        shape: tuple[int, ...] = (len(pages), page_size)
    else:
        rows = torch.randperm(batch + 2, generator=generator) if permuted else torch.arange(batch)
        if permuted:
            cache.batch_idx = rows[:batch].to(torch.int32)
        shape = (len(rows), capacity)
    tensors = []
    for operand in operands:
        tensor = operand[0].new_full((*shape, *operand[0].shape[1:]), torch.nan)
        for b, values in enumerate(operand):
            places = torch.arange(starts[b], ends[b])
            if cache.block_table is not None:
                tensor[cache.block_table[b].long()[places // page_size], places % page_size] = values
            else:
                row = b if cache.batch_idx is None else int(cache.batch_idx[b])
                tensor[row, places] = values
        tensors.append(tensor)
    cache.tensors = tuple(tensors)
    return cache
