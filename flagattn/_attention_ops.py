"""The attention ops as torch sees them: shapes for tracing, gradients, and the shortest way to call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn import _load
from flagattn._autograd import differentiable, without_double_backward
from flagattn._checks import rows_contiguous

_load.load()
_ops: Any = torch.ops.flagattn


# ---- for tracing ----


def outputs_like(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    *rows, heads, _ = q.shape
    out = q.new_empty((*rows, heads, v.shape[-1]))
    lse = q.new_empty((*rows[:-1], heads, rows[-1]), dtype=torch.float32)
    return out, lse


def _gradients_like(*operands: Tensor) -> tuple[Tensor, ...]:
    return tuple(operand.new_empty(operand.shape) for operand in operands)


def _like_or_nothing(operand: Tensor | None, q: Tensor) -> Tensor:
    return q.new_empty((0,), dtype=torch.float32) if operand is None else operand.new_empty(operand.shape)


def _attention_forward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return outputs_like(q, v)


# The backward's fakes spell their arguments out: those behind softcap have defaults, which a caller may leave away.
def _attention_backward_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    softmax_scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    rng_state: Tensor | None = None,
    dropout_p: float = 0.0,
    needs_dbias: bool = False,
) -> tuple[Tensor, ...]:
    return (*_gradients_like(q, k, v), _like_or_nothing(bias if needs_dbias else None, q), _like_or_nothing(sinks, q))


def _piecewise_forward_fake(
    q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return outputs_like(q1, v)


def _piecewise_backward_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    dist_threshold: Any,
    softmax_scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
    sinks: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return (*_gradients_like(q1, k1, q2, k2, v), _like_or_nothing(sinks, q1))


_register_fake: Any = torch.library.register_fake
_register_fake("flagattn::attention_forward", _attention_forward_fake)
_register_fake("flagattn::attention_backward", _attention_backward_fake)
_register_fake("flagattn::piecewise_forward", _piecewise_forward_fake)
_register_fake("flagattn::piecewise_backward", _piecewise_backward_fake)

# ---- gradients ----

_attention_backward_op = without_double_backward(_ops.attention_backward.default)
_piecewise_backward_op = without_double_backward(_ops.piecewise_backward.default)


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *scalars, bias, keep, alibi_slopes, sinks, rng_state, dropout_p = inputs
    ctx.scalars, ctx.dropout_p = scalars, dropout_p
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, bias, keep, alibi_slopes, sinks, rng_state)
    # An output nobody uses has no gradient, and none is made up: the LSE's reaches the kernel only where it exists.
    ctx.set_materialize_grads(False)


def _piecewise_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q1, k1, q2, k2, v, cu_seqlens_q, cu_seqlens_k, *ctx.scalars, sinks = inputs
    ctx.save_for_backward(q1, k1, q2, k2, v, *output, cu_seqlens_q, cu_seqlens_k, sinks)
    ctx.set_materialize_grads(False)


def _output_gradients(dout: Tensor | None, dlse: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor | None]:
    dout = torch.zeros_like(out) if dout is None else rows_contiguous(dout)
    return dout, None if dlse is None else rows_contiguous(dlse)


def _attention_backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None and dlse is None:
        return (None,) * 17
    *saved, bias, keep, alibi_slopes, sinks, rng_state = ctx.saved_tensors
    dout, dlse = _output_gradients(dout, dlse, saved[3])
    options = (bias, keep, alibi_slopes, sinks, rng_state, ctx.dropout_p)
    needs_dbias = bias is not None and ctx.needs_input_grad[11]
    dq, dk, dv, dbias, dsinks = _attention_backward_op(dout, dlse, *saved, *ctx.scalars, *options, needs_dbias)
    joined = (dbias if needs_dbias else None, None, None, None if sinks is None else dsinks, None, None)
    return dq, dk, dv, *(None,) * 8, *joined


def _piecewise_backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None and dlse is None:
        return (None,) * 15
    *saved, sinks = ctx.saved_tensors
    dout, dlse = _output_gradients(dout, dlse, saved[5])
    *gradients, dsinks = _piecewise_backward_op(dout, dlse, *saved, *ctx.scalars, sinks)
    return *gradients, *(None,) * 9, None if sinks is None else dsinks


# (q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, window_left, window_right, softcap,
#  bias, keep, alibi_slopes, sinks, rng_state, dropout_p)
attention_op = differentiable(_ops.attention_forward.default, _attention_setup, _attention_backward)
# (q1, k1, q2, k2, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dist_threshold, softmax_scale,
#  window_left, window_right, softcap, sinks)
piecewise_op = differentiable(_ops.piecewise_forward.default, _piecewise_setup, _piecewise_backward)
