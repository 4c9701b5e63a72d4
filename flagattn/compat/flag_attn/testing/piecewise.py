"""`flag_attn.testing.piecewise`: two score matrices, one softmax."""

from __future__ import annotations

from torch import Tensor

from flagattn import reference


def attention(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    dist_threshold: int,
    causal: bool,
    sm_scale: float | None = None,
    upcast: bool = False,
) -> Tensor:
    """Piecewise attention of (batch, heads, seqlen, head_dim) operands in their dtype, or in float32 with upcast."""
    rows = [(operand.float() if upcast else operand).transpose(1, 2) for operand in (q1, k1, q2, k2, v)]
    near_q, near_k, far_q, far_k, values = rows
    out, _ = reference.piecewise_attention(
        near_q, near_k, far_q, far_k, values, dist_threshold, causal=causal, softmax_scale=sm_scale
    )
    return out.transpose(1, 2).to(q1.dtype)
