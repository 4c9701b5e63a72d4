"""The linear map by its definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias."""
    return F.linear(x, weight, bias)
