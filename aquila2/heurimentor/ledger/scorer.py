"""The loss of a model at every token of rows, and the checkpoint of a run that stands nearest to a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import flagattn
from aquila2.checkpoint import from_pretrained
from aquila2.heurimentor.data.segment import Row
from aquila2.heurimentor.ledger.locate import RunData
from aquila2.model import IGNORE_INDEX, Aquila2ForCausalLM
from aquila2.training.checkpoints import checkpoint_fault, head_of, list_checkpoints, step_of
from aquila2.training.data import pack

ROWS_AT_ONCE = 4


class ModelScorer:
    """Scores rows with a model; no document sees another one.

    Args:
        model: Any Aquila2.
        rows: How many it takes at once.
    """

    def __init__(self, model: Aquila2ForCausalLM, rows: int = ROWS_AT_ONCE) -> None:
        self.model, self.rows = model.eval(), rows

    @torch.no_grad()
    def losses(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        """(rows, S) cross-entropies in nats, 0 where there is no target."""
        device = next(self.model.parameters()).device
        found = []
        for first in range(0, len(rows), self.rows):
            batch = pack([("", row) for row in rows[first : first + self.rows]]).to(device)
            logits = self.model(batch.input_ids, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen).logits
            losses = flagattn.cross_entropy(logits.float(), batch.targets, ignore_index=IGNORE_INDEX, reduction="none")
            found.append(cast(Tensor, losses).view_as(batch.targets).cpu().numpy().astype(np.float64))
        return np.concatenate(found)


def scorer_of(checkpoint: Path) -> ModelScorer:
    """The scorer of a checkpoint's model."""
    return ModelScorer(from_pretrained(checkpoint))


def checkpoint_before(data: RunData, step: int, report: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of the lineage that was made before a step was taken; None where there is none."""
    return next(_whole(data, [path for path in _newest_first(data) if step_of(path) < step], report), None)


def checkpoint_after(data: RunData, step: int, report: Callable[[str], None]) -> Path | None:
    """The oldest whole checkpoint of the lineage that was made after a step was taken; None where there is none."""
    return next(_whole(data, [path for path in _newest_first(data)[::-1] if step_of(path) >= step], report), None)


def _newest_first(data: RunData) -> list[Path]:
    return list_checkpoints(data.folder / "checkpoints")


def _whole(data: RunData, paths: Sequence[Path], report: Callable[[str], None]) -> Iterator[Path]:
    for path in paths:
        head = head_of(path)
        fault = checkpoint_fault(path) or (data.lineage.objection(head) if head else "it names no place in the ledger")
        if fault is None:
            yield path
        else:
            report(f"skipping {path}: {fault}")
