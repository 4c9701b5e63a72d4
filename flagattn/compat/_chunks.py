"""Attention in chunks of positions: a query sees only the keys of the chunk its own position lies in.

With the last query at the last key's position, as causal masks have it, the query rows and the keys of one chunk end
together; so every chunk is a packed sequence of its own, and windows and causal masks mean the same within it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chunked_packing(lengths_q: Tensor, lengths_k: Tensor, chunk: int) -> tuple[Tensor, Tensor, int, int]:
    """(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k) of the chunks of sequences of these lengths."""
    chunks_q: list[int] = []
    chunks_k: list[int] = []
    for rows, keys in zip(lengths_q.tolist(), lengths_k.tolist()):
        first = keys - rows  # the position of the first query row, negative where rows outnumber keys
        for start in range(min(first // chunk * chunk, 0), max(keys, 1), chunk):
            end = min(start + chunk, keys)
            chunks_q.append(max(end - max(start, first), 0))
            chunks_k.append(max(end - max(start, 0), 0))
    cu_seqlens_q, cu_seqlens_k = (
        torch.tensor([0, *lengths], dtype=torch.int32, device=lengths_q.device).cumsum(0, dtype=torch.int32)
        for lengths in (chunks_q, chunks_k)
    )
    return cu_seqlens_q, cu_seqlens_k, max(chunks_q, default=0), max(chunks_k, default=0)
