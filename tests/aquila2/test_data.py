"""Documents, packing and the stream: nothing lost, nothing leaked between documents or splits, any place reachable."""

from __future__ import annotations

import gettext
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aquila2 import Aquila2Tokenizer
from aquila2.heurimentor.data.schedule import Schedule
from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.data.stream import BatchStream
from aquila2.heurimentor.ledger.book import share_out
from aquila2.heurimentor.verified import NotVerified
from aquila2.training import builtin
from aquila2.training.builtin import builtin_documents
from aquila2.training.data import (
    SPLITS,
    heldout_batches,
    prepare,
    segment_folder,
    source_documents,
    split_documents,
    split_of,
    tokenizer_id,
)
from aquila2.training.options import DataOptions, SourceOptions
from aquila2.training.sources import PIECE_CHARACTERS, Document, pieces, read_documents


@pytest.fixture
def prepared(text_folder: Path, tmp_path: Path, tokenizer: Aquila2Tokenizer) -> tuple[Path, DataOptions]:
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": f"note number {i}"}) + "\n" for i in range(30)))
    sources = [
        SourceOptions(name="texts", path=str(text_folder), weight=3.0),
        SourceOptions(name="notes", path=str(tmp_path / "notes.jsonl"), weight=1.0),
    ]
    options = DataOptions(sources=sources, seq_len=32, heldout=0.2, heldout_rows=3)
    prepare(options, tokenizer, tmp_path / "data")
    return tmp_path / "data", options


def all_tokens(segment: Segment) -> list[list[int]]:
    return [segment.document_tokens(number).tolist() for number in range(segment.documents)]


def test_segments_hold_every_document_once(prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer) -> None:
    folder, options = prepared
    for source in options.sources:
        texts: dict[str, list[str]] = {
            split: [tokenizer.decode(ids) for ids in all_tokens(Segment(segment_folder(folder, source.name, split)))]
            for split in ("train", "heldout")
        }
        assert Counter(texts["train"] + texts["heldout"]) == Counter(d.text for d in source_documents(source))
        assert all(texts.values())
        if source.name == "notes":
            assert not set(texts["train"]) & set(texts["heldout"])


def opened(folder: Path, options: DataOptions, tokenizer: Aquila2Tokenizer) -> tuple[Schedule, BatchStream]:
    """A schedule in which texts have three samples where notes have one, and a stream over its segments."""
    schedule = Schedule(5)
    for source in options.sources:
        segment = Segment(segment_folder(folder, source.name, "train"))
        schedule.open(0, source.name, segment.id, f"data/train/{source.name}", segment.num_rows(options.seq_len))
    schedule.mix(0, {"texts": 3 << 28, "notes": 1 << 28})
    stream = BatchStream(folder.parent, options.seq_len, tokenizer_id(tokenizer))
    stream.open(schedule.segments)
    return schedule, stream


def test_batches_are_the_rows_of_the_plan_however_they_are_cut(
    prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer
) -> None:
    schedule, stream = opened(*prepared, tokenizer)
    draws = schedule.draws(7, 12)
    whole = stream.part(draws, range(12), 12)
    (batch,) = whole.batches
    assert Counter(batch.sources) == {"texts": 9, "notes": 3}
    for micro, shares in ((5, [1, 2]), (2, [3, 0, 1]), (1, [1])):
        parts = [stream.part(draws, places, micro) for places in share_out(12, shares)]
        assert torch.equal(torch.cat([b.input_ids for part in parts for b in part.batches]), batch.input_ids)
        assert torch.equal(torch.cat([b.targets for part in parts for b in part.batches]), batch.targets)
        assert all(b.input_ids.shape[0] <= micro for part in parts for b in part.batches)
        assert sum(part.digest for part in parts) % (1 << 64) == whole.digest
    other = stream.part(schedule.draws(8, 12), range(12), 12)
    assert other.digest != whole.digest


def test_targets_stay_inside_documents(prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer) -> None:
    schedule, stream = opened(*prepared, tokenizer)
    (batch,) = stream.part(schedule.draws(0, 8), range(8), 8).batches
    ids, targets, bounds = batch.input_ids.flatten(), batch.targets.flatten(), batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == 8 * 32
    assert set(range(32, 256, 32)) <= set(bounds)
    for start, end in pairwise(bounds):
        assert torch.equal(targets[start : end - 1], ids[start + 1 : end]) or not ids[start:end].any()  # padding
        if end % 32 or ids[end - 1] == tokenizer.eos_token_id or not ids[start:end].any():
            assert targets[end - 1] == -100
        else:
            assert targets[end - 1] >= 0  # the token that opens the next row
        assert tokenizer.eos_token_id not in ids[start : end - 1]


def test_quarantined_documents_have_no_targets(prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer) -> None:
    schedule, stream = opened(*prepared, tokenizer)
    draws = schedule.draws(0, 4)
    (domain, entry), *_ = stream.documents(draws, range(1, 2))
    number = int(draws.segments[1])
    assert schedule.segments[number].domain == domain
    (before,) = stream.part(draws, range(1, 2), 1).batches
    for since, counts in ((2, True), (1, False), (0, False)):
        (batch,) = stream.part(draws, range(1, 2), 1, {(number, entry.number): since}).batches
        first = slice(0, int(batch.cu_seqlens[1]))
        assert torch.equal(batch.input_ids, before.input_ids)
        assert bool((batch.targets[0, first] >= 0).any()) == counts
        assert torch.equal(batch.targets[0, first.stop :], before.targets[0, first.stop :])


def test_a_stream_refuses_other_segments(prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer) -> None:
    schedule, _ = opened(*prepared, tokenizer)
    folder, options = prepared
    with pytest.raises(NotVerified, match="was made with another tokenizer than the run's"):
        BatchStream(folder.parent, options.seq_len, "another").open(schedule.segments)
    with pytest.raises(NotVerified, match=r"holds the segment .*, the run decided to use"):
        BatchStream(folder.parent, 16, tokenizer_id(tokenizer)).open(schedule.segments)


def test_held_out_batches_are_the_same_every_time(prepared: tuple[Path, DataOptions]) -> None:
    folder, options = prepared
    first, second = heldout_batches(folder, options, 2), heldout_batches(folder, options, 2)
    for source in ("texts", "notes"):
        assert first[source] and sum(len(batch.sources) for batch in first[source]) <= options.heldout_rows
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first[source], second[source], strict=True))


def test_a_tokenizer_keeps_its_id_when_it_is_read_again(tokenizer: Aquila2Tokenizer, tmp_path: Path) -> None:
    before = tokenizer_id(tokenizer)
    tokenizer.encode("x", allow_special=False)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_id(Aquila2Tokenizer.from_pretrained(tmp_path)) == before
    assert tokenizer_id(Aquila2Tokenizer.train(["other"], 265)) != before


def test_splits_are_stable_and_of_the_wanted_size() -> None:
    split = Counter(split_of(f"document {i}", 0.1) for i in range(5000))
    assert 400 < split["heldout"] < 600


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_sources_have_both_splits(tmp_path: Path, tokenizer: Aquila2Tokenizer, count: int) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "only a few words in here"}\n' * count)
    options = DataOptions(sources=[SourceOptions(name="few", path=str(tmp_path / "texts.jsonl"))], seq_len=8)
    prepare(options, tokenizer, tmp_path / "data")
    assert heldout_batches(tmp_path / "data", options, 2)["few"][0].num_targets > 0
    assert Segment(segment_folder(tmp_path / "data", "few", "train")).tokens > 2


@pytest.mark.parametrize("heldout", [0.3, 0.5])
def test_no_long_document_is_in_both_splits(tmp_path: Path, tokenizer: Aquila2Tokenizer, heldout: float) -> None:
    lines = [f"book {book}, line {line} of it\n" for book in range(8) for line in range(2500)]
    for book in range(8):
        (tmp_path / f"book-{book}.txt").write_text("".join(lines[2500 * book : 2500 * (book + 1)]))
    source = SourceOptions(name="books", path=str(tmp_path))
    prepare(DataOptions(sources=[source], heldout=heldout), tokenizer, tmp_path / "data")
    records = []
    for split in SPLITS:
        segment = Segment(segment_folder(tmp_path / "data", "books", split))
        names = [segment.document(number).id.rpartition("#")[0] for number in range(segment.documents)]
        assert names and all(count >= 3 for count in Counter(names).values())  # pieces of each
        assert {split_of(name, heldout) for name in names} == {split}
        records.append(set(names))
    assert not records[0] & records[1] and len(records[0] | records[1]) == 8


@pytest.mark.parametrize(
    ("books", "length", "held"), [(1, 40_000, 10_000), (1, 2_000_000, 40_000), (2, 90_000, 16_384)]
)
def test_of_a_few_long_documents_the_end_is_held_out(tmp_path: Path, books: int, length: int, held: int) -> None:
    for book in range(books):
        (tmp_path / f"{book}.txt").write_text("".join(chr(0x4E00 + i % 20_000) for i in range(book, length + book)))
    source = SourceOptions(name="books", path=str(tmp_path))
    splits = {split: list(documents) for split, documents in split_documents(source, 0.02)}
    texts = {split: "".join(document.text for document in documents) for split, documents in splits.items()}
    whole = "".join(document.text for document in source_documents(source))
    assert len(texts["heldout"]) == held and texts["train"] + texts["heldout"] == whole
    assert {document.name.rpartition("#")[0] for document in splits["heldout"]} == {f"{books - 1}.txt#end"}


def test_spelled_out_special_tokens_do_not_end_a_document(tmp_path: Path, tokenizer: Aquila2Tokenizer) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a </s> in the middle of words"}\n' * 2)
    options = DataOptions(sources=[SourceOptions(name="few", path=str(tmp_path / "texts.jsonl"))], seq_len=8)
    prepare(options, tokenizer, tmp_path / "data")
    segment = Segment(segment_folder(tmp_path / "data", "few", "train"))
    assert [ids.count(tokenizer.eos_token_id) for ids in all_tokens(segment)] == [1]


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("# 标题", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"content": "two"}\n')
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    expected = [Document("a.jsonl:1", "one"), Document("a.jsonl:3", "two"), Document("sub/b.md", "# 标题")]
    assert list(read_documents(tmp_path)) == expected
    assert list(read_documents(tmp_path / "sub" / "b.md")) == [Document("b.md", "# 标题")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", "two"]}), tmp_path / "a.parquet")
    assert [document.text for document in read_documents(tmp_path / "a.parquet")] == ["one", "two"]
    parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="must have a column text or content"):
        list(read_documents(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "is not there"),
        (lambda path: path.mkdir(), FileNotFoundError, "has no file of the kinds"),
    ],
)
def test_nothing_to_read(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(error, match=message):
        list(read_documents(tmp_path / "x"))


def test_what_is_no_unicode_is_read(tmp_path: Path, tokenizer: Aquila2Tokenizer) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"text": "half \\ud83d of a pair"}\n{"text": "\\ud83d\\ude00 \xff"}\n')
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"caf\xe9")
    found = list(read_documents(folder))
    assert found == [
        Document("a.jsonl:1", "half \N{REPLACEMENT CHARACTER} of a pair"),
        Document("a.jsonl:2", "\N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"),
        Document("caf\\xe9.txt", "caf\N{REPLACEMENT CHARACTER}"),
    ]
    source = SourceOptions(name="texts", path=str(folder))
    prepare(DataOptions(sources=[source]), tokenizer, tmp_path / "data")
    segment = Segment(segment_folder(tmp_path / "data", "texts", "train"))
    assert "a.jsonl:1#0" in {segment.document(number).id for number in range(segment.documents)}
    # A folder whose own name is no UTF-8, too.
    odd = tmp_path / os.fsdecode(b"\xff")
    folder.rename(odd)
    assert list(read_documents(odd)) == found
    prepare(DataOptions(sources=[SourceOptions(name="odd", path=str(odd))]), tokenizer, tmp_path / "more")


def test_a_parquet_s_texts_may_be_any_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.array([b"one", None, b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    found = [document.text for document in read_documents(tmp_path / "a.parquet")]
    assert found == ["one", "caf\N{REPLACEMENT CHARACTER}"]


def test_records_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 must be an object with a string text or content"):
        list(read_documents(tmp_path / "a.jsonl"))
    (tmp_path / "a.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match="must be one of the kinds"):
        list(read_documents(tmp_path / "a.bin"))


def test_pieces_lose_nothing() -> None:
    for text in ("short", "line\n" * 20_000, "x" * 100_000, "", ("y" * 30_000 + "\n") * 4):
        cut = pieces(Document("book", text))
        assert "".join(piece.text for piece in cut) == text
        assert all(len(piece.text) <= 2 * PIECE_CHARACTERS + 1 for piece in cut)
        assert len({piece.name for piece in cut}) == len(cut)


def test_builtin_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {document.name: document.text for document in builtin_documents("python-code")}
    assert "json/decoder.py" in code and not any("test" in Path(name).parts for name in code)
    assert any("pydoc/" in document.name for document in builtin_documents("english"))
    monkeypatch.setattr(builtin, "CATALOGUE_FOLDERS", (str(tmp_path),))
    write_catalogue(tmp_path / "tool.mo", {"Cannot open file": "无法打开文件", "ok": "ok"})
    (tmp_path / "broken.mo").write_bytes(b"not a catalogue")
    chinese = list(builtin_documents("chinese"))
    assert Document("tool.mo:0", "无法打开文件") in chinese
    with pytest.raises(ValueError, match="builtin source must be one of python-code, english, chinese, got 'x'"):
        builtin_documents("x")


def write_catalogue(path: Path, messages: dict[str, str]) -> None:
    """A message catalogue in GNU's binary form."""
    entries = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    strings = [[pair[side].encode() for pair in entries] for side in (0, 1)]
    offset = 28 + 16 * len(entries)
    tables, blob = [], b""
    for side in strings:
        table = []
        for string in side:
            table += [len(string), offset + len(blob)]
            blob += string + b"\0"
        tables.append(np.array(table, dtype="<u4").tobytes())
    head = np.array([0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0], dtype="<u4").tobytes()
    path.write_bytes(head + b"".join(tables) + blob)
    with path.open("rb") as file:
        gettext.GNUTranslations(file)
