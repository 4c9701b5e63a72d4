"""What the decisions in force mean for the engine: peak learning rate, batch size, stage."""

from __future__ import annotations

from dataclasses import dataclass

from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.training.optim import batch_size, learning_rate
from aquila2.training.options import Options


@dataclass(frozen=True)
class Settings:
    """The engine's part of a run's state, recomputed from the ledger wherever it is needed.

    Attributes:
        peak: The learning rate that the schedule's shape is multiplied with.
        batch: Samples of a step; None follows the configuration, with its ramp.
        stage: The name of the stage, for reports.
    """

    peak: float
    batch: int | None = None
    stage: str = ""

    @classmethod
    def of(cls, options: Options, lineage: Lineage) -> Settings:
        """The newest applied decision of each kind, else what the configuration says."""
        last = {line.record["what"]: line.record["value"] for line, _ in lineage.applied}
        peak = float(last.get("rate", options.optimizer.lr))
        return cls(peak, last.get("batch"), str(last.get("stage", "")))

    def count(self, options: Options, samples: int) -> int:
        """Samples of the step after `samples` samples."""
        wanted = batch_size(samples, options.batch) if self.batch is None else self.batch
        return min(wanted, options.train.samples - samples)

    def rate(self, options: Options, samples: int) -> float:
        """The learning rate of the step that brings the count of samples to `samples`."""
        return learning_rate(samples, options.train.samples, self.peak, options.schedule)
