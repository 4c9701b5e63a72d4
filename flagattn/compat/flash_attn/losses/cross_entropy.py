"""Cross-entropy of logits by the name of `flash_attn.losses.cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagattn

_native: Any = flagattn  # its results depend on flags


class CrossEntropyLoss(torch.nn.Module):
    """`flagattn.cross_entropy` of (rows, classes) and (rows,) as a module.

    Args:
        lse_square_scale: z_loss of `flagattn.cross_entropy`.
        logit_scale: multiplies the logits first.
        return_z_loss: return (loss, the part of it that lse_square_scale adds), the latter without gradient.
        process_group: must be None.
        ignore_index, reduction, label_smoothing, inplace_backward: as in `flagattn.cross_entropy`.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        logit_scale: float = 1.0,
        lse_square_scale: float = 0.0,
        inplace_backward: bool = False,
        process_group: Any = None,
        return_z_loss: bool = False,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise NotImplementedError("process_group is given; classes cannot be divided over processes here")
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.logit_scale = logit_scale
        self.lse_square_scale = lse_square_scale
        self.inplace_backward = inplace_backward
        self.return_z_loss = return_z_loss

    def forward(self, input: Tensor, target: Tensor) -> Any:
        logits = input if self.logit_scale == 1.0 else input * self.logit_scale
        loss, lse = _native.cross_entropy(
            logits,
            target,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            z_loss=self.lse_square_scale,
            label_smoothing=self.label_smoothing,
            inplace_backward=self.inplace_backward,
            return_lse=True,
        )
        if not self.return_z_loss:
            return loss
        squares = self.lse_square_scale * lse.detach().square()  # 0 in rows that are left out
        if self.reduction != "none":
            squares = squares.sum()
        if self.reduction == "mean":
            squares = squares / (target != self.ignore_index).sum().clamp(min=1)
        return loss, squares
