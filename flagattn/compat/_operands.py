"""What the packages that are mirrored allow and this library's own functions do not: brought into the latter's form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def integer(value: Any) -> Any:
    """Maximal lengths come as integers or as tensors of one element."""
    return int(value.item()) if isinstance(value, Tensor) else value


def window_of(window_size: Any) -> tuple[int, int]:
    """(left, right) from a pair of integers or a tensor of two; None and negative bounds are unbounded."""
    if window_size is None:
        return -1, -1
    left, right = (-1 if bound is None else int(bound) for bound in window_size)
    return max(left, -1), max(right, -1)


def detached(slopes: Any) -> Any:
    """ALiBi slopes that require a gradient silently get none in FlashAttention-2; here they would be refused."""
    return slopes.detach() if isinstance(slopes, Tensor) else slopes


def lse_for_fa2(lse: Tensor) -> Tensor:
    """FlashAttention-2 gives +inf for rows that see no key, where this library gives -inf."""
    return lse.masked_fill(torch.isneginf(lse), math.inf)


def lse_from_fa2(lse: Tensor) -> Tensor:
    return lse.masked_fill(torch.isposinf(lse), -math.inf)


def written_to(out: Tensor | None, result: Tensor) -> Tensor:
    """`result`, in `out` if the caller gave one; copy_ alone would fill a larger one by broadcasting."""
    if out is None:
        return result
    if out.shape != result.shape:
        raise ValueError(
            f"out has shape {tuple(out.shape)}, but the result has {tuple(result.shape)}; their shapes must be equal"
        )
    return out.copy_(result)


# ---- sequences of which a part is used, and pages ----


def lengths_of(cu_seqlens: Tensor) -> Tensor:
    return cu_seqlens[1:] - cu_seqlens[:-1]


def cumulative(lengths: Tensor) -> Tensor:
    """(batch + 1,) int32 prefix sums of (batch,) lengths."""
    cu_seqlens = lengths.new_zeros(lengths.shape[0] + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return cu_seqlens


def rows_of_sequences(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(sequence, row within it) of every row, for sequences of these lengths laid one behind the other."""
    sequence = torch.repeat_interleave(torch.arange(lengths.shape[0], device=lengths.device), lengths)
    begin = torch.cumsum(lengths, 0) - lengths
    row = torch.arange(sequence.shape[0], device=lengths.device) - begin[sequence]
    return sequence, row + starts[sequence]


def used_rows(
    cu_seqlens: Tensor, used: Tensor | None, leftpad: Tensor | None = None, *, side: str = "k"
) -> tuple[Tensor, Tensor]:
    """Where rows leftpad[b] to used[b] - 1 of each packed sequence lie, and the cumulative lengths they have gathered.

    used[b] is all rows by default, and at most that; leftpad[b] is none. `side` ends the arguments' names.
    """
    lengths = lengths_of(cu_seqlens)
    if used is not None:
        used = used.to(torch.int32)
        _refuse_outside(used, used, f"seqused_{side}", "its rows")
    used = lengths if used is None else torch.minimum(used, lengths)
    starts = cu_seqlens[:-1].long()
    if leftpad is not None:
        _refuse_outside(leftpad, used, f"leftpad_{side}", "the rows in use")
        starts, used = starts + leftpad, used - leftpad.to(torch.int32)
    _, index = rows_of_sequences(starts, used.long())
    return index, cumulative(used)


def _refuse_outside(values: Tensor, most: Tensor, name: str, what: str) -> None:
    outside = ((values < 0) | (values > most)).nonzero()
    if outside.numel():
        at = int(outside[0, 0])
        raise RuntimeError(f"{name}[{at}] is {int(values[at])}; it must lie between 0 and {what}")
