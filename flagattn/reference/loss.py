"""Cross-entropy by its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float = 0.0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The reduced loss of logits (..., classes) and targets (...), and the log-sum-exp of each row.

    Both are computed in fp32, or in float64 if the logits are. Rows without a target or without weight count nowhere:
    their loss and log-sum-exp are 0, and no gradient reaches them. The mean of no rows is 0.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    if softcap != 0.0:
        z = softcap * torch.tanh(z / softcap)
    weights = torch.ones(targets.shape, device=z.device) if token_weights is None else token_weights
    weights = weights.to(z.dtype)
    kept = (targets != ignore_index) & (weights != 0)

    z, wanted, weight = z[kept], targets[kept].long(), weights[kept]
    log_p = F.log_softmax(z, dim=-1)
    lse_kept = torch.logsumexp(z, dim=-1)
    loss = -log_p.gather(-1, wanted[:, None])[:, 0]
    if label_smoothing != 0.0:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(-1)
    if z_loss != 0.0:
        loss = loss + z_loss * lse_kept.square()

    losses = torch.zeros(kept.shape, dtype=z.dtype, device=z.device).masked_scatter(kept, loss * weight)
    lse = torch.zeros(kept.shape, dtype=z.dtype, device=z.device).masked_scatter(kept, lse_kept)
    if reduction == "none":
        return losses, lse
    if reduction == "mean" and bool(kept.any()):
        return losses.sum() / weight.sum(), lse
    return losses.sum(), lse


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """`cross_entropy` of the logits hidden @ weight.T."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    return cross_entropy(F.linear(hidden.to(dtype), weight.to(dtype)), targets, **options)  # type: ignore[arg-type]
