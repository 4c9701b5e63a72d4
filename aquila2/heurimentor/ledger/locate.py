"""`aquila2 ledger locate`: the documents of a step, and which of them look wrong to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aquila2.heurimentor.data.segment import DocumentEntry, Row, Segment
from aquila2.heurimentor.ledger.audit import open_segments
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage, Step

F64 = npt.NDArray[np.float64]

# Targets at which a document's mean loss counts half: few tokens tell little.
HALF_TRUST = 16


@dataclass(frozen=True)
class Located:
    """The part of a document that a step trained.

    Attributes:
        sample: Global sample number of its row.
        domain: Its domain.
        segment, row: Where it is.
        start, end: Its positions in the row.
        document: Its entry, with the id of the raw record.
        quarantined: A decision keeps it from counting.
    """

    sample: int
    domain: str
    segment: int
    row: int
    start: int
    end: int
    document: DocumentEntry
    quarantined: bool


@dataclass(frozen=True)
class Suspect:
    """A document of a step with its mean loss, and how far that is from its domain's middle in units of its spread."""

    located: Located
    loss: float
    score: float


class Scorer(Protocol):
    """What `suspects` needs of a model: the loss at every position of rows, 0 where there is no target."""

    def losses(self, rows: Sequence[Row]) -> F64:
        """(rows, S) cross-entropies in nats."""


class RunData:
    """A run's ledger and segments, for reading.

    Args:
        run: The run's folder. A trainer may be writing to it.

    Raises:
        Tampered, BadRecord, NotVerified: The ledger or a segment is not what was written.
        FileNotFoundError: There is no ledger.
    """

    def __init__(self, run: Path | str) -> None:
        self.folder = Path(run)
        if not (self.folder / NAME).is_file():
            raise FileNotFoundError(f"{self.folder} has no {NAME}")
        self.lines = scan(self.folder / NAME).lines
        self.lineage = Lineage.of(self.lines)
        self.segments: list[Segment] = open_segments(self.folder, self.lineage)

    def step(self, number: int) -> Step:
        """A step of the lineage.

        Raises:
            ValueError: The lineage has no such step.
        """
        if not 1 <= number <= self.lineage.step:
            raise ValueError(f"step must lie in 1 .. {self.lineage.step}, got {number}")
        return self.lineage.steps[number - 1]

    def rows(self, number: int) -> list[Row]:
        """The rows of a step, in the order of samples."""
        step = self.step(number)
        plan = self.lineage.schedule.draws(step.first, step.samples)
        pairs = zip(plan.segments.tolist(), plan.rows.tolist(), strict=True)
        return [self.segments[segment].row(row, self.lineage.row_tokens) for segment, row in pairs]

    def locate(self, number: int) -> list[Located]:
        """The documents of a step, in the order of samples and positions."""
        step = self.step(number)
        plan = self.lineage.schedule.draws(step.first, step.samples)
        located = []
        for sample, segment, row in zip(
            *(part.tolist() for part in (plan.samples, plan.segments, plan.rows)), strict=True
        ):
            domain = self.lineage.schedule.segments[segment].domain
            for piece in self.segments[segment].row(row, self.lineage.row_tokens).pieces:
                if piece.document < 0:
                    continue
                entry = self.segments[segment].document(piece.document)
                since = self.lineage.schedule.quarantined.get((segment, piece.document))
                hidden = since is not None and since <= sample
                located.append(Located(sample, domain, segment, row, piece.start, piece.end, entry, hidden))
        return located


def suspects(data: RunData, number: int, scorer: Scorer) -> list[Suspect]:
    """The documents of a step, the most suspicious first.

    A document's score is |mean loss - middle| / spread, middle and spread being median and scaled median deviation of
    its domain in the step, times sqrt(n / (n + 16)) for n targets. Both ends are suspicious: noise is far above the
    middle, and text repeated or leaked far below.

    Args:
        data: The run.
        number: The step.
        scorer: The model before that step, as the nearest checkpoint has it.
    """
    step, rows, located = data.step(number), data.rows(number), data.locate(number)
    losses = scorer.losses(rows)
    counted: list[tuple[Located, float, int]] = []
    for part in located:
        inside = slice(part.start, part.end)
        index = part.sample - step.first
        targets = int((rows[index].targets[inside] >= 0).sum())
        if targets and not part.quarantined:
            counted.append((part, float(losses[index, inside].sum() / targets), targets))
    everyone = np.array([loss for _, loss, _ in counted])
    found = []
    for part, loss, targets in counted:
        peers = np.array([other for peer, other, _ in counted if peer.domain == part.domain])
        # A few peers give no spread; then all documents of the step are the measure.
        middle, spread = _middle(peers if len(peers) >= 8 else everyone)
        distance = abs(loss - middle) / spread if np.isfinite(loss) else np.inf
        found.append(Suspect(part, loss, float(distance * np.sqrt(targets / (targets + HALF_TRUST)))))
    return sorted(found, key=lambda suspect: -suspect.score)


def _middle(losses: F64) -> tuple[float, float]:
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return 0.0, 1.0
    middle = float(np.median(finite))
    return middle, max(1.4826 * float(np.median(np.abs(finite - middle))), 0.05 * abs(middle), 1e-6)
