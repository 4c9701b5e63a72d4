"""linear_cross_entropy where the products are torch's and the rest is `cross_entropy`: how CUDA runs it.

Rows go in chunks whose logits, in fp32, take up to 256 MiB; nothing of a chunk outlives it. How rows are cut depends on
the shapes alone, and no value comes to the host. The function itself runs on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flagattn import _load

_load.load()
_ops: Any = torch.ops.flagattn
_mm: Any = torch.mm  # takes out_dtype on CUDA

_CHUNK_ELEMENTS = 1 << 26
_FEWEST_ROWS = 128
_NONE, _MEAN = 0, 1  # reductions, as the ops number them


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32, whatever the operands' dtypes are; two of one 16-bit dtype meet in the tensor cores."""
    if a.dtype == b.dtype == torch.float32:
        return a @ b
    if a.dtype == b.dtype and a.device.type == "cuda":
        return _mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class Rows:
    """The rows of a call: what counts of them, and how they are cut."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None, options: Any):
        self.hidden, self.weight = hidden.reshape(-1, hidden.shape[-1]), weight
        self.targets = targets.reshape(-1)
        self.token_weights = None if token_weights is None else token_weights.reshape(-1)
        self.ignore_index, self.reduction, *numbers = options
        self.row_options = (self.ignore_index, _NONE, *numbers)
        kept = self.targets != self.ignore_index
        if self.token_weights is not None:
            kept = kept & (self.token_weights != 0)
        self.kept = kept[:, None]

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def chunks(self) -> Iterator[slice]:
        step = max(_FEWEST_ROWS, _CHUNK_ELEMENTS // max(1, self.weight.shape[0]))
        return (slice(begin, min(begin + step, len(self))) for begin in range(0, len(self), step))

    def hidden_of(self, rows: slice) -> Tensor:
        """Zeros where a row is left out: what stands there may be NaN."""
        return torch.where(self.kept[rows], self.hidden[rows], 0)

    def logits_of(self, hidden: Tensor) -> Tensor:
        return product(hidden, self.weight.t())

    def targets_of(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        return self.targets[rows], None if self.token_weights is None else self.token_weights[rows]

    def divisor(self) -> Tensor | float:
        """What the sum of the losses is divided by: that of the weights that count, 1 where none does."""
        if self.reduction != _MEAN:
            return 1.0
        weights = self.kept[:, 0].double()
        if self.token_weights is not None:
            weights = weights * self.token_weights
        return torch.where(self.kept.any(), weights.sum(), 1.0)

    def gradients(
        self, rows: slice, hidden: Tensor, logits: Tensor, parts: Tensor, upstream: Any, dhidden: Any, dweight: Any
    ) -> None:
        """Turns the chunk's logits into their gradient, in place, and takes its two products.

        In bf16 the gradient is rounded for them; in fp16, where small probabilities would vanish, it stays fp32.
        """
        _ops.cross_entropy_backward_(*upstream, logits, *self.targets_of(rows), parts, *self.row_options)
        if self.weight.dtype == hidden.dtype == torch.bfloat16:
            logits = logits.bfloat16()
        if dhidden is not None:
            dhidden[rows] = product(logits, self.weight)
        if dweight is not None:
            dweight += product(logits.t(), hidden)


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None,
    ignore_index: int,
    reduction: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    takes_dhidden: bool,
    takes_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op's results, gradients of the reduced loss among them where they are taken on the way."""
    rows = Rows(hidden, weight, targets, token_weights, (ignore_index, reduction, softcap, z_loss, label_smoothing))
    loss, lse = (hidden.new_empty(len(rows), dtype=torch.float32) for _ in range(2))
    parts = hidden.new_empty((2, len(rows)), dtype=torch.float32)
    dhidden = hidden.new_empty(rows.hidden.shape if takes_dhidden else (0,), dtype=torch.float32)
    dweight = hidden.new_zeros(weight.shape if takes_dweight else (0,), dtype=torch.float32)
    divisor = rows.divisor()
    for chunk in rows.chunks():
        chunk_hidden = rows.hidden_of(chunk)
        logits = rows.logits_of(chunk_hidden)
        results = _ops.cross_entropy(logits, *rows.targets_of(chunk), *rows.row_options)
        loss[chunk], lse[chunk], parts[:, chunk] = results
        if takes_dhidden or takes_dweight:
            share = (torch.ones_like(results[0], dtype=torch.float64) / divisor).float()
            wanted = (dhidden if takes_dhidden else None, dweight if takes_dweight else None)
            rows.gradients(chunk, chunk_hidden, logits, results[2], (share, None), *wanted)
        del logits
    if takes_dhidden:
        dhidden = dhidden.view(hidden.shape)
    if reduction == _NONE:
        return loss.view(targets.shape), lse.view(targets.shape), parts, dhidden, dweight
    return (loss.double().sum() / divisor).float(), lse.view(targets.shape), parts, dhidden, dweight


def backward(
    dloss: Tensor | None,
    dlse: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None,
    lse_parts: Tensor,
    ignore_index: int,
    reduction: int,
    softcap: float,
    z_loss: float,
    label_smoothing: float,
    needs_dhidden: bool,
    needs_dweight: bool,
) -> tuple[Tensor, Tensor]:
    """From logits that are made again; the weight's gradient is summed in fp32 and rounded once."""
    rows = Rows(hidden, weight, targets, token_weights, (ignore_index, reduction, softcap, z_loss, label_smoothing))
    dhidden = hidden.new_empty(rows.hidden.shape if needs_dhidden else (0,))
    dweight = weight.new_zeros(weight.shape if needs_dweight else (0,), dtype=torch.float32)
    if dloss is not None:
        dloss = (dloss.double() / rows.divisor()).float().reshape(-1).expand(len(rows)).contiguous()
    dlse = None if dlse is None else dlse.reshape(-1)
    for chunk in rows.chunks():
        chunk_hidden = rows.hidden_of(chunk)
        upstream = tuple(None if d is None else d[chunk] for d in (dloss, dlse))
        wanted = (dhidden if needs_dhidden else None, dweight if needs_dweight else None)
        parts = lse_parts[:, chunk].contiguous()
        rows.gradients(chunk, chunk_hidden, rows.logits_of(chunk_hidden), parts, upstream, *wanted)
    return dhidden.view(hidden.shape) if needs_dhidden else dhidden, dweight.to(weight.dtype)


torch.library.impl("flagattn::linear_cross_entropy", "CUDA", forward)
torch.library.impl("flagattn::linear_cross_entropy_backward", "CUDA", backward)
