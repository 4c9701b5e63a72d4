"""Which documents of a segment hold a text: fingerprints of windows, so that every long enough text is found."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.verified import NotVerified, read_manifest, verified_folder

U64 = npt.NDArray[np.uint64]

GRAM = 16
WINDOW_DOUBLINGS = 6
WINDOW = 1 << WINDOW_DOUBLINGS
GUARANTEED_BYTES = GRAM + WINDOW - 1
FORMAT = "aquila2-text-index-1"


class Decoder(Protocol):
    """What an index needs of a tokenizer."""

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...


def normalise(text: str) -> str:
    """The form in which texts are compared: compatibility characters and case folded, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprints(text: str) -> U64:
    """The smallest hash of every window of 64 successive 16-byte pieces of a normalised text, sorted, each once.

    Two texts that share 79 bytes share a window and so a fingerprint (winnowing). About one in 32 pieces is chosen.
    """
    content = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint64)
    count = len(content) - GRAM + 1
    if count < WINDOW:
        return np.empty(0, dtype=np.uint64)
    halves = [np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)]
    for i in range(GRAM):
        halves[i // 8] |= content[i : i + count] << np.uint64(8 * (i % 8))
    smallest = _mix(_mix(halves[0]) + halves[1])
    for doubling in range(WINDOW_DOUBLINGS):
        step = 1 << doubling
        smallest = np.minimum(smallest[:-step], smallest[step:])
    return np.unique(smallest)


class TextIndex:
    """The fingerprints of a segment's documents, made once and kept in a verified folder.

    Args:
        folder: Where it is, or goes.
        segment: The segment.
        decoder: The tokenizer that the segment was made with.
    """

    def __init__(self, folder: Path, segment: Segment, decoder: Decoder) -> None:
        self.segment, self.decoder = segment, decoder
        if not _is_index_of(folder, segment):
            _build(folder, segment, decoder)
        self._hashes = np.fromfile(folder / "hashes.bin", dtype="<u8")
        self._documents = np.memmap(folder / "documents.bin", dtype="<u4", mode="r") if len(self._hashes) else None

    def find(self, text: str) -> Iterator[int]:
        """The numbers of the documents that hold a text, up to case, width and white space; short texts take longer."""
        wanted = normalise(text)
        if not wanted:
            raise ValueError("text must not be empty")
        for number in self._candidates(wanted):
            if wanted in normalise(self.decoder.decode(self.segment.document_tokens(number).tolist())):
                yield number

    def span(self, number: int, text: str) -> range | None:
        """The tokens of a document in which a text first stands, None where it does not."""
        wanted, ids = normalise(text), self.segment.document_tokens(number).tolist()

        def holds(start: int, end: int) -> bool:
            return wanted in normalise(self.decoder.decode(ids[start:end]))

        if not holds(0, len(ids)):
            return None
        low, high = 0, len(ids)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(0, middle) else (middle, high)
        start, last = 0, high
        while last - start > 1:
            middle = (start + last) // 2
            start, last = (middle, last) if holds(middle, high) else (start, middle)
        return range(start, high)

    def _candidates(self, wanted: str) -> list[int]:
        if len(wanted.encode()) < GUARANTEED_BYTES:
            return list(range(self.segment.documents))
        if self._documents is None:
            return []
        found: set[int] | None = None
        for fingerprint in fingerprints(wanted):
            first = int(np.searchsorted(self._hashes, fingerprint, side="left"))
            end = int(np.searchsorted(self._hashes, fingerprint, side="right"))
            documents = set(self._documents[first:end].tolist())
            found = documents if found is None else found & documents
        return sorted(found or ())


def _is_index_of(folder: Path, segment: Segment) -> bool:
    try:
        facts = read_manifest(folder)["facts"]
    except NotVerified:
        return False
    return bool(facts.get("format") == FORMAT and facts.get("segment") == segment.id)


def _build(folder: Path, segment: Segment, decoder: Decoder) -> None:
    hashes: list[U64] = [np.empty(0, dtype=np.uint64)]
    documents = [np.empty(0, dtype=np.uint32)]
    for number in range(segment.documents):
        chosen = fingerprints(normalise(decoder.decode(segment.document_tokens(number).tolist())))
        hashes.append(chosen)
        documents.append(np.full(len(chosen), number, dtype=np.uint32))
    together = np.concatenate(hashes)
    order = np.argsort(together, kind="stable")
    with verified_folder(folder, {"format": FORMAT, "segment": segment.id}) as temporary:
        together[order].astype("<u8").tofile(temporary / "hashes.bin")
        np.concatenate(documents)[order].astype("<u4").tofile(temporary / "documents.bin")


def _mix(z: U64) -> U64:
    """splitmix64's finisher."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = z ^ (z >> np.uint64(31))
    return mixed
