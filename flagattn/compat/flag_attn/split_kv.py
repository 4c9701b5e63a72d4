"""Attention without gradient, as `flag_attn.split_kv.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from flagattn.compat.flag_attn.flash import flash_attention


def flash_attention_split_kv(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, sm_scale: float | None = None
) -> Tensor:
    """`flash_attention` without gradient; how the keys are split over threads does not change its bits."""
    with torch.no_grad():
        return flash_attention(q, k, v, causal, sm_scale)


attention = flash_attention_split_kv  # its name in its own module there
