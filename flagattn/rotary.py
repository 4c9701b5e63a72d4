"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn import _load
from flagattn._autograd import differentiable
from flagattn._checks import check_floating, check_same_as, rows_contiguous
from flagattn._errors import explained

_load.load()
_ops: Any = torch.ops.flagattn


@explained
def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    positions: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Rotate pairs of channels by the angles of each row's position.

    ``y_i = x_i cos_p - x_j sin_p`` and ``y_j = x_j cos_p + x_i sin_p`` for each pair (i, j) of the first R = 2 *
    cos.shape[-1] channels, at the row's position p; the other channels are copied. Computed in fp32, rounded once.

    Args:
        x: (batch, seqlen, heads, head_dim), or packed (total, heads, head_dim); float32, bfloat16 or float16, any
            strides; copied first if its last dimension is not contiguous.
        cos, sin: (max_position, R / 2) with R <= head_dim, or (batch, max_position, R / 2) for a table per sequence;
            float32, bfloat16 or float16, both alike, though not necessarily x's dtype.
        interleaved: pairs are channels (2i, 2i + 1), as in GPT-J; else (i, i + R / 2), as in GPT-NeoX and Llama.
        positions: int32 or int64, (batch, seqlen) or (seqlen,), or (total,) of packed x; without it row s stands at
            position s.
        inplace: write into x and return it. Only without gradient; under torch.compile with symbolic sizes x needs
            storage of its own (docs/ops/caches.md).

    Returns:
        The rotated tensor in x's shape and dtype, contiguous; x itself with `inplace`.

    Raises:
        TypeError: an argument that is no tensor, or a dtype that is not supported.
        ValueError: devices or shapes that do not fit, tables shorter than x without positions, cos or sin that
            require gradient, and with `inplace` an x whose last dimension is not contiguous.
        RuntimeError: a position outside the tables, before anything is written; `inplace` with an x that requires
            gradient.

    Differentiable in x, any number of times: the backward rotates by the negative angles.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    _check_tables(x, cos, sin, positions)
    cos, sin = rows_contiguous(cos), rows_contiguous(sin)
    if positions is not None:
        positions = positions.contiguous()
    if inplace:
        return _rotate_in_place(x, cos, sin, positions, interleaved)
    return _apply_rotary(rows_contiguous(x), cos, sin, positions, interleaved, False)


def _check_tables(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> None:
    check_floating(x, "x")
    check_floating(cos, "cos")
    check_same_as(sin, "sin", cos, "cos")
    shape, table = x.shape, cos.shape
    if len(shape) not in (3, 4):
        raise ValueError(
            f"x has shape {tuple(shape)}; it must be (batch, seqlen, heads, head_dim) or (total, heads, head_dim)"
        )
    if cos.device != x.device:
        raise ValueError(f"cos is on {cos.device}, but x is on {x.device}; their devices must be equal")
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("cos or sin requires gradient; the tables take none, so detach them")
    if len(table) != 2 and not (len(table) == 3 and len(shape) == 4 and table[0] in (1, shape[0])):
        raise ValueError(
            f"cos has shape {tuple(table)}, but x has {tuple(shape)}; it must be (max_position, rotary_dim / 2), "
            "or (batch, max_position, rotary_dim / 2) where x has a batch dimension"
        )
    if 2 * table[-1] > shape[-1]:
        raise ValueError(f"cos has shape {tuple(table)}, but x has head_dim {shape[-1]}; cos has at most half of it")
    if positions is not None:
        _check_positions(x, positions)
    elif shape[-3] > table[-2]:
        raise ValueError(f"x has {shape[-3]} rows, but cos has {table[-2]}; without positions it needs one per row")


def _check_positions(x: Tensor, positions: Tensor) -> None:
    if not isinstance(positions, Tensor):
        raise TypeError(f"positions is of type {type(positions).__name__}; it must be a tensor or None")
    if positions.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"positions is {positions.dtype}; it must be int32 or int64")
    if positions.device != x.device:
        raise ValueError(f"positions is on {positions.device}, but x is on {x.device}; their devices must be equal")
    shape, seqlen = positions.shape, x.shape[-3]
    if not (
        (len(shape) == 1 and shape[0] == seqlen)
        or (len(shape) == 2 and x.dim() == 4 and shape[1] == seqlen and shape[0] in (1, x.shape[0]))
    ):
        raise ValueError(
            f"positions has shape {tuple(shape)}, but x has {tuple(x.shape)}; it must be (batch, seqlen) or (seqlen,), "
            "or (total,) of packed x"
        )


def _rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("inplace is True, but x requires gradient; rotate it out of place, or under torch.no_grad()")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"inplace is True, but x has strides {x.stride()}; its last dimension must be contiguous")
    return write_rotated(x, cos, sin, positions, interleaved, False)


def write_rotated(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool, conjugate: bool
) -> Tensor:
    """Overwrites x, of any strides, with its rotation and returns it; other arguments as the op takes them."""
    # Inductor may let an op write into the wrong one of two views of a tensor (torch 2.13): a copy keeps views of fixed
    # sizes apart. Under symbolic sizes it loses their offsets all the same (docs/ops/caches.md).
    if torch.compiler.is_compiling() or (x.stride(-1) != 1 and x.shape[-1] > 1):
        return x.copy_(_ops.apply_rotary(rows_contiguous(x), cos, sin, positions, interleaved, conjugate))
    _ops.apply_rotary_(x, cos, sin, positions, interleaved, conjugate)
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)  # so that a graph that saved x notices
    return x


@torch.library.register_fake("flagattn::apply_rotary")
def _apply_rotary_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("flagattn::apply_rotary_")
def _apply_rotary_in_place_fake(x: Tensor, *rest: Any) -> None:
    return None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, positions, ctx.interleaved, ctx.conjugate = inputs
    ctx.save_for_backward(cos, sin, positions)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = _apply_rotary(rows_contiguous(dy), *ctx.saved_tensors, ctx.interleaved, not ctx.conjugate)
    return dx, None, None, None, None, None


_apply_rotary = differentiable(_ops.apply_rotary.default, _setup, _backward)
