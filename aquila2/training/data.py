"""From documents to batches: sources are tokenised once into segments, and rows of segments are packed into batches."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aquila2.atomic import atomic_write
from aquila2.heurimentor.data.segment import Row, Segment, write_segment
from aquila2.model import IGNORE_INDEX
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.builtin import builtin_documents
from aquila2.training.options import DataOptions, SourceOptions
from aquila2.training.sources import Document, pieces, read_documents

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
    """

    input_ids: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    sources: list[str]

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


def source_documents(source: SourceOptions) -> Iterator[Document]:
    """The documents of a source, long ones cut into pieces.

    Raises:
        FileNotFoundError: The path is not there, or nothing in the folder can be read.
        ValueError: No such builtin source, a file of another kind, or a record without text.
    """
    try:
        if source.path.startswith("builtin:"):
            documents: Iterable[Document] = builtin_documents(source.path.removeprefix("builtin:"))
        else:
            documents = read_documents(source.path)
        for document in documents:
            yield from pieces(document)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.sources, {source.name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"data.sources, {source.name}: {error}") from None


def split_of(name: str, heldout: float) -> str:
    """Where a document belongs: a function of its name, so that no later run trains on what this one holds out."""
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

    Each source has a segment in `train/` and one in `heldout/`. A document's split follows from its name.
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
    for split, documents in _split_documents(source, heldout):
        place = segment_folder(folder, source.name, split)
        segment = write_segment(place, documents, tokenizer, source=source.path, tokenizer_id=identity)
        sizes[split] = segment.tokens
    return sizes


def heldout_batches(folder: Path, options: DataOptions, rows: int) -> dict[str, list[Batch]]:
    """Per domain, the same held-out rows every time: of each source at most `heldout_rows`, no token twice.

    Args:
        folder: Where `prepare` has put the data.
        options: Sources, domains and sizes.
        rows: Of a batch, at most.
    """
    batches: dict[str, list[Batch]] = {}
    for source in options.sources:
        segment = Segment(segment_folder(folder, source.name, "heldout"))
        seq_len = min(options.seq_len, segment.tokens)
        count = min(options.heldout_rows, segment.tokens // seq_len)
        numbers = [range(first, min(first + rows, count)) for first in range(0, count, rows)]
        found = [pack([(source.name, segment.row(i, seq_len)) for i in part]) for part in numbers]
        batches.setdefault(source.domain or source.name, []).extend(found)
    return batches


def _split_documents(source: SourceOptions, heldout: float) -> Iterator[tuple[str, Iterator[Document]]]:
    """The documents of each split. A small source that has all in one gives the other its last; a single one is cut."""
    counts: Counter[str] = Counter()
    last: dict[str, Document] = {}
    for document in source_documents(source):
        split = split_of(document.name, heldout)
        counts[split] += 1
        last[split] = document
    if not counts:
        raise ValueError(f"the source {source.name!r} has no documents")
    if counts.total() == 1:
        ((name, text),) = last.values()
        if len(text) < 8:
            raise ValueError(f"the source {source.name!r} has only {len(text)} characters, too few to hold some out")
        cut = len(text) * 3 // 4
        yield "train", iter([Document(name, text[:cut])])
        yield "heldout", iter([Document(f"{name}#end", text[cut:])])
        return
    moved = {last[other].name: split for split, other in (SPLITS, SPLITS[::-1]) if not counts[split]}
    for split in SPLITS:
        yield split, _documents_of(source, split, heldout, moved)


def _documents_of(source: SourceOptions, split: str, heldout: float, moved: Mapping[str, str]) -> Iterator[Document]:
    for document in source_documents(source):
        if moved.get(document.name, split_of(document.name, heldout)) == split:
            yield document
