"""Documents, packing and the stream: nothing lost, nothing leaked between documents or splits, any place reachable."""

from __future__ import annotations

import gettext
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aquila2 import Aquila2Tokenizer
from aquila2.training import builtin
from aquila2.training.builtin import builtin_documents
from aquila2.training.data import PackedStream, TokenSource, heldout_batches, pack, prepare, split_of
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


def test_an_epoch_holds_every_token_once(prepared: tuple[Path, DataOptions]) -> None:
    folder, _ = prepared
    source = TokenSource(folder, "texts", "train", seed=5)
    count = len(source.tokens)
    rows = [np.concatenate(source.row(i, 32)) for i in range(2 * count // 32 + 1)]
    stream = np.concatenate(rows)
    assert sorted(stream[:count]) == sorted(source.tokens)
    assert sorted(stream[count : 2 * count]) == sorted(source.tokens)
    assert not np.array_equal(stream[:count], stream[count : 2 * count])


def test_any_row_can_be_read_alone(prepared: tuple[Path, DataOptions]) -> None:
    folder, _ = prepared
    forward = TokenSource(folder, "texts", "train", seed=5)
    rows = [np.concatenate(forward.row(i, 32)) for i in range(40)]
    for i in (39, 3, 17, 0):
        alone = TokenSource(folder, "texts", "train", seed=5)
        assert np.array_equal(np.concatenate(alone.row(i, 32)), rows[i])


def test_mixture_follows_the_weights_and_the_state_restores_it(prepared: tuple[Path, DataOptions]) -> None:
    folder, options = prepared
    stream = PackedStream(folder, options, seed=1)
    first = [stream.next_batch(4) for _ in range(5)]
    state = json.loads(json.dumps(stream.state()))
    rest = [stream.next_batch(4) for _ in range(5)]
    assert Counter(name for batch in first + rest for name in batch.sources) == {"texts": 30, "notes": 10}
    again = PackedStream(folder, options, seed=1)
    again.load_state(state)
    for batch in rest:
        repeated = again.next_batch(4)
        assert torch.equal(batch.input_ids, repeated.input_ids)
        assert torch.equal(batch.cu_seqlens, repeated.cu_seqlens)


def test_targets_stay_inside_documents(prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer) -> None:
    folder, options = prepared
    batch = PackedStream(folder, options, seed=1).next_batch(8)
    ids, targets, bounds = batch.input_ids.flatten(), batch.targets.flatten(), batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == 8 * 32
    assert set(range(32, 256, 32)) <= set(bounds)
    for start, end in pairwise(bounds):
        assert torch.equal(targets[start : end - 1], ids[start + 1 : end])
        assert targets[end - 1] == -100
        assert tokenizer.eos_token_id not in ids[start : end - 1]
    assert batch.num_targets == 8 * 32 - (len(bounds) - 1)


def test_held_out_documents_are_not_trained_on(prepared: tuple[Path, DataOptions], tokenizer: Aquila2Tokenizer) -> None:
    folder, options = prepared
    texts: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        source = TokenSource(folder, "notes", split, seed=0)
        texts[split] = {tokenizer.decode(source.tokens[start:end]) for start, end in pairwise(source.bounds)}
    assert texts["train"] | texts["heldout"] == {f"note number {i}" for i in range(30)}
    assert not texts["train"] & texts["heldout"]
    assert all(len(batches) > 0 for batches in heldout_batches(folder, options, 2).values())


def test_splits_are_stable_and_of_the_wanted_size() -> None:
    split = Counter(split_of(f"document {i}", 0.1) for i in range(5000))
    assert 400 < split["heldout"] < 600


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_sources_have_both_splits(tmp_path: Path, tokenizer: Aquila2Tokenizer, count: int) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "only a few words in here"}\n' * count)
    options = DataOptions(sources=[SourceOptions(name="few", path=str(tmp_path / "texts.jsonl"))], seq_len=8)
    prepare(options, tokenizer, tmp_path / "data")
    assert heldout_batches(tmp_path / "data", options, 2)["few"][0].num_targets > 0
    assert PackedStream(tmp_path / "data", options, 0).next_batch(3).input_ids.shape == (3, 8)


def test_spelled_out_special_tokens_do_not_end_a_document(tmp_path: Path, tokenizer: Aquila2Tokenizer) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a </s> in the middle of words"}\n' * 2)
    options = DataOptions(sources=[SourceOptions(name="few", path=str(tmp_path / "texts.jsonl"))], seq_len=8)
    prepare(options, tokenizer, tmp_path / "data")
    tokens = TokenSource(tmp_path / "data", "few", "train", 0).tokens
    assert list(tokens).count(tokenizer.eos_token_id) == 1


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


def test_pack_of_single_token_documents() -> None:
    one = np.array([7], dtype=np.uint32)
    batch = pack([("a", [one, one, one])])
    assert batch.num_targets == 0
    assert batch.cu_seqlens.tolist() == [0, 1, 2, 3]


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
