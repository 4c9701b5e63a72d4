"""The batches of a step on one rank: rows of segments that the ledger's plan names, with the ids of their documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aquila2.heurimentor.data.schedule import Draws, OpenSegment
from aquila2.heurimentor.data.segment import DocumentEntry, Row, Segment
from aquila2.heurimentor.ledger.book import row_digest
from aquila2.heurimentor.verified import NotVerified
from aquila2.training.data import Batch, pack


@dataclass(frozen=True)
class Part:
    """What a rank does of a step: its micro-batches, and the sum of the digests of their rows."""

    batches: list[Batch]
    digest: int


class BatchStream:
    """Reads the rows that draws name. It has no state: what stands where follows from the ledger alone.

    Args:
        run: The run's folder, which segments' folders are relative to.
        row_tokens: Tokens of a row.
        tokenizer: What the segments were made with (see `aquila2.training.data.tokenizer_id`).
    """

    def __init__(self, run: Path, row_tokens: int, tokenizer: str) -> None:
        self.run, self.row_tokens, self.tokenizer = run, row_tokens, tokenizer
        self._segments: list[Segment] = []
        self._domains: list[str] = []

    def open(self, segments: Sequence[OpenSegment]) -> None:
        """Opens the segments of a run that are not open yet; draws name them by their place.

        Raises:
            NotVerified: One is not there, is not the one that was decided on, or has another vocabulary.
        """
        for info in segments[len(self._segments) :]:
            segment = Segment(self.run / info.folder)
            if (segment.id, segment.num_rows(self.row_tokens)) != (info.id, info.rows):
                raise NotVerified(f"{segment.folder} holds the segment {segment.id}, the run decided to use {info.id}")
            if segment.tokenizer != self.tokenizer:
                raise NotVerified(f"{segment.folder} was made with another tokenizer than the run's")
            self._segments.append(segment)
            self._domains.append(info.domain)

    def part(
        self, draws: Draws, places: range, micro: int, quarantined: Mapping[tuple[int, int], int] | None = None
    ) -> Part:
        """The batches of a step's samples that fall to a rank.

        Args:
            draws: The step's plan.
            places: The rank's places in it (see `aquila2.heurimentor.ledger.book.share_out`).
            micro: Rows of a batch.
            quarantined: Documents, by segment and number, whose targets do not count from a sample on.
        """
        batches, digest = [], 0
        for first in range(places.start, places.stop, micro):
            rows = []
            for place in range(first, min(first + micro, places.stop)):
                sample, number, row = self._row(draws, place)
                digest += row_digest(sample, row.ids)
                if quarantined:
                    _mute(row, sample, number, quarantined)
                rows.append((self._domains[number], row))
            batches.append(pack(rows))
        return Part(batches, digest % (1 << 64))

    def documents(self, draws: Draws, places: range) -> list[tuple[str, DocumentEntry]]:
        """The documents in the rows at `places` of a plan, each with its domain, each once, in their order."""
        found: dict[tuple[int, int], tuple[str, DocumentEntry]] = {}
        for place in places:
            _, number, row = self._row(draws, place)
            for piece in row.pieces:
                if piece.document >= 0:
                    entry = self._segments[number].document(piece.document)
                    found.setdefault((number, piece.document), (self._domains[number], entry))
        return list(found.values())

    def _row(self, draws: Draws, place: int) -> tuple[int, int, Row]:
        sample, number, row = (int(column[place]) for column in (draws.samples, draws.segments, draws.rows))
        return sample, number, self._segments[number].row(row, self.row_tokens)


def _mute(row: Row, sample: int, number: int, quarantined: Mapping[tuple[int, int], int]) -> None:
    """Takes away the targets of quarantined documents."""
    for piece in row.pieces:
        since = quarantined.get((number, piece.document))
        if since is not None and since <= sample:
            row.targets[piece.start : piece.end] = np.int64(-1)
