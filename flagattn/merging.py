"""Joining attention over parts of the keys into attention over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flagattn._autograd import are_modes_active, are_transforms_active
from flagattn._checks import check_floating
from flagattn._errors import explained


@explained
def merge_attention_states(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The (out, lse) of attention over the union of disjoint key sets, from the (out, lse) over each of them.

        lse = log sum_p exp(lse_p)        out = sum_p exp(lse_p - lse) out_p

    Args:
        outs: tensors of one shape, (batch, seqlen, heads, head_dim) or packed (total, heads, head_dim); float32,
            bfloat16 or float16, each in its own dtype.
        lses: as many tensors, (batch, heads, seqlen) or (heads, total), natural log; -inf for empty parts. float32 as
            attention returns them, or like outs.

    Returns:
        out in the dtype of the first of outs, merged in fp32 and rounded once, and lse in float32. Where all parts are
        empty they are 0 and -inf. Gradients come in the dtype of what they belong to.

    Raises:
        TypeError: an argument that is no tensor, or a dtype that is not supported.
        ValueError: no parts, a different number of outs and lses, or shapes or devices that do not belong together.

    Differentiable in outs and lses; an LSE of -inf takes no gradient. See Rabe and Staats, "Self-attention does not
    need O(n^2) memory" (2021).
    """
    outs, lses = list(outs), list(lses)
    _check(outs, lses)
    stacked = torch.stack(lses).float()
    empty = torch.isneginf(stacked)
    if _has_none(empty):
        return _of_seen_parts(outs, stacked)
    all_empty = empty.all(dim=0)
    # Rows that are empty in every part are computed as if their LSEs were 0 and then overwritten: nothing becomes NaN.
    shifted = stacked.masked_fill(all_empty, 0.0)
    lse = torch.logsumexp(shifted, dim=0)
    weights = torch.exp(shifted - lse).masked_fill(empty, 0.0).transpose(-1, -2).unsqueeze(-1)
    # A part that saw no key has no say, whatever its rows hold.
    unseen = empty.transpose(-1, -2).unsqueeze(-1)
    seen = [out.float().masked_fill(hidden, 0.0) for out, hidden in zip(outs, unseen.unbind())]
    return _weighted(seen, weights).to(outs[0].dtype), lse.masked_fill(all_empty, -math.inf)


def _of_seen_parts(outs: list[Tensor], lses: Tensor) -> tuple[Tensor, Tensor]:
    """The same, to the bit, where every row saw a key in every part."""
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - lse).transpose(-1, -2).unsqueeze(-1)
    return _weighted([out.float() for out in outs], weights).to(outs[0].dtype), lse


def _weighted(outs: list[Tensor], weights: Tensor) -> Tensor:
    first, *others = weights.unbind()
    merged = first * outs[0]
    for weight, out in zip(others, outs[1:]):
        merged = torch.addcmul(merged, weight, out)
    return merged


def _has_none(flags: Tensor) -> bool:
    """Whether no flag is set, where that is known at once: not on another device, which the host would wait for.

    Nor while calls are recorded, since what is recorded here serves other flags too.
    """
    return (
        type(flags) is Tensor
        and flags.is_cpu
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not are_transforms_active()
        and not are_modes_active()
        and not flags.any()
    )


def _check(outs: list[Tensor], lses: list[Tensor]) -> None:
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(
            f"outs has {len(outs)} parts and lses {len(lses)}; both must have the same number, at least one"
        )
    for name, parts in (("outs", outs), ("lses", lses)):
        for index, part in enumerate(parts):
            if not isinstance(part, Tensor):
                raise TypeError(f"{name}[{index}] is of type {type(part).__name__}; it must be a tensor")
            check_floating(part, f"{name}[{index}]")
            if part.device != parts[0].device:
                raise ValueError(
                    f"{name}[{index}] is on {part.device}, but {name}[0] is on {parts[0].device}; "
                    "their devices must be equal"
                )
            if part.shape != parts[0].shape:
                raise ValueError(
                    f"{name}[{index}] has shape {tuple(part.shape)}, but {name}[0] has {tuple(parts[0].shape)}; "
                    "their shapes must be equal"
                )
    shape = outs[0].shape
    if len(shape) not in (3, 4):
        raise ValueError(
            f"outs[0] has shape {tuple(shape)}; it must be (batch, seqlen, heads, head_dim) or (total, heads, head_dim)"
        )
    expected = (*shape[:-3], shape[-2], shape[-3])
    if tuple(lses[0].shape) != expected:
        raise ValueError(f"lses[0] has shape {tuple(lses[0].shape)}; with outs of {tuple(shape)} it must be {expected}")
