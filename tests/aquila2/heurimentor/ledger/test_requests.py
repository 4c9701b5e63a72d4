"""Requests and decisions as people really write them: wrong, twice, unreadable, before a rewind or a flipped byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from aquila2.cli import main
from aquila2.heurimentor.data.segment import Segment, write_segment
from aquila2.heurimentor.data.stream import BatchStream
from aquila2.heurimentor.ledger.book import NAME, Book
from aquila2.heurimentor.ledger.chain import Tampered
from aquila2.heurimentor.ledger.control import answer_requests, rejected_requests, request, waiting_requests
from aquila2.heurimentor.ledger.effects import EFFECTS
from aquila2.heurimentor.ledger.lineage import BadRecord
from aquila2.training.sources import Document
from tests.aquila2.heurimentor.byte_tokenizer import ByteTokenizer
from tests.aquila2.heurimentor.ledger.test_book import start, take
from tests.aquila2.heurimentor.runs import ROOT


def ask(run: Path, content: str, name: str = "x.json") -> Path:
    folder = run / "control"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def written(run: Path, place: str = "data/train/papers", tokenizer: str = "bytes") -> Segment:
    documents = [Document(f"{place}:{i}", f"text number {i}") for i in range(9)]
    return write_segment(run / place, documents, ByteTokenizer(), source="papers", tokenizer_id=tokenizer)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"what":"skip","value":{"samples":Infinity}}', "samples must be at least 1, and a whole number, got inf"),
        ('{"what":"skip","value":{"samples":2.5}}', "samples must be at least 1, and a whole number"),
        ('{"what":"rate","value":1e-4,"after":Infinity}', "after must be the number of a completed step, got inf"),
        ('{"what":"rate","value":1e-4,"after":"3"}', "after must be the number of a completed step, got '3'"),
        ('{"what":"rate","value":1e-4,"after":3.5}', "after must be the number of a completed step, got 3.5"),
        ('{"what":"rate","value":1e-4,"after":true}', "after must be the number of a completed step, got True"),
        ('{"what":["rate"],"value":1e-4}', "cannot be taken"),
        ('{"what":"skip","value":null}', "cannot be taken"),
        ('{"what":"mixture","value":{"en":' + "[" * 5000 + "]" * 5000 + "}}", ""),
        ('{"what":"ranks","value":2}', "the number of ranks is what torchrun starts"),
        ('{"what":"stop","value":3}', "a stop must give its reason"),
        ('{"what":"stage","value":"\\ud800"}', "surrogates not allowed"),
        ("[1]", ""),
        ("\udcff", ""),
    ],
)
def test_no_request_ends_the_run_or_stays(tmp_path: Path, content: str, reason: str) -> None:
    with start(tmp_path) as book:
        path = ask(tmp_path, "")
        path.write_bytes(content.encode(errors="surrogateescape"))
        size = (tmp_path / NAME).stat().st_size
        assert answer_requests(book) == [] and not path.exists()
        assert (tmp_path / NAME).stat().st_size == size
        assert reason in rejected_requests(tmp_path)["x"] != ""
        # Nothing is left behind that later decisions stumble over.
        book.decide("stage", "later", after=9)
        book.decide("skip", {"samples": 4}, by="monitor")
        take(book, 4)


def test_a_request_that_cannot_be_read_is_told_and_left(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        (tmp_path / "control" / "folder.json").mkdir(parents=True)
        (tmp_path / "control" / "link.json").symlink_to(tmp_path / "nowhere")
        request(tmp_path, "rate", 0.1)
        assert [line.record["what"] for line in answer_requests(book)] == ["rate"]
        assert "cannot be read: Is a directory" in rejected_requests(tmp_path)["folder"]
        assert "cannot be read: No such file" in rejected_requests(tmp_path)["link"]
        assert answer_requests(book) == [] and (tmp_path / "control" / "folder.json").is_dir()


def test_a_request_that_cannot_be_removed_is_entered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path) as book:
        path = ask(tmp_path, '{"what":"rate","value":1e-4}')

        def refuse(self: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        assert [len(answer_requests(book)) for _ in range(3)] == [1, 0, 0]
        monkeypatch.undo()
        assert answer_requests(book) == [] and not path.exists()


def test_a_name_that_was_used_before_is_a_new_request(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        rates = []
        for value in ("1e-4", "5e-5", "5e-5", "1e-4"):
            path = ask(tmp_path, f'{{"what":"rate","value":{value}}}', "lr.json")
            rates += [line.record["value"] for line in answer_requests(book)]
            assert not path.exists()
            take(book, 4)
        assert rates == [1e-4, 5e-5, 5e-5, 1e-4]
    ask(tmp_path, '{"what":"rate","value":2e-5}', "lr.json")
    with Book(tmp_path) as book:
        assert [line.record["value"] for line in answer_requests(book)] == [2e-5]


@pytest.mark.parametrize("page", ["docs/heurimentor/running.md", "docs/zh/heurimentor/running.md"])
def test_the_documents_show_a_file_of_every_kind(tmp_path: Path, page: str) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    with start(tmp_path, code=40, english=900) as book:
        papers = written(tmp_path)
        block = block.replace('"7c9e"', f'"{papers.id}"').replace('"rows": 900', f'"rows": {papers.num_rows(16)}')
        for number, line in enumerate(block.splitlines()):
            ask(tmp_path, line.replace('"segment": 1', '"segment": 2'), f"{number}.json")  # the domain's last stays
        entered = [line.record["what"] for line in answer_requests(book)]
    assert not rejected_requests(tmp_path)
    assert sorted(entered) == sorted(what for what in EFFECTS if what != "ranks")


def test_waiting_requests_without_all_members_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(tmp_path, "{", "half.json")
    ask(tmp_path, '{"what":"rate","value":1e-4}')
    ask(tmp_path, '{"what":3,"value":"\\ud800"}', "odd.json")
    assert waiting_requests(tmp_path)[1] == {"what": "rate", "value": 1e-4, "after": None, "by": "control"}
    with start(tmp_path):
        pass
    assert main(["mentor", "show", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the peak learning rate is 0.0001 (control)" in said and "the 3 is \\ud800 (control)" in said


def test_a_folder_that_may_not_be_looked_into_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with start(tmp_path) as book:
        path = ask(tmp_path, '{"what":"nonsense","value":1}')
        with monkeypatch.context() as context:
            for name in ("read_bytes", "read_text", "mkdir", "unlink"):
                context.setattr(Path, name, refuse)
            assert answer_requests(book) == [] and rejected_requests(tmp_path) == {}
        assert path.exists()
        assert answer_requests(book) == [] and not path.exists()
        assert "what must be one of" in rejected_requests(tmp_path)["x"]


def test_after_must_be_a_number_wherever_a_decision_comes_from(tmp_path: Path) -> None:
    after: Any = "3"
    with start(tmp_path) as book, pytest.raises(BadRecord, match="after must be the number of a completed step"):
        book.decide("rate", 1e-3, after=after)


def flip(path: Path, text: bytes, offset: int = 0) -> None:
    content = bytearray(path.read_bytes())
    place = content.rindex(text) + offset
    content[place] ^= 1
    path.write_bytes(bytes(content))


PLACES = [(b'"by":"person"', 7), (b'"kind":"decision"', 9), (b'"what":"mixture"', 2), (b'"by":"person"', 30)]


# The seal of the very last line is left out: a write that was cut looks the same.
@pytest.mark.parametrize(
    ("text", "offset", "steps"), [(*place, steps) for steps in (0, 1, 3) for place in PLACES[: 4 if steps else 3]]
)
def test_a_changed_decision_behind_the_last_checkpoint_is_no_torn_tail(
    tmp_path: Path, text: bytes, offset: int, steps: int
) -> None:
    book = start(tmp_path)
    take(book, 4)
    book.sync()
    head = book.head
    take(book, 4)
    book.mix({"en": 9, "zh": 1}, by="person")
    for _ in range(steps):
        take(book, 4)
    book.close()
    flip(tmp_path / NAME, text, offset)
    content = (tmp_path / NAME).read_bytes()
    with pytest.raises(Tampered, match="is a decision or a resumption that was on the disk"):
        Book(tmp_path, head)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_changed_step_before_a_decision_is_no_torn_tail_and_one_without_is(tmp_path: Path) -> None:
    book = start(tmp_path)
    take(book, 4)
    book.sync()
    head = book.head
    take(book, 4)
    take(book, 4)
    book.close()
    whole = (tmp_path / NAME).read_bytes()
    flip(tmp_path / NAME, b'"step":2', 7)
    with Book(tmp_path, head) as book:
        assert book.cut == len(whole) - head.offset
        take(book, 4)
        book.decide("rate", 0.1, by="person")
    flip(tmp_path / NAME, b'"step":2', 7)
    with pytest.raises(Tampered, match="that was on the disk"):
        Book(tmp_path, head)


def test_a_rewind_keeps_what_people_decided_and_what_its_checkpoint_has_seen(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        take(book, 4)
        book.decide("skip", {"samples": 3}, by="monitor: before the checkpoint was saved")
        book.sync()
        head, samples = book.head, book.lineage.samples
        take(book, 4)
        request(tmp_path, "rate", 1e-5, after=50, by="person")
        request(tmp_path, "quarantine", {"segment": 0, "documents": [3]}, by="person")
        answer_requests(book)
        book.decide("skip", {"samples": 5}, by="monitor: the loss jumps")
        take(book, 4)
        book.rewind(1, head)
        assert book.lineage.samples == samples == 7
        assert [line.record["what"] for line in book.lineage.pending] == ["rate", "quarantine"]
        take(book, 4)
        assert (0, 3) in book.lineage.schedule.quarantined
        assert book.lineage.samples == 11
    with Book(tmp_path) as book:
        assert {line.record["what"] for line in book.lineage.pending} >= {"rate", "quarantine"}


@pytest.mark.parametrize("by", ["monitoring desk", "policy team", "monitor: me", "policy"])
def test_a_rewind_keeps_what_people_decided_whatever_they_are_called(tmp_path: Path, by: str) -> None:
    with start(tmp_path) as book:
        take(book, 4)
        take(book, 4)
        request(tmp_path, "rate", 1e-5, by=by)
        answer_requests(book)
        book.decide("stage", "tired", by="policy: the losses rest")
        book.rewind(1)
        assert [line.record["what"] for line in book.lineage.pending] == ["rate"]


def damage(folder: Path) -> None:
    path = folder / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"~")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"folder": "data/train/none"}, "none/manifest.json cannot be read"),
    ({"folder": "data/train/damaged"}, "tokens.bin is not as it was written"),
    ({"folder": "data/train/foreign"}, "was made with another tokenizer than the run's"),
    ({"folder": "data/train/broken"}, "tokens.bin is not as it was written"),  # its held-out part
    ({"folder": "data/heldout/papers"}, "folder must be data/train/papers, in the run's folder"),
    ({"folder": "../data/train/papers"}, "folder must be data/train/papers, in the run's folder"),
    ({"folder": "data/train/\0"}, "the name of a source must be letters"),
    ({"id": "7c9e"}, "rows, got '7c9e' of"),
    ({"rows": 900}, "of 900"),
    ({"domain": "all"}, "must be letters, digits, _, - and inner dots, and none of all"),
    ({"domain": ""}, "must be letters"),
]


def test_a_segment_that_the_run_could_not_read_is_not_opened(tmp_path: Path) -> None:
    with Book.create(tmp_path, seed=3, row_tokens=16) as book:
        book.open_segment("words", written(tmp_path, "data/train/words").folder)
        book.mix({"words": 1.0})
        papers = written(tmp_path)
        damage(written(tmp_path, "data/train/damaged").folder)
        written(tmp_path, "data/train/foreign", "other")
        written(tmp_path, "data/train/broken")
        damage(written(tmp_path, "data/heldout/broken").folder)
        value = {"domain": "p", "id": papers.id, "folder": "data/train/papers", "rows": papers.num_rows(16)}
        for change, reason in REFUSED:
            asked = {**value, **change}
            if "folder" in change and (tmp_path / asked["folder"] / "segment.json").is_file():
                segment = Segment(tmp_path / asked["folder"])
                asked.update(id=segment.id, rows=segment.num_rows(16))
            ask(tmp_path, json.dumps({"what": "open", "value": asked}))
            assert answer_requests(book) == [] and reason in rejected_requests(tmp_path)["x"], change
        ask(tmp_path, json.dumps({"what": "open", "value": value}))
        assert [line.record["what"] for line in answer_requests(book)] == ["open"]
        BatchStream(tmp_path, 16, "bytes").open(book.lineage.schedule.segments)
