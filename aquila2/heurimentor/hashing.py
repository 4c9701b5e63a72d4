"""SHA-256 of files, block by block on all cores; on the way their bytes may go where they are wanted."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

BLOCK = 1 << 24
THREADS = "aquila2-hashing"  # their name
PIECE = 1 << 18  # what is hashed as soon as it is read, still lies in the core's own cache


class Place(NamedTuple):
    """Memory for the bytes of a file from `start` on, as many as it holds."""

    start: int
    memory: memoryview


def hashes_of(
    paths: Mapping[str, Path],
    threads: int | None = None,
    places: Mapping[str, Sequence[Place]] = MappingProxyType({}),
) -> dict[str, list[str]]:
    """SHA-256 of every block of every file, in hex; hashlib lets go of the interpreter, so threads are enough.

    Args:
        paths: Files by any names.
        threads: Blocks hashed at once; the number of cores unless told.
        places: By these names, memory that parts of a file are read into and hashed in, in ascending order and apart.
    """
    jobs = [
        (name, path, start) for name, path in paths.items() for start in range(0, max(path.stat().st_size, 1), BLOCK)
    ]
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, THREADS) as pool:
        digests = list(pool.map(lambda job: hash_block(job[1], job[2], places.get(job[0], ())), jobs))
    hashes: dict[str, list[str]] = {name: [] for name in paths}
    for (name, _, _), digest in zip(jobs, digests, strict=True):
        hashes[name].append(digest)
    return hashes


def hash_block(path: Path, start: int, places: Sequence[Place] = ()) -> str:
    """The hash of the block that starts there, whose bytes are read into what of the places lies in it."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        end = min(start + BLOCK, os.fstat(file.fileno()).st_size)
        for memory in _pieces(start, end, places):
            count = os.preadv(file.fileno(), [memory], start)
            while 0 < count < len(memory) and (more := os.preadv(file.fileno(), [memory[count:]], start + count)):
                count += more
            digest.update(memory[:count])
            start += count
    return digest.hexdigest()


def _pieces(start: int, end: int, places: Sequence[Place]) -> Iterator[memoryview]:
    """Memory for the bytes from `start` to `end`, piece by piece: a place's own, and between places a scratch."""
    scratch = memoryview(bytearray(min(PIECE, max(end - start, 0))))
    first = bisect_right(places, start, key=lambda place: place.start + len(place.memory))
    last_of_all = Place(end, memoryview(b""))
    for place in chain(takewhile(lambda place: place.start < end, islice(places, first, None)), [last_of_all]):
        while start < place.start:
            size = min(PIECE, place.start - start)
            yield scratch[:size]
            start += size
        last = min(place.start + len(place.memory), end)
        while start < last:
            size = min(PIECE, last - start)
            yield place.memory[start - place.start :][:size]
            start += size
