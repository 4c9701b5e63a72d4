"""Segments: every token in one row, every target in its document, every id back to the raw file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquila2 import Aquila2Tokenizer
from aquila2.heurimentor.data.segment import Segment, write_segment
from aquila2.heurimentor.verified import NotVerified, verify
from aquila2.training.sources import Document, read_documents
from tests.aquila2.heurimentor.byte_tokenizer import ByteTokenizer


def write(folder: Path, texts: Sequence[str], **options: int) -> Segment:
    documents = [Document(f"raw.txt:{i}", text) for i, text in enumerate(texts)]
    return write_segment(folder, documents, ByteTokenizer(), source="raw", tokenizer_id="bytes", **options)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=20), row_tokens=st.integers(1, 40))
def test_rows_hold_every_token_and_every_target_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], row_tokens: int
) -> None:
    segment = write(tmp_path_factory.mktemp("segment") / "one", texts, group_tokens=64)
    tokens: dict[int, list[int]] = {}
    targets: dict[int, list[int]] = {}
    for number in range(segment.num_rows(row_tokens)):
        row = segment.row(number, row_tokens)
        assert [piece.start for piece in row.pieces[1:]] == [piece.end for piece in row.pieces[:-1]]
        assert row.pieces[0].start == 0 and row.pieces[-1].end == row_tokens
        for piece in row.pieces:
            inside = slice(piece.start, piece.end)
            if piece.document < 0:
                assert number == segment.num_rows(row_tokens) - 1
                assert (row.targets[inside] == -1).all()
                continue
            assert number in segment.rows_of(piece.document, row_tokens)
            held = tokens.setdefault(piece.document, [])
            assert piece.offset == len(held)
            held += row.ids[inside].tolist()
            targets.setdefault(piece.document, []).extend(row.targets[inside].tolist())
    found = {}
    for number in range(segment.documents):
        entry = segment.document(number)
        assert tokens[number] == segment.document_tokens(number).tolist()
        assert targets[number] == [*tokens[number][1:], -1]
        text = bytes(token - 3 for token in tokens[number][1:-1])
        assert hashlib.sha256(text).hexdigest() == entry.sha256
        assert segment.find(entry.id) == number and entry.tokens == len(tokens[number])
        found[entry.id] = text.decode()
    assert found == {f"raw.txt:{i}": text for i, text in enumerate(texts)}
    assert segment.find("raw.txt:-1") is None


def test_real_files_and_tokenizer(tmp_path: Path, text_folder: Path, tokenizer: Aquila2Tokenizer) -> None:
    documents = list(read_documents(text_folder))
    segment = write_segment(tmp_path / "s", documents, tokenizer, source="texts", tokenizer_id="t")
    for document in documents:
        number = segment.find(document.name)
        assert number is not None
        assert tokenizer.decode(segment.document_tokens(number)) == document.text
        assert segment.document(number).source == "texts"


def test_content_decides_the_id_and_the_seed_the_order(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(50)]
    first, again = write(tmp_path / "a", texts), write(tmp_path / "b", texts)
    other = write(tmp_path / "c", texts, seed=1)
    assert first.id == again.id != other.id
    assert [first.document(i).id for i in range(50)] != [f"raw.txt:{i}" for i in range(50)]
    assert [first.document(i).id for i in range(50)] != [other.document(i).id for i in range(50)]


def test_a_whole_folder_is_taken_as_it_is_and_a_broken_one_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a", ["one", "two"])
    assert write(tmp_path / "a", ["others"]).id == first.id
    for name in ("tokens.bin", "documents.arrow", "segment.json"):
        path = tmp_path / "a" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(NotVerified, match=name):
            verify(tmp_path / "a")
        with pytest.raises(NotVerified, match=name):
            write(tmp_path / "a", ["one", "two"])
        path.write_bytes(whole)
    (tmp_path / "a" / "tokens.bin").write_bytes(b"")
    with pytest.raises(NotVerified, match="holds no segment"):
        Segment(tmp_path / "a")


def test_token_types_follow_the_vocabulary(tmp_path: Path) -> None:
    for size, dtype in ((1 << 16, "<u2"), ((1 << 16) + 1, "<u4")):
        folder = tmp_path / str(size)
        write_segment(folder, [Document("a", "text")], ByteTokenizer(size), source="s", tokenizer_id="t")
        assert json.loads((folder / "segment.json").read_text())["dtype"] == dtype
        assert Segment(folder).row(0, 3).ids.tolist() == [1, ord("t") + 3, ord("e") + 3]


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'a' twice"):
        write_segment(
            tmp_path / "s", [Document("a", "x"), Document("a", "y")], ByteTokenizer(), source="s", tokenizer_id="t"
        )
    with pytest.raises(ValueError, match="the source 'raw' has no documents"):
        write(tmp_path / "s", [])
    assert not list(tmp_path.iterdir())
    segment = write(tmp_path / "s", ["x"])
    with pytest.raises(IndexError, match=r"row must lie in 0 \.\. 0, got 1"):
        segment.row(1, 8)
    with pytest.raises(IndexError, match=r"document must lie in 0 \.\. 0, got 1"):
        segment.document(1)


def test_rows_can_be_compared_with_the_flat_tokens(tmp_path: Path) -> None:
    segment = write(tmp_path / "s", ["alpha", "beta", "gamma"])
    flat = np.concatenate([segment.document_tokens(i) for i in range(3)])
    rows = np.concatenate([segment.row(i, 4).ids for i in range(segment.num_rows(4))])
    assert np.array_equal(rows[: len(flat)], flat) and not rows[len(flat) :].any()
