"""Gated activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn import _load
from flagattn._autograd import differentiable, without_double_backward
from flagattn._checks import check_floating, check_same_as, promoted_under_autocast, rows_contiguous
from flagattn._errors import explained

_load.load()
_ops: Any = torch.ops.flagattn


@explained
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Gate one tensor by the SiLU of another, in one pass.

    ``y = silu(gate) * up`` with ``silu(z) = z / (1 + exp(-z))``, computed in fp32 and rounded once.

    Args:
        gate: (..., cols), float32, bfloat16 or float16, any strides; copied first if its last dimension is not
            contiguous. The two halves of one projection need no copy.
        up: like gate in shape and dtype. Under autocast the narrower of the two is widened to the other's dtype.

    Returns:
        y in gate's shape and dtype, contiguous.

    Raises:
        TypeError: an argument that is no tensor, or a dtype that is not supported.
        ValueError: devices or shapes that differ, or tensors without dimensions.

    Differentiable once, in gate and up; the backward recomputes the sigmoid and keeps nothing but its operands.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = promoted_under_autocast(gate, up)
    check_floating(gate, "gate")
    check_same_as(up, "up", gate, "gate")
    if gate.dim() == 0:
        raise ValueError("gate has no dimension; it must have at least one")
    return _swiglu(rows_contiguous(gate), rows_contiguous(up))


@torch.library.register_fake("flagattn::swiglu")
def _swiglu_fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.register_fake("flagattn::swiglu_backward")
def _swiglu_backward_fake(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


_backward_op = without_double_backward(_ops.swiglu_backward.default)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = _backward_op(rows_contiguous(dy), *ctx.saved_tensors)
    return dgate, dup


_swiglu = differentiable(_ops.swiglu.default, _setup, _backward)
