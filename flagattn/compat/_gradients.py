"""The backward pass by itself, from an output and an LSE that may come from elsewhere (ring attention merges them)."""

from __future__ import annotations

import torch
from torch import Tensor

from flagattn._attention_ops import _attention_backward_op
from flagattn._checks import padded, rows_contiguous, scale_or_default
from flagattn._score_options import score_options
from flagattn.compat._operands import detached


def attention_gradients(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    packing: tuple[Tensor, Tensor, int, int] | None,
    softmax_scale: float | None,
    window: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    rng_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, delta) where delta is the row sums of dout * out in fp32, laid out like lse."""
    scale = scale_or_default(softmax_scale, q.shape[-1])
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    delta = (dout.float() * out.float()).sum(-1).transpose(-1, -2)
    dout, q, k, v, out = (rows_contiguous(operand) for operand in (dout, q, k, v, out))
    if head_dim % 8 != 0 or head_dim_v % 8 != 0:
        dout, q, k, v, out = padded(dout, q, k, v, out)
    batch = q.shape[0] if packing is None else packing[0].shape[0] - 1
    _, _, slopes, *_ = score_options(q, batch, 0.0, detached(alibi_slopes))
    options = (None, None, slopes, None, rng_state if dropout_p > 0.0 else None, dropout_p, False)
    lengths = packing if packing is not None else (None, None, q.shape[1], k.shape[1])
    with torch.no_grad():
        dq, dk, dv, *_ = _attention_backward_op(
            dout, None, q, k, v, out, lse.contiguous(), *lengths, scale, *window, softcap, *options
        )
    return dq[..., :head_dim], dk[..., :head_dim], dv[..., :head_dim_v], delta
