"""`aquila2 ledger trace`: in which documents a text stands, and in which steps a run trained it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aquila2.heurimentor.data.segment import DocumentEntry
from aquila2.heurimentor.data.text_index import Decoder, TextIndex
from aquila2.heurimentor.ledger.locate import RunData, Scorer

INDEX = "index"


@dataclass(frozen=True)
class Exposure:
    """One time that a row came up.

    Attributes:
        epoch: Of its segment.
        sample: Global sample number.
        step: The step of the lineage that trained it; None where a decision skipped it or it is still to come.
        state: "trained", "quarantined", "skipped" or "to come".
    """

    epoch: int
    sample: int
    step: int | None
    state: str


@dataclass(frozen=True)
class Occurrence:
    """A row in which a text, or a part of it, stands.

    Attributes:
        domain, segment, row: Where it is.
        start, end: The text's positions in the row.
        document: The entry of its document, with the id of the raw record.
        exposures: Every time that the row came up, and the next one.
    """

    domain: str
    segment: int
    row: int
    start: int
    end: int
    document: DocumentEntry
    exposures: list[Exposure]

    @property
    def steps(self) -> list[int]:
        """The steps of the lineage that trained it."""
        return [exposure.step for exposure in self.exposures if exposure.step and exposure.state == "trained"]


def trace(data: RunData, text: str, decoder: Decoder) -> Iterator[Occurrence]:
    """The documents of a run that hold a text, with the steps in which they were trained.

    The first trace of a segment makes its text index, in the run's folder `index/`.

    Args:
        data: The run.
        text: A text; case, width and white space do not count. From 79 bytes on it is found through the index, a
            shorter one by reading the segments.
        decoder: The run's tokenizer.
    """
    for info, segment in zip(data.lineage.schedule.segments, data.segments, strict=True):
        index = TextIndex(data.folder / INDEX / segment.id, segment, decoder)
        for number in index.find(text):
            span = index.span(number, text)
            entry = segment.document(number)
            if span is None:
                continue
            first, end = entry.first + span.start, entry.first + span.stop
            size = data.lineage.row_tokens
            for row in range(first // size, -(-end // size)):
                start, stop = max(first - row * size, 0), min(end - row * size, size)
                yield Occurrence(
                    info.domain, info.number, row, start, stop, entry, _exposures(data, info.number, row, number)
                )


def occurrence_loss(data: RunData, occurrence: Occurrence, scorer: Scorer) -> float | None:
    """A text's mean loss under a model, None where it has no target in its row.

    Score it with the checkpoint before a step that trained it and with one after: what training did is the difference.
    """
    row = data.segments[occurrence.segment].row(occurrence.row, data.lineage.row_tokens)
    # The loss of a token stands at the position before it.
    inside = slice(max(occurrence.start - 1, 0), occurrence.end - 1)
    targets = int((row.targets[inside] >= 0).sum())
    return float(scorer.losses([row])[0, inside].sum() / targets) if targets else None


def _exposures(data: RunData, segment: int, row: int, document: int) -> list[Exposure]:
    lineage = data.lineage
    info = lineage.schedule.segments[segment]
    drawn = lineage.schedule.counts(lineage.samples)[segment]
    since = lineage.schedule.quarantined.get((segment, document))
    found = []
    for epoch in range(drawn // info.rows + 1):
        place = int(lineage.schedule.permutation(segment, epoch).inverse([row])[0])
        sample = lineage.schedule.sample_of(segment, epoch * info.rows + place)
        if sample is None:
            continue
        step = lineage.step_of(sample)
        if step is not None:
            state = "trained" if since is None or sample < since else "quarantined"
        else:
            state = "skipped" if sample < lineage.samples else "to come"
        found.append(Exposure(epoch, sample, step.number if step else None, state))
    return found
