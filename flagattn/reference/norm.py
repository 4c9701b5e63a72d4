"""RMSNorm by its definition."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    offset: float = 0.0,
    rounding: str = "llama",
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x / sqrt(mean(x^2) + eps) * (weight + offset) over the last dimension, with fp32 statistics.

    With `residual`, s = x + residual is rounded to x's dtype, normalised, and returned as the second result.
    `rounding` says where the product is rounded to x's dtype: "llama" rounds the normalised x before the weight
    is multiplied, "gemma" and "none" round once, at the end.
    """
    if rounding not in ("llama", "gemma", "none"):
        raise ValueError(f"rounding must be 'llama', 'gemma' or 'none', not {rounding!r}")
    summed = x if residual is None else x + residual
    wide = torch.promote_types(x.dtype, torch.float32)
    statistics = summed.to(wide)
    normalised = statistics * torch.rsqrt(statistics.square().mean(dim=-1, keepdim=True) + eps)
    if rounding == "llama":
        y = (normalised.to(x.dtype) * (weight + offset)).to(x.dtype)
    else:
        y = (normalised * (weight.to(wide) + offset)).to(x.dtype)
    return y if residual is None else (y, summed)
