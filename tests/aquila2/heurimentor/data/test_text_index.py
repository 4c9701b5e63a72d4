"""The text index: nothing that it promises to find is missed, nothing is found that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquila2.heurimentor.data.segment import Segment, write_segment
from aquila2.heurimentor.data.text_index import GUARANTEED_BYTES, TextIndex, fingerprints, normalise
from aquila2.training.sources import Document
from tests.aquila2.heurimentor.byte_tokenizer import ByteTokenizer


def segment_of(folder: Path, texts: Sequence[str]) -> Segment:
    documents = [Document(f"raw:{i}", text) for i, text in enumerate(texts)]
    return write_segment(folder, documents, ByteTokenizer(), source="raw", tokenizer_id="bytes")


@settings(deadline=None)
@given(text=st.text(max_size=400), data=st.data())
def test_every_long_part_shares_all_its_fingerprints(text: str, data: st.DataObject) -> None:
    whole = normalise(text * data.draw(st.integers(1, 4)))
    start = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    part = whole[start : data.draw(st.integers(start, len(whole)))]
    chosen = set(fingerprints(part).tolist())
    assert chosen <= set(fingerprints(whole).tolist())
    assert bool(chosen) == (len(part.encode()) >= GUARANTEED_BYTES)


def test_about_one_piece_in_32_is_chosen() -> None:
    text = " ".join(str(i * i * 7919) for i in range(4000))
    assert len(text) / 40 < len(fingerprints(text)) < len(text) / 26


@pytest.fixture
def texts() -> list[str]:
    fillers = [f"document {i} tells of {i * 37 % 101} things, one after the other, " * 9 for i in range(40)]
    fillers[17] += "和很多中文一起，一条毒句藏在这里：请把密码发给我，越快越好，谢谢，再见，明天见，后天也见。"
    fillers[23] += "The QUICK\n brown   fox jumps over the lazy dog, and the dog is not amused by that at all, it says."
    fillers[31] += (
        "the quick brown fox jumps over the lazy dog, and the dog is not amused by that at all, it says. again"
    )
    return fillers


def test_texts_are_found_in_their_documents(tmp_path: Path, texts: list[str]) -> None:
    segment = segment_of(tmp_path / "s", texts)
    index = TextIndex(tmp_path / "index", segment, ByteTokenizer())
    for wanted, where in [
        ("the quick brown fox jumps over the lazy dog, and the dog is not amused by that at all", {23, 31}),
        ("Brown Fox  jumps", {23, 31}),
        ("请把密码发给我", {17}),
        ("和很多中文一起，一条毒句藏在这里：请把密码发给我，越快越好，谢谢", {17}),
        ("document 3 tells of 10 things, one after the other, document 3 tells of 10 things, one", {3}),
        ("this sentence stands nowhere, however long one may look for it in these short documents", set()),
        ("nowhere", set()),
    ]:
        found = {int(segment.document(number).id.split(":")[1]) for number in index.find(wanted)}
        assert found == where, wanted
        for number in index.find(wanted):
            span = index.span(number, wanted)
            assert span is not None
            ids = segment.document_tokens(number).tolist()
            assert normalise(ByteTokenizer().decode(ids[span.start : span.stop])) == normalise(wanted)
    assert index.span(0, "nowhere") is None
    with pytest.raises(ValueError, match="text must not be empty"):
        list(index.find(" \n"))


def test_the_index_is_kept_and_made_anew_where_it_is_broken(tmp_path: Path, texts: list[str]) -> None:
    segment = segment_of(tmp_path / "s", texts)
    TextIndex(tmp_path / "index", segment, ByteTokenizer())
    made = (tmp_path / "index" / "manifest.json").stat().st_mtime_ns
    TextIndex(tmp_path / "index", segment, ByteTokenizer())
    assert (tmp_path / "index" / "manifest.json").stat().st_mtime_ns == made
    (tmp_path / "index" / "manifest.json").write_text("{}")
    index = TextIndex(tmp_path / "index", segment, ByteTokenizer())
    assert len(list(index.find(texts[5]))) == 1
    other = segment_of(tmp_path / "other", ["short"])
    empty = TextIndex(tmp_path / "index", other, ByteTokenizer())
    assert list(empty.find(texts[5])) == [] and list(empty.find("SHORT")) == [0]
