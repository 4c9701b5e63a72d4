"""`flag_attn.testing.flash`: the whole score matrix, one softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flagattn import reference


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    dropout_p: float = 0.0,
    dropout_mask: Tensor | None = None,
    sm_scale: float | None = None,
    return_log_normalizer: bool = False,
    return_total_attention: bool = False,
    upcast: bool = False,
) -> Any:
    """Attention of (batch, heads, seqlen, head_dim) operands in their dtype, or in float32 with upcast.

    Args:
        dropout_mask: (batch, heads_q, seqlen_q, seqlen_k), bool: the weights that are kept,
            such as `recompute_mask` gives.

    Returns:
        out like q, or where a return_* argument is set (out, log normaliser, total attention), None where not asked
        for.
    """
    rows = [(operand.float() if upcast else operand).transpose(1, 2) for operand in (q, k, v)]
    out, lse = reference.attention(
        *rows, causal=causal, softmax_scale=sm_scale, dropout_p=dropout_p, dropout_keep=dropout_mask
    )
    out = out.transpose(1, 2).to(q.dtype)
    if not (return_log_normalizer or return_total_attention):
        return out
    total = None
    if return_total_attention:
        total = reference.attention_column_sums(rows[0], rows[1], lse, causal=causal, softmax_scale=sm_scale)
    return out, lse if return_log_normalizer else None, total
