"""`flag_attn.testing.dropout`: which weights a call with dropout kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn.reference.dropout import dropout_keep_mask


def recompute_mask(
    B: int, H: int, M: int, N: int, dropout_p: float, seed: int | None, offset: int | None, device: Any
) -> Tensor:
    """The weights (B, H, M, N) that `flash_attention` kept, from the seed and offset that it returned.

    B, H, M and N are the numbers of sequences, query heads, queries and keys. All are kept where dropout_p is 0.
    """
    if dropout_p == 0.0:
        return torch.ones(B, H, M, N, dtype=torch.bool, device=device)
    for name, value in (("seed", seed), ("offset", offset)):
        if value is None:
            raise TypeError(f"{name} is None; with dropout it must be the integer that flash_attention returned")
    return dropout_keep_mask(torch.tensor([seed, offset]), dropout_p, B, H, M, N).to(device)
