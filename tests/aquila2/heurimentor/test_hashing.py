"""Hashes of files block by block: the same whatever memory their bytes go to, and the bytes go there."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquila2.heurimentor import hashing
from aquila2.heurimentor.hashing import Place, hashes_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hashing")


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 300),
    block=st.integers(1, 90),
    piece=st.integers(1, 40),
    bounds=st.lists(st.integers(0, 400), max_size=8),
    threads=st.sampled_from([1, 3]),
)
def test_bytes_go_to_their_places_and_hashes_stay(
    folder: Path, size: int, block: int, piece: int, bounds: list[int], threads: int
) -> None:
    content = os.urandom(size)
    path = folder / "file"
    path.write_bytes(content)
    spans = list(pairwise(sorted(bounds)))[::2]  # apart, perhaps empty, perhaps beyond the file's end
    memories = [bytearray(b"\xaa" * (end - start)) for start, end in spans]
    places = [Place(start, memoryview(memory)) for (start, _), memory in zip(spans, memories, strict=True)]
    with pytest.MonkeyPatch.context() as context:
        context.setattr(hashing, "BLOCK", block)
        context.setattr(hashing, "PIECE", piece)
        found = hashes_of({"name": path}, threads, {"name": places})["name"]
    expected = [content[start : start + block] for start in range(0, max(size, 1), block)]
    assert found == [hashlib.sha256(part).hexdigest() for part in expected]
    for (start, end), memory in zip(spans, memories, strict=True):
        inside = content[start:end]
        assert memory == inside + b"\xaa" * (end - start - len(inside))


def test_what_the_system_reads_in_parts_is_read_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = folder / "file", bytearray(50)
    path.write_bytes(bytes(range(60)))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, start: preadv(file, [buffers[0][:7]], start))
    found = hashes_of({"name": path}, 1, {"name": [Place(5, memoryview(memory))]})
    assert found == {"name": [hashlib.sha256(bytes(range(60))).hexdigest()]} and memory == bytes(range(5, 55))
