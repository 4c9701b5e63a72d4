"""The linear layers of the model: torch's product, or the one whose rows do not depend on their batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import flagattn


class Linear(nn.Linear):
    """torch.nn.Linear, which `batch_invariant` switches to `flagattn.batch_invariant_linear`."""

    batch_invariant = False

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x weight^T + bias by the product this layer is switched to."""
        return (flagattn.batch_invariant_linear if self.batch_invariant else F.linear)(x, weight, bias)
