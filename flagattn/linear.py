"""A linear map whose rows do not depend on their batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from flagattn import _load
from flagattn._autograd import below_autograd, differentiable
from flagattn._checks import check_floating, rows_contiguous, under_autocast
from flagattn._errors import explained

_load.load()
_ops: Any = torch.ops.flagattn


@explained
def batch_invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear map that gives a row the same bits whatever stands beside it, and on however many threads.

    ``y = x weight^T + bias``. Every element is a sum in fp32 of chains of 128 multiply-adds, the chains added in order,
    rounded once; of bf16 at the amx level it is one chain of tile products, each over 32.
    `torch.nn.functional.linear` lets its BLAS choose the order by the number of rows and threads; this function is for
    where one row alone, in a batch, and in training must come out alike.

    Args:
        x: (..., in_features), float32, bfloat16 or float16, any strides; copied first only where its leading dimensions
            cannot be seen as one.
        weight: (out_features, in_features), of x's dtype, any strides.
        bias: (out_features,), of x's dtype, or None.

    Returns:
        y (..., out_features) in x's dtype, contiguous.

    Raises:
        TypeError: an argument that is no tensor, a dtype that is not supported, or dtypes that differ.
        ValueError: devices or shapes that do not fit.

    Differentiable any number of times, in x, weight and bias. The gradients are linear maps themselves and come from
    the same kernel: that of x depends on its row alone, those of weight and bias are sums over rows in their order.
    Under autocast all operands are cast to its dtype.

    Source: He and Thinking Machines Lab, "Defeating Nondeterminism in LLM Inference", 2025.
    """
    x, weight, bias = under_autocast(x, weight, bias)
    check_floating(x, "x")
    _check_parameter(weight, "weight", x)
    if weight.dim() != 2 or x.dim() == 0 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but x has {tuple(x.shape)}; it must be (out_features, "
            "in_features) with x's last size"
        )
    if bias is not None:
        _check_parameter(bias, "bias", x)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, but weight has {tuple(weight.shape)}; it must be (out_features,)"
            )
        bias = rows_contiguous(bias)
    if x.dim() == 2:
        return _linear(x, weight, bias)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return _linear(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])


def few_row_linear(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Linear maps of a few rows, their results side by side: every weight is read once, in the order of memory.

    A row has the same bits whatever stands beside it and on however many threads, but not those of
    `batch_invariant_linear`. For callers in this package that have looked at their operands; nothing is checked but by
    the op, and there is no gradient.

    Args:
        x: (rows, in_features), whose rows are contiguous, or contiguous with one or two dimensions more.
        weights: up to four (out_features, in_features), whose rows are contiguous.
        biases: as many (out_features,), or none.

    Returns:
        y (..., sum of out_features) in x's dtype, contiguous.
    """
    with below_autograd():
        return cast(Tensor, _ops.few_row_linear.default(x, weights, biases))


def _check_parameter(tensor: Tensor, name: str, x: Tensor) -> None:
    check_floating(tensor, name)
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, but x is {x.dtype}; their dtypes must be equal")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, but x is on {x.device}; their devices must be equal")


@torch.library.register_fake("flagattn::batch_invariant_linear")
def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("flagattn::few_row_linear")
def _few_row_linear_fake(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return x.new_empty(*x.shape[:-1], sum(weight.shape[0] for weight in weights))


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad
    dx = _linear(dy, weight.t(), None) if needs_dx else None
    dweight = _linear(dy.t(), x.t(), None) if needs_dweight else None
    dbias = _linear(dy.new_ones(1, dy.shape[0]), dy.t(), None).view(-1) if needs_dbias else None
    return dx, dweight, dbias


_linear = differentiable(_ops.batch_invariant_linear.default, _setup, _backward)
