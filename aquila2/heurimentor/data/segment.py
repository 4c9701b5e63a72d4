"""Segments: immutable folders of tokenised documents whose ids lead back to the raw files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from aquila2.heurimentor.data.permutation import Permutation
from aquila2.heurimentor.verified import NotVerified, read_manifest, verified_folder, verify

I64 = npt.NDArray[np.int64]

TOKENS, DOCUMENTS, FACTS = "tokens.bin", "documents.arrow", "segment.json"
FORMAT = "aquila2-segment-1"
GROUP_TOKENS = 1 << 24
TEXTS_PER_CALL = 256
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("first", pa.int64()), ("sha256", pa.binary(32))])


class Text(Protocol):
    """A document as it comes from a source: a name that is stable from run to run, and its text."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...


class Encoder(Protocol):
    """What a segment needs of a tokenizer."""

    def __len__(self) -> int: ...

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, allow_special: bool = True
    ) -> list[list[int]]: ...


class DocumentEntry(NamedTuple):
    """One document of a segment.

    Attributes:
        number: Its place in the segment.
        id: The name of the raw record: file and place in it.
        source: What the segment was made from.
        first: Its first token in the segment.
        tokens: How many it has.
        sha256: Of its text, in hex.
    """

    number: int
    id: str
    source: str
    first: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Piece:
    """The part of a document that stands in a row.

    Attributes:
        document: Number of the document in its segment, -1 for the padding of the last row.
        start, end: Its positions in the row.
        offset: Tokens of the document before it.
    """

    document: int
    start: int
    end: int
    offset: int


@dataclass(frozen=True)
class Row:
    """One row of a segment: ids (S,), the id that follows each in its document or -1 (S,), and the pieces in it."""

    ids: I64
    targets: I64
    pieces: list[Piece]


def write_segment(
    folder: Path,
    documents: Iterable[Text],
    encoder: Encoder,
    *,
    source: str,
    tokenizer_id: str,
    seed: int = 0,
    group_tokens: int = GROUP_TOKENS,
) -> Segment:
    """Tokenises documents into a segment; a folder that is there and verifies is taken as it is.

    Documents are shuffled, by a permutation keyed with `seed`, within groups of about `group_tokens` tokens.

    Args:
        folder: Where it goes; it appears whole or not at all.
        documents: Texts with names; no two may have one name.
        encoder: The tokenizer; every document gets its opening and closing id.
        source: What the documents come from, kept with each.
        tokenizer_id: Kept, so that a run can refuse segments of another vocabulary.
        seed: Of the shuffle.
        group_tokens: Bounds the memory that the shuffle needs.

    Raises:
        ValueError: There is no document, or a name occurs twice, or the folder holds another source.
    """
    if folder.exists():
        verify(folder)
        there = Segment(folder)
        if (there.source, there.tokenizer) != (source, tokenizer_id):
            raise ValueError(
                f"{folder} was made from {there.source!r}, or with another tokenizer, and {source!r} is wanted there; "
                "remove it"
            )
        return there
    dtype = np.dtype("<u2" if len(encoder) <= 1 << 16 else "<u4")
    seen: set[bytes] = set()
    total = 0
    with verified_folder(folder) as temporary:
        with (
            (temporary / TOKENS).open("wb") as tokens,
            pa.OSFile(str(temporary / DOCUMENTS), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as writer,
        ):
            for number, group in enumerate(_groups(documents, encoder, group_tokens)):
                columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
                for index in Permutation(len(group), "shuffle", seed, number).forward(np.arange(len(group))):
                    document, ids = group[int(index)]
                    name = hashlib.blake2b(document.name.encode(), digest_size=16).digest()
                    if name in seen:
                        raise ValueError(f"documents must have different names, got {document.name!r} twice")
                    seen.add(name)
                    tokens.write(np.asarray(ids, dtype=dtype).tobytes())
                    entry = (document.name, source, total, hashlib.sha256(document.text.encode()).digest())
                    for column, value in zip(SCHEMA.names, entry, strict=True):
                        columns[column].append(value)
                    total += len(ids)
                writer.write_table(pa.table(columns, schema=SCHEMA))
        if not seen:
            raise ValueError(f"the source {source!r} has no documents")
        facts = {
            "format": FORMAT,
            "documents": len(seen),
            "tokens": total,
            "dtype": dtype.str,
            "source": source,
            "tokenizer": tokenizer_id,
        }
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return Segment(folder)


class Segment:
    """A segment on disk, read through memory maps.

    Opening reads the manifest only; `aquila2.heurimentor.verified.verify` reads every byte.

    Raises:
        NotVerified: The folder holds no segment, or its manifest is not as it was written.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.id: str = manifest["seal"][:32]
        try:
            facts = json.loads((self.folder / FACTS).read_bytes())
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']!r}")
            self.tokens: int = facts["tokens"]
            self.documents: int = facts["documents"]
            self.tokenizer: str = facts["tokenizer"]
            self.source: str = facts["source"]
            self._tokens = np.memmap(self.folder / TOKENS, dtype=facts["dtype"], mode="r", shape=(self.tokens,))
            table = pa.ipc.open_file(pa.memory_map(str(self.folder / DOCUMENTS))).read_all()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise NotVerified(f"{self.folder} holds no segment ({error.__class__.__name__}: {error})") from None
        self._table = table
        self._bounds = np.append(table.column("first").to_numpy(), self.tokens)

    def num_rows(self, row_tokens: int) -> int:
        """Rows of S tokens, a short last one included."""
        return -(-self.tokens // row_tokens)

    def row(self, number: int, row_tokens: int) -> Row:
        """Row `number`: tokens [number * S, number * S + S), each with the id that follows it in its document."""
        if not 0 <= number < self.num_rows(row_tokens):
            raise IndexError(f"row must lie in 0 .. {self.num_rows(row_tokens) - 1}, got {number}")
        begin = number * row_tokens
        end = min(begin + row_tokens, self.tokens)
        ids = np.zeros(row_tokens, dtype=np.int64)
        targets = np.full(row_tokens, -1, dtype=np.int64)
        ids[: end - begin] = self._tokens[begin:end]
        following = self._tokens[begin + 1 : end + 1]
        targets[: len(following)] = following
        first = int(np.searchsorted(self._bounds, begin, side="right")) - 1
        last = int(np.searchsorted(self._bounds, end, side="left"))
        bounds = self._bounds[first : last + 1].tolist()
        # A document's closing id has no target.
        ends = np.array(bounds[1:], dtype=np.int64) - begin - 1
        targets[ends[ends < row_tokens]] = -1
        pieces = [
            Piece(first + i, max(start - begin, 0), min(stop, end) - begin, max(begin - start, 0))
            for i, (start, stop) in enumerate(pairwise(bounds))
            if stop > start
        ]
        if end - begin < row_tokens:
            pieces.append(Piece(-1, end - begin, row_tokens, 0))
        return Row(ids, targets, pieces)

    def document(self, number: int) -> DocumentEntry:
        """The entry of a document."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document must lie in 0 .. {self.documents - 1}, got {number}")
        entry = self._table.slice(number, 1).to_pylist()[0]
        first, end = self._bounds[number : number + 2].tolist()
        return DocumentEntry(number, entry["id"], entry["source"], first, end - first, entry["sha256"].hex())

    def document_tokens(self, number: int) -> I64:
        """The ids of a document, opening and closing one included."""
        first, end = self._bounds[number : number + 2].tolist()
        return np.asarray(self._tokens[first:end]).astype(np.int64)

    def rows_of(self, number: int, row_tokens: int) -> range:
        """The rows that a document, or a part of it, stands in."""
        first, end = self._bounds[number : number + 2].tolist()
        return range(first // row_tokens, -(-end // row_tokens))

    def find(self, document_id: str) -> int | None:
        """The number of the document with this id, None where there is none."""
        number = pc.index(self._table.column("id"), document_id).as_py()
        return None if number < 0 else int(number)


def _groups(documents: Iterable[Text], encoder: Encoder, group_tokens: int) -> Iterator[list[tuple[Text, list[int]]]]:
    group: list[tuple[Text, list[int]]] = []
    size = 0
    for texts in _batches(documents):
        encoded = encoder.encode_batch([document.text for document in texts], bos=True, eos=True, allow_special=False)
        for document, ids in zip(texts, encoded, strict=True):
            group.append((document, ids))
            size += len(ids)
            if size >= group_tokens:
                yield group
                group, size = [], 0
    if group:
        yield group


def _batches(documents: Iterable[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    for document in documents:
        batch.append(document)
        if len(batch) == TEXTS_PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch
