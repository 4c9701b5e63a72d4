"""From documents to batches: tokenised once, then packed into rows whose content follows from seed and place alone."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aquila2.atomic import atomic_path, atomic_write
from aquila2.model import IGNORE_INDEX
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.builtin import builtin_documents
from aquila2.training.options import DataOptions, SourceOptions
from aquila2.training.sources import Document, pieces, read_documents

SPLITS = ("train", "heldout")
TEXTS_PER_CALL = 256


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


class BatchStream(Protocol):
    """What the trainer needs of its data; whoever brings another data system implements these three."""

    def next_batch(self, rows: int) -> Batch:
        """The next rows."""

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken."""


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


def prepare(options: DataOptions, tokenizer: Aquila2Tokenizer, folder: Path) -> None:
    """Tokenises all sources into `folder`, once: a finished folder is left as it is.

    Each source and split has `<source>.<split>.tokens` (uint32, documents one after the other, each with its opening
    and closing id) and `<source>.<split>.bounds.npy`. A document's split follows from its name.
    """
    if (folder / "prepared.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, dict[str, int]] = {}
    for source in options.sources:
        tokens: dict[str, list[npt.NDArray[np.uint32]]] = {split: [] for split in SPLITS}
        for documents in _grouped(source_documents(source), TEXTS_PER_CALL):
            encoded = tokenizer.encode_batch([d.text for d in documents], bos=True, eos=True, allow_special=False)
            for document, ids in zip(documents, encoded, strict=True):
                tokens[split_of(document.name, options.heldout)].append(np.asarray(ids, dtype=np.uint32))
        _fill_empty_split(source.name, tokens)
        sizes[source.name] = {split: _write_split(folder, source.name, split, tokens[split]) for split in SPLITS}
    atomic_write(folder / "prepared.json", json.dumps(sizes, indent=2) + "\n")


class TokenSource:
    """One source's documents in one split: an endless stream of tokens, reshuffled every epoch."""

    def __init__(self, folder: Path, name: str, split: str, seed: int) -> None:
        self.name = name
        self.tokens = np.memmap(folder / f"{name}.{split}.tokens", dtype=np.uint32, mode="r")
        self.bounds = np.load(folder / f"{name}.{split}.bounds.npy")
        self.seed = zlib.crc32(name.encode(), seed)
        self._epoch, self._order, self._starts = -1, self.bounds, self.bounds

    def row(self, index: int, seq_len: int) -> list[npt.NDArray[np.uint32]]:
        """The documents, or parts of documents, that fill row `index`: seq_len tokens of the stream."""
        parts: list[npt.NDArray[np.uint32]] = []
        place, missing = index * seq_len, seq_len
        while missing:
            epoch, offset = divmod(place, len(self.tokens))
            self._shuffle(epoch)
            rank = int(np.searchsorted(self._starts, offset, side="right")) - 1
            inside = offset - int(self._starts[rank])
            start, end = self.bounds[self._order[rank]], self.bounds[self._order[rank] + 1]
            part = np.asarray(self.tokens[start + inside : min(start + inside + missing, end)])
            parts.append(part)
            place, missing = place + len(part), missing - len(part)
        return parts

    def _shuffle(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        lengths = np.diff(self.bounds)
        self._order = np.random.default_rng((self.seed, epoch)).permutation(len(lengths))
        self._starts = np.concatenate([[0], np.cumsum(lengths[self._order])])
        self._epoch = epoch


class PackedStream:
    """Training rows from several sources in fixed proportions.

    The next row comes from the source that is furthest behind its share, so the order of sources follows from the
    number of rows drawn; the state is that number per source.

    Args:
        folder: What `prepare` wrote.
        options: Sources with weights, row length.
        seed: Of the shuffles.
    """

    def __init__(self, folder: Path, options: DataOptions, seed: int) -> None:
        total = sum(source.weight for source in options.sources)
        self.shares = {source.name: source.weight / total for source in options.sources}
        self.sources = {name: TokenSource(folder, name, "train", seed) for name in self.shares}
        self.drawn = dict.fromkeys(self.shares, 0)
        self.seq_len = options.seq_len

    def next_batch(self, rows: int) -> Batch:
        """The next rows."""
        picked = []
        for _ in range(rows):
            number = sum(self.drawn.values()) + 1
            name = max(self.shares, key=lambda key: self.shares[key] * number - self.drawn[key])
            picked.append((name, self.drawn[name]))
            self.drawn[name] += 1
        return pack([(name, self.sources[name].row(index, self.seq_len)) for name, index in picked])

    def state(self) -> dict[str, Any]:
        """Rows drawn per source."""
        return {"drawn": dict(self.drawn)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken."""
        self.drawn = {name: int(state["drawn"][name]) for name in self.shares}


def heldout_batches(folder: Path, options: DataOptions, rows: int) -> dict[str, list[Batch]]:
    """Per source, the same held-out rows every time: at most `heldout_rows`, no token twice, `rows` per batch."""
    batches: dict[str, list[Batch]] = {}
    for source in options.sources:
        tokens = TokenSource(folder, source.name, "heldout", seed=0)
        seq_len = min(options.seq_len, len(tokens.tokens))
        count = min(options.heldout_rows, len(tokens.tokens) // seq_len)
        numbers = [range(first, min(first + rows, count)) for first in range(0, count, rows)]
        batches[source.name] = [pack([(source.name, tokens.row(i, seq_len)) for i in part]) for part in numbers]
    return batches


def pack(rows: Sequence[tuple[str, Sequence[npt.NDArray[np.uint32]]]]) -> Batch:
    """A batch from rows given as (source, documents)."""
    ids = np.stack([np.concatenate(parts) for _, parts in rows]).astype(np.int64)
    lengths = [len(part) for _, parts in rows for part in parts]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    targets = np.full(ids.size, IGNORE_INDEX, dtype=np.int64)
    targets[:-1] = ids.reshape(-1)[1:]
    targets[bounds[1:] - 1] = IGNORE_INDEX
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets.reshape(ids.shape)),
        torch.from_numpy(bounds.astype(np.int32)),
        ids.shape[1],
        [source for source, _ in rows],
    )


def _grouped(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    group: list[Document] = []
    for document in documents:
        group.append(document)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _fill_empty_split(name: str, tokens: dict[str, list[npt.NDArray[np.uint32]]]) -> None:
    """Moves a document where a small source has all in one split; a source with one document has its end held out."""
    documents = tokens["train"] + tokens["heldout"]
    if not documents:
        raise ValueError(f"the source {name!r} has no documents")
    if not tokens["train"]:
        tokens["train"].append(tokens["heldout"].pop())
    if not tokens["heldout"] and len(documents) > 1:
        tokens["heldout"].append(tokens["train"].pop())
    if not tokens["heldout"]:
        (only,) = tokens["train"]
        if len(only) < 8:
            raise ValueError(f"the source {name!r} has only {len(only)} tokens, too few to hold some out")
        cut = len(only) * 3 // 4
        tokens["train"], tokens["heldout"] = [only[:cut]], [only[cut:]]


def _write_split(folder: Path, name: str, split: str, documents: Sequence[npt.NDArray[np.uint32]]) -> int:
    bounds = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    with atomic_path(folder / f"{name}.{split}.tokens") as temporary:
        np.concatenate(documents).tofile(temporary)
    with atomic_path(folder / f"{name}.{split}.bounds.npy") as temporary, temporary.open("wb") as file:
        np.save(file, bounds)
    return int(bounds[-1])
