"""What the attention layers of one forward pass share: rotary tables, places of tokens, bounds of documents, the cache.

Shapes in comments: B rows, S tokens per row, T = B * S tokens packed, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aquila2.cache import KVCache
from aquila2.config import Aquila2Config
from aquila2.rope import rope_tables


@dataclass(frozen=True)
class AttentionContext:
    """What attention needs besides its input, the same in every layer."""

    cos: Tensor  # (positions, D / 2) fp32
    sin: Tensor
    positions: Tensor | None = None  # (B, S) int; None: 0 .. S - 1 in every row
    cu_seqlens: Tensor | None = None  # (documents + 1,) int32 into the T packed tokens; None: each row is one document
    max_seqlen: int = 0
    cache: KVCache | None = None


def context_of(
    config: Aquila2Config,
    input_ids: Tensor,
    positions: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    cache: KVCache | None = None,
) -> AttentionContext:
    """The context of a forward pass over (B, S) ids; the other arguments are those of `Aquila2ForCausalLM.forward`."""
    if cache is not None:
        return AttentionContext(cache.cos, cache.sin, cache.positions, cache=cache)
    longest = input_ids.shape[1] if max_seqlen is None else max_seqlen
    if cu_seqlens is not None and positions is None:
        places = torch.arange(input_ids.numel(), device=input_ids.device)
        document = torch.bucketize(places, cu_seqlens, right=True) - 1
        positions = (places - cu_seqlens[document]).view_as(input_ids)
    cos, sin = rope_tables(config, longest, input_ids.device)
    return AttentionContext(cos, sin, positions, cu_seqlens, longest)
