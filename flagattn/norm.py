"""RMSNorm, alone and fused with the residual addition before it."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from flagattn import _load
from flagattn._autograd import differentiable, without_double_backward
from flagattn._checks import check_floating, check_number, check_same_as, promoted_under_autocast, rows_contiguous
from flagattn._errors import explained

_load.load()
_ops: Any = torch.ops.flagattn

# Whether the normalised rows are rounded to x's dtype before the weight multiplies them.
_ROUNDS_NORMALISED = {"llama": True, "gemma": False, "none": False}


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = ..., *, residual: None = None, offset: float = ..., rounding: str = ...
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = ..., *, residual: Tensor, offset: float = ..., rounding: str = ...
) -> tuple[Tensor, Tensor]: ...
@explained
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    offset: float = 0.0,
    rounding: str = "llama",
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide each row by its root mean square and scale it, after adding a residual if one is given.

    ``y = s / sqrt(mean(s^2) + eps) * (weight + offset)`` over the last dimension, with ``s = x + residual`` rounded to
    x's dtype, or ``s = x`` without `residual`. Statistics and products are computed in fp32.

    Args:
        x: (..., cols), float32, bfloat16 or float16, any strides; copied first if its last dimension is not contiguous.
        weight: (cols,), float32, bfloat16 or float16; it need not have x's dtype.
        eps: added to the mean square; at least 0.
        residual: like x in shape and dtype. Under autocast the narrower of the two is widened to the other's dtype.
        offset: added to the weight; 1 for models that store ``weight - 1``, such as Gemma.
        rounding: where y is rounded to x's dtype. "llama" rounds the normalised row, then its product with the weight,
            as Hugging Face's Llama does; "gemma" and "none" round once, at the end, as Gemma and `torch.nn.RMSNorm` do.

    Returns:
        y in x's shape and dtype; with `residual` the pair (y, s), where s continues the residual stream.

    Raises:
        TypeError: an argument that is no tensor, or a dtype that is not supported.
        ValueError: devices or shapes that do not fit, a negative eps, an unknown rounding.

    Differentiable once, in x, residual and weight, through both results. The weight's gradient is summed in fp32 over
    fixed groups of rows, so its bits do not depend on the number of threads.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    if residual is not None:
        x, residual = promoted_under_autocast(x, residual)
    check_floating(x, "x")
    if residual is not None:
        check_same_as(residual, "residual", x, "x")
    check_floating(weight, "weight")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, but x is on {x.device}; their devices must be equal")
    if weight.dim() != 1 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but x has {tuple(x.shape)}; it must be (cols,), x's last size"
        )
    check_number(eps, "eps")
    check_number(offset, "offset")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must be at least 0")
    rounds_normalised = _ROUNDS_NORMALISED.get(rounding)
    if rounds_normalised is None:
        raise ValueError(f"rounding is {rounding!r}; it must be 'llama', 'gemma' or 'none'")
    x, weight = rows_contiguous(x), rows_contiguous(weight)
    if residual is None:
        y, _ = _rms_norm(x, weight, eps, offset, rounds_normalised)
        return y
    y, summed, _ = _add_rms_norm(x, rows_contiguous(residual), weight, eps, offset, rounds_normalised)
    return y, summed


# ---------------------------------------------------------------------------------------------------------- for tracing


@torch.library.register_fake("flagattn::rms_norm")
def _rms_norm_fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.register_fake("flagattn::add_rms_norm")
def _add_rms_norm_fake(x: Tensor, residual: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.register_fake("flagattn::rms_norm_backward")
def _rms_norm_backward_fake(
    dy: Tensor, dsummed: Tensor | None, s: Tensor, weight: Tensor, rstd: Tensor, offset: float, needs_dweight: bool
) -> tuple[Tensor, Tensor]:
    return s.new_empty(s.shape), weight.new_empty(weight.shape if needs_dweight else (0,))


# ------------------------------------------------------------------------------------------------------------ gradients

_backward_op = without_double_backward(_ops.rms_norm_backward.default)


def _save(ctx: Any, s: Tensor, weight: Tensor, rstd: Tensor, offset: float) -> None:
    # A result nobody uses has no gradient, and then none is made up.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(s, weight, rstd)
    ctx.offset = offset


def _gradients(
    ctx: Any, dy: Tensor | None, dsummed: Tensor | None, needs_dweight: bool
) -> tuple[Tensor | None, Tensor | None]:
    if dy is None:
        return dsummed, None
    s, weight, rstd = ctx.saved_tensors
    dsummed = None if dsummed is None else rows_contiguous(dsummed)
    ds, dweight = _backward_op(rows_contiguous(dy), dsummed, s, weight, rstd, ctx.offset, needs_dweight)
    return ds, dweight if needs_dweight else None


def _rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, offset, _ = inputs
    _save(ctx, x, weight, output[1], offset)


def _rms_norm_backward(ctx: Any, dy: Tensor | None, drstd: Tensor | None) -> tuple[Tensor | None, ...]:
    dx, dweight = _gradients(ctx, dy, None, ctx.needs_input_grad[1])
    return dx, dweight, None, None, None


def _add_rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, weight, _, offset, _ = inputs
    _, summed, rstd = output
    _save(ctx, summed, weight, rstd, offset)


def _add_rms_norm_backward(
    ctx: Any, dy: Tensor | None, dsummed: Tensor | None, drstd: Tensor | None
) -> tuple[Tensor | None, ...]:
    ds, dweight = _gradients(ctx, dy, dsummed, ctx.needs_input_grad[2])
    return ds, ds, dweight, None, None, None


_rms_norm = differentiable(_ops.rms_norm.default, _rms_norm_setup, _rms_norm_backward)
_add_rms_norm = differentiable(_ops.add_rms_norm.default, _add_rms_norm_setup, _add_rms_norm_backward)
