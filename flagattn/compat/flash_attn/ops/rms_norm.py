"""RMSNorm by FlashAttention-2's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`flagattn.rms_norm`, rounded once."""
    return flagattn.rms_norm(x, weight, epsilon, rounding="none")


class RMSNorm(torch.nn.Module):
    """RMSNorm over the last dimension with a weight of ones at first."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Any:
        return rms_norm(x, self.weight, self.eps)
