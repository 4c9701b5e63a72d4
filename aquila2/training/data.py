"""From documents to batches: sources are tokenised once into segments, and rows of segments are packed into batches."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aquila2.atomic import atomic_write
from aquila2.heurimentor.data.permutation import Permutation
from aquila2.heurimentor.data.segment import Row, Segment, write_segment
from aquila2.model import IGNORE_INDEX
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.builtin import builtin_documents
from aquila2.training.options import DataOptions, SourceOptions
from aquila2.training.sources import PIECE_CHARACTERS, Document, pieces, read_documents, readable

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    Attributes:
        input_ids: (B, S) int64.
        targets: (B, S) int64, the following id of the same document, -100 at a document's end.
        cu_seqlens: (documents + 1,) int32 bounds of documents in the B * S tokens.
        max_seqlen: S, a bound for the longest document.
        sources: The source of each row.
        records: Of held-out rows, the raw records in each, with the first position and the one after the last.
    """

    input_ids: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    sources: list[str]
    records: list[list[tuple[str, int, int]]] = field(default_factory=list)

    @property
    def num_targets(self) -> int:
        """Targets that count for the loss."""
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(
            self.input_ids.to(device),
            self.targets.to(device),
            self.cu_seqlens.to(device),
            self.max_seqlen,
            self.sources,
        )


def pack(rows: Sequence[tuple[str, Row]]) -> Batch:
    """A batch from rows given with their sources."""
    ids = np.stack([row.ids for _, row in rows])
    targets = np.stack([row.targets for _, row in rows])
    targets[targets < 0] = IGNORE_INDEX
    lengths = [piece.end - piece.start for _, row in rows for piece in row.pieces]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(bounds),
        ids.shape[1],
        [source for source, _ in rows],
    )


def source_records(source: SourceOptions) -> Iterator[Document]:
    """The raw records of a source: files, lines or rows, however long; empty ones are left out.

    Raises:
        FileNotFoundError: The path is not there, or nothing in the folder can be read.
        ValueError: No such builtin source, a file of another kind, or a record without text.
    """
    try:
        if source.path.startswith("builtin:"):
            records = builtin_documents(source.path.removeprefix("builtin:"))
        else:
            records = read_documents(source.path)
        yield from (record for record in records if record.text)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.sources, {source.name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"data.sources, {source.name}: {error}") from None


def look_at_sources(options: DataOptions) -> None:
    """Reads the first record of every source, so that what is not there is told before anything is made.

    Raises:
        FileNotFoundError, ValueError: As `source_records` does, or a source has no text.
    """
    for source in options.sources:
        if next(source_records(source), None) is None:
            raise ValueError(f"data.sources, {source.name}: {source.path} has no text; a source has some")


def source_documents(source: SourceOptions) -> Iterator[Document]:
    """The documents of a source: its records, long ones cut into pieces."""
    for record in source_records(source):
        yield from pieces(record)


def split_of(name: str, heldout: float) -> str:
    """Where a raw record belongs: a function of its name, so that no later run trains on what this one holds out."""
    digest = hashlib.sha256(name.encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < heldout * 2**64 else "train"


def tokenizer_id(tokenizer: Aquila2Tokenizer) -> str:
    """What segments keep, so that none is read with another vocabulary."""
    vocabulary = json.loads(tokenizer.backend.to_str(pretty=False))["model"]
    entries = [vocabulary, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:32]


def segment_folder(data: Path, source: str, split: str) -> Path:
    """Where a source's documents of a split are, in the folder `data` of a run."""
    return data / split / source


def prepare(options: DataOptions, tokenizer: Aquila2Tokenizer, folder: Path) -> None:
    """Tokenises all sources into `folder`, once: a finished folder is left as it is.

    Each source has a segment in `train/` and one in `heldout/`. A record's split follows from its name, and is that of
    all its pieces.
    """
    if (folder / "prepared.json").is_file():
        return
    sizes: dict[str, dict[str, int]] = {}
    for source in options.sources:
        sizes[source.name] = prepare_source(source, options.heldout, tokenizer, folder)
    atomic_write(folder / "prepared.json", json.dumps(sizes, indent=2) + "\n")


def prepare_source(source: SourceOptions, heldout: float, tokenizer: Aquila2Tokenizer, folder: Path) -> dict[str, int]:
    """Tokenises one source; returns the tokens of each split."""
    identity = tokenizer_id(tokenizer)
    sizes = {}
    for split, documents in split_documents(source, heldout):
        place = segment_folder(folder, source.name, split)
        segment = write_segment(place, documents, tokenizer, source=readable(source.path), tokenizer_id=identity)
        sizes[split] = segment.tokens
    return sizes


def heldout_batches(
    folder: Path, options: DataOptions, rows: int, added: Sequence[tuple[str, str]] = ()
) -> dict[str, list[Batch]]:
    """Per domain, the same held-out rows every time: of each source at most `heldout_rows`, no token twice.

    They are taken from all over the source, so that few of them share a document.

    Args:
        folder: Where `prepare` has put the data.
        options: Sources, domains and sizes.
        rows: Of a batch, at most.
        added: Domain and name of the sources that came while the run was at work.
    """
    batches: dict[str, list[Batch]] = {}
    for domain, name in [*((source.domain or source.name, source.name) for source in options.sources), *added]:
        segment = Segment(segment_folder(folder, name, "heldout"))
        seq_len = min(options.seq_len, segment.tokens)
        whole = segment.tokens // seq_len
        count = min(options.heldout_rows, whole)
        numbers = sorted(Permutation(whole, "heldout").forward(np.arange(count)).tolist())
        several = [[segment.row(number, seq_len) for number in numbers[i : i + rows]] for i in range(0, count, rows)]
        for part in several:
            records = [_records(segment, name, row) for row in part]
            batches.setdefault(domain, []).append(replace(pack([(name, row) for row in part]), records=records))
    return batches


def _records(segment: Segment, source: str, row: Row) -> list[tuple[str, int, int]]:
    """The raw records in a row; the pieces that a long one was cut into are one."""
    names = [segment.document(piece.document).id.rpartition("#")[0] for piece in row.pieces]
    return [(f"{source}/{name}", piece.start, piece.end) for name, piece in zip(names, row.pieces, strict=True)]


class _Cut(NamedTuple):
    """Of a source that has all records in one split: the record whose end is held out, and where that end begins."""

    record: str
    start: int


def split_documents(source: SourceOptions, heldout: float) -> Iterator[tuple[str, Iterator[Document]]]:
    """The documents of each split.

    Of a small source whose records all have the same split, the last is held out; only its end where it is the only
    one, or long and more than a quarter of the text.
    """
    counts: Counter[str] = Counter()
    total, last = 0, Document("", "")
    for last in source_records(source):
        counts[split_of(last.name, heldout)] += 1
        total += len(last.text)
    if not counts:
        raise ValueError(f"the source {source.name!r} has no documents")
    cut = None
    if len(counts) < len(SPLITS):
        length = len(last.text)
        if counts.total() == 1 and length < 8:
            raise ValueError(f"the source {source.name!r} has only {length} characters, too few to hold some out")
        whole = counts.total() > 1 and length <= max(PIECE_CHARACTERS, total // 4)
        end = length if whole else min(length // 4, max(round(heldout * total), PIECE_CHARACTERS))
        cut = _Cut(last.name, length - end)
    for split in SPLITS:
        yield split, _documents_of(source, split, heldout, cut)


def _documents_of(source: SourceOptions, split: str, heldout: float, cut: _Cut | None) -> Iterator[Document]:
    for record in source_records(source):
        if cut is None:
            parts = [(split_of(record.name, heldout), record)]
        elif record.name != cut.record:
            parts = [("train", record)]
        else:
            end = Document(f"{record.name}#end" if cut.start else record.name, record.text[cut.start :])
            parts = [("train", Document(record.name, record.text[: cut.start])), ("heldout", end)]
        for place, part in parts:
            if place == split:
                yield from pieces(part)
