"""What may join the scores of attention, as the ops take it: masks, biases, ALiBi, sinks and dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn._checks import DTYPES, rows_contiguous

# (bias, keep, alibi_slopes, sinks, rng_state, dropout_p), the ops' last arguments
ScoreOptions = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, float]
NO_OPTIONS: ScoreOptions = (None, None, None, None, None, 0.0)

SCORES = "(batch, heads_q, seqlen_q, seqlen_k)"


def score_options(
    q: Tensor,
    batch: Any,
    dropout_p: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> ScoreOptions:
    """Checked and in the ops' dtypes; dropout draws its place in the random stream here."""
    if dropout_p == 0.0 and alibi_slopes is None and sinks is None and bias is None and keep is None:
        return NO_OPTIONS
    if alibi_slopes is not None:
        alibi_slopes = _checked_slopes(alibi_slopes, q, batch)
    if sinks is not None:
        sinks = checked_sinks(sinks, q)
    return bias, keep, alibi_slopes, sinks, _rng_state(dropout_p, q.device), float(dropout_p)


def checked_sinks(sinks: Any, q: Tensor) -> Tensor:
    """One sink per query head, in float32; their gradient comes back in their own dtype."""
    _check_floating(sinks, "sinks", q)
    if sinks.dim() != 1 or sinks.shape[0] != q.shape[-2]:
        raise ValueError(f"sinks has shape {tuple(sinks.shape)}; it must be (heads_q,) = ({q.shape[-2]},)")
    return rows_contiguous(sinks.float())


def checked_mask(attn_mask: Any, q: Tensor, seqlen_k: Any) -> tuple[Tensor | None, Tensor | None]:
    """torch's attn_mask as (bias, keep), one of them None, with four dimensions that are 1 or the scores'."""
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask is of type {type(attn_mask).__name__}; it must be a tensor or None")
    if attn_mask.dtype is not torch.bool and attn_mask.dtype not in DTYPES:
        raise TypeError(f"attn_mask is {_name(attn_mask)}; it must be bool, float32, bfloat16 or float16")
    if attn_mask.device != q.device:
        raise ValueError(f"attn_mask is on {attn_mask.device}, but query is on {q.device}; they must be on one device")
    scores = (q.shape[0], q.shape[2], q.shape[1], seqlen_k)
    shape = tuple(attn_mask.shape)
    if len(shape) > 4 or any(size not in (1, whole) for size, whole in zip(shape[::-1], scores[::-1])):
        raise ValueError(f"attn_mask has shape {shape}; it must broadcast to {SCORES} = {tuple(scores)}")
    whole = attn_mask if len(shape) == 4 else attn_mask.view((1,) * (4 - len(shape)) + shape)
    if whole.shape[-1] != 1:
        whole = rows_contiguous(whole)
    return (None, whole) if whole.dtype is torch.bool else (whole, None)


def _checked_slopes(slopes: Any, q: Tensor, batch: Any) -> Tensor:
    _check_floating(slopes, "alibi_slopes", q)
    heads = q.shape[-2]
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes has shape {tuple(slopes.shape)}; it must be (heads_q,) or (batch, heads_q) of {batch} "
            f"sequences and {heads} heads"
        )
    if slopes.requires_grad and torch.is_grad_enabled():
        raise ValueError("alibi_slopes requires a gradient, but attention is not differentiated in it; detach it")
    return rows_contiguous(slopes.detach().float())


def _rng_state(dropout_p: Any, device: torch.device) -> Tensor | None:
    """(seed, offset) from torch's generator, as a tensor: so torch.compile and checkpointing repeat it."""
    if isinstance(dropout_p, Tensor) or not isinstance(dropout_p, (int, float)):
        raise TypeError(f"dropout_p is of type {type(dropout_p).__name__}; it must be a float")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; it must be from 0 to 1")
    return torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=device) if dropout_p > 0.0 else None


def _check_floating(tensor: Any, name: str, q: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is of type {type(tensor).__name__}; it must be a tensor or None")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} is {_name(tensor)}; it must be float32, bfloat16 or float16")
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}, but q is on {q.device}; their devices must be equal")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
