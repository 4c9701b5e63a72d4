"""cross_entropy by the sm_80 kernels, on CPU tensors, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.host_exec.builds import host_exec_module
from tests.host_exec.kernels_fused import address, dtype_of, filled_with_nan, row_contiguous, rows_of

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def fields(logits: Tensor, targets: Tensor, weights: Tensor | None, options: tuple[Any, ...]) -> dict[str, Any]:
    names = ("ignore_index", "reduction", "softcap", "z_loss", "label_smoothing")
    return {
        "dtype": dtype_of(logits),
        "rows": targets.numel(),
        "classes": logits.shape[-1],
        "logits": rows_of(logits),
        "targets": address(targets),
        "weights": address(weights),
        **dict(zip(names, options, strict=True)),
    }


def forward(logits: Tensor, targets: Tensor, weights: Tensor | None, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduces = options[1] != 0
    loss = filled_with_nan(() if reduces else targets.shape, torch.float32)
    lse, parts = filled_with_nan(targets.shape, torch.float32), filled_with_nan((2, targets.numel()), torch.float32)
    scratch = filled_with_nan((targets.numel() if reduces else 0,), torch.float64)
    given = fields(logits, targets, weights, options)
    given |= {"loss": address(loss), "lse": address(lse), "parts": address(parts), "scratch": address(scratch)}
    host_exec_module().cross_entropy_sm80(given)
    return loss, lse, parts


def backward(
    dloss: Tensor | None,
    dlse: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    parts: Tensor,
    *options: Any,
    inplace: bool = False,
) -> Tensor:
    dlogits = logits if inplace else filled_with_nan(logits.shape, logits.dtype)
    scratch = filled_with_nan((1,), torch.float64)
    given = fields(logits, targets, weights, options)
    given |= {"dloss": address(dloss), "dlse": address(dlse), "parts": address(parts), "scratch": address(scratch)}
    host_exec_module().cross_entropy_backward_sm80({**given, "dlogits": rows_of(dlogits)})
    return dlogits


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor | None, *options: Any) -> Any:
        loss, lse, parts = forward(logits, targets, weights, *options)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, targets, weights, parts)
        ctx.options = options
        return loss, lse

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None) -> Any:
        upstream = (None if d is None else d.contiguous() for d in (dloss, dlse))
        return backward(*upstream, *ctx.saved_tensors, *ctx.options), *[None] * 7


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
    return_lse: bool = False,
) -> Any:
    """`flagattn.cross_entropy` by the sm_80 kernels."""
    weights = None if token_weights is None else token_weights.float().contiguous()
    options = (ignore_index, REDUCTIONS[reduction], softcap, z_loss, label_smoothing)
    results = _CrossEntropy.apply(row_contiguous(logits), targets.long().contiguous(), weights, *options)
    return results if return_lse else results[0]
