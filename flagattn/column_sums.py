"""How much attention every key receives, from the LSE that attention returned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn import _load
from flagattn._checks import (
    check_dense_operands,
    padded,
    prepared,
    rows_contiguous,
    scale_or_default,
    under_autocast,
    window_bounds,
)
from flagattn._errors import explained

_load.load()
_ops: Any = torch.ops.flagattn


@explained
def attention_column_sums(
    q: Tensor, k: Tensor, lse: Tensor, causal: bool = False, softmax_scale: float | None = None
) -> Tensor:
    """Every key's probabilities summed over the query rows, as caches use it to choose what to evict.

        sums_hj = sum_i exp(softmax_scale * q_ih . k_j - lse_hi)        over the rows i that see key j

    Args:
        q: (batch, seqlen_q, heads_q, head_dim), float32, bfloat16 or float16, head_dim up to 256.
        k: (batch, seqlen_k, heads_k, head_dim), where heads_k divides heads_q.
        lse: (batch, heads_q, seqlen_q), float32, as `flash_attn_func` returns it; rows of -inf give nothing.
        causal: row i sees no key behind i + seqlen_k - seqlen_q.
        softmax_scale: defaults to 1 / sqrt(head_dim).

    Returns:
        (batch, heads_q, seqlen_k) in float32. The probabilities are those before dropout; they are never formed as a
        whole.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape.
        NotImplementedError: the operands are not on the CPU.

    Not differentiable. Source: FlagAttention's total attention (FlagOpen, 2023).
    """
    q, k = under_autocast(q, k)  # as attention's were, whose LSE this is
    seqlen_q, _, head_dim, _ = check_dense_operands(q, k, k, ("q", "k", "k"))
    _check_lse(lse, q, seqlen_q)
    left, right = window_bounds((-1, -1), causal)
    scale = scale_or_default(softmax_scale, head_dim)
    with torch.no_grad():
        q, k = prepared(q, k)
        if head_dim % 8 != 0:
            q, k = padded(q, k)
        sums: Tensor = _ops.attention_column_sums(q, k, rows_contiguous(lse), scale, left, right)
    return sums


def _check_lse(lse: Any, q: Tensor, seqlen_q: Any) -> None:
    if not isinstance(lse, Tensor):
        raise TypeError(f"lse is of type {type(lse).__name__}; it must be a tensor")
    if lse.dtype is not torch.float32:
        raise TypeError(f"lse is {str(lse.dtype).removeprefix('torch.')}; it must be float32")
    if lse.device != q.device:
        raise ValueError(f"lse is on {lse.device}, but q is on {q.device}; their devices must be equal")
    expected = (q.shape[0], q.shape[2], seqlen_q)
    if tuple(lse.shape) != expected:
        raise ValueError(f"lse has shape {tuple(lse.shape)}; it must be (batch, heads_q, seqlen_q) = {tuple(expected)}")


def _column_sums_fake(
    q: Tensor, k: Tensor, lse: Tensor, softmax_scale: float, window_left: int, window_right: int
) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], k.shape[1]), dtype=torch.float32)


_register_fake: Any = torch.library.register_fake
_register_fake("flagattn::attention_column_sums", _column_sums_fake)
