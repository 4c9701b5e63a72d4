"""Attention with what FlagAttention returns beside it, as `flag_attn.flash.attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import flagattn
from flagattn.compat._dropout import next_rng_state
from flagattn.compat.flag_attn.total import total_attention

_native: Any = flagattn  # its results depend on flags


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    sm_scale: float | None = None,
    dropout_p: float = 0.0,
    return_log_normalizer: bool = False,
    return_total_attention: bool = False,
    return_seed_offset: bool = False,
) -> Any:
    """softmax(sm_scale q k^T + mask) v, causal aligned at the last query and the last key.

    Args:
        q: (batch, heads_q, seqlen_q, head_dim).
        k, v: (batch, heads_k, seqlen_k, head_dim), where heads_k divides heads_q.

    Returns:
        out like q. Where any of the return_* arguments is set, always the five (out, log normaliser (batch, heads_q,
        seqlen_q) fp32, total attention (batch, heads_q, seqlen_k) fp32, seed, offset), None where not asked for. The
        total attention of a key is the sum over the queries of its probabilities before dropout; it has no gradient.
        The integers seed and offset are the rng_state of flagattn.reference.dropout.dropout_keep_mask; without dropout
        they are None too.
    """
    rng_state = next_rng_state(dropout_p, q.device) if return_seed_offset and dropout_p > 0.0 else None
    heads_first = (operand.transpose(1, 2) for operand in (q, k, v))
    out, lse = _native.flash_attn_func(*heads_first, dropout_p, sm_scale, causal, return_lse=True)
    out = out.transpose(1, 2)
    if not (return_log_normalizer or return_total_attention or return_seed_offset):
        return out
    total = None
    if return_total_attention:
        total = total_attention(q, k, lse, causal, sm_scale)
    seed, offset = (None, None) if rng_state is None else rng_state.tolist()
    return out, lse if return_log_normalizer else None, total, seed, offset


attention = flash_attention  # its name in its own module there
