"""From a step to its documents and from a text to its steps: the two directions agree, and poison is found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aquila2.heurimentor.data.segment import Row
from aquila2.heurimentor.ledger.book import Book
from aquila2.heurimentor.ledger.locate import RunData, suspects
from aquila2.heurimentor.ledger.trace import occurrence_loss, trace
from tests.aquila2.heurimentor.byte_tokenizer import ByteTokenizer

POISON = "ZQ!9 xX 7#k ~~ Vw8 @@ lkjh QQ zz 0101 %% Jp3 ^^ mNb && tT5 ** qQ2"


class Surprise:
    """A scorer that knows how often each token follows each other one in what it was shown."""

    def __init__(self, data: RunData, steps: Sequence[int]) -> None:
        self.counts = np.ones((259, 259))
        for step in steps:
            for row in data.rows(step):
                there = row.targets >= 0
                np.add.at(self.counts, (row.ids[there], row.targets[there]), 1)

    def losses(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        table = -np.log(self.counts / self.counts.sum(1, keepdims=True))
        ids, targets = np.stack([row.ids for row in rows]), np.stack([row.targets for row in rows])
        result: npt.NDArray[np.float64] = np.where(targets >= 0, table[ids, np.maximum(targets, 0)], 0.0)
        return result


def test_locate_lists_the_documents_that_were_fed(run: Path) -> None:
    data = RunData(run)
    for number in (1, 5, 9, 20):
        rows, located = data.rows(number), data.locate(number)
        assert len(rows) == 6 and {part.sample for part in located} == set(
            range(data.step(number).first, data.step(number).end)
        )
        for part in located:
            ids = rows[part.sample - data.step(number).first].ids[part.start : part.end].tolist()
            document = data.segments[part.segment].document_tokens(part.document.number).tolist()
            assert any(document[i : i + len(ids)] == ids for i in range(len(document)))
            assert part.document.id.startswith({"en": ("english.jsonl:",), "zh": ("chinese", "later")}[part.domain])
    with pytest.raises(ValueError, match=r"step must lie in 1 \.\. 20, got 21"):
        data.rows(21)


def test_trace_and_locate_agree(run: Path) -> None:
    data = RunData(run)
    trained: dict[tuple[str, int], set[int]] = {}
    for number in range(1, data.lineage.step + 1):
        for part in data.locate(number):
            trained.setdefault((part.document.id, part.row), set()).add(number)
    for text in ("document number 12 says", "第7篇文章", "后来才加进来的", "tT5 ** qQ2"):
        found = list(trace(data, text, ByteTokenizer()))
        assert found
        for occurrence in found:
            assert set(occurrence.steps) == trained.get((occurrence.document.id, occurrence.row), set())
            assert occurrence.exposures[-1].state in ("to come", "skipped", "trained")
    assert not list(trace(data, "stands nowhere", ByteTokenizer()))


def test_poison_is_found_by_its_loss_and_by_its_text(run: Path) -> None:
    data = RunData(run)
    occurrences = list(trace(data, POISON, ByteTokenizer()))
    assert {occurrence.document.id for occurrence in occurrences} == {"english.jsonl:38"}
    steps = sorted({step for occurrence in occurrences for step in occurrence.steps})
    assert steps
    scorer = Surprise(data, [step for step in range(1, 21) if step not in steps])
    ranking = suspects(data, steps[0], scorer)
    assert ranking[0].located.document.id == "english.jsonl:38"
    assert ranking[0].score > 2 * ranking[2].score
    after = Surprise(data, range(1, 21))
    longest = max(occurrences, key=lambda occurrence: occurrence.end - occurrence.start)
    before, later = occurrence_loss(data, longest, scorer), occurrence_loss(data, longest, after)
    assert before is not None and later is not None and later < before - 0.3


def test_quarantined_documents_are_neither_trained_nor_suspects(run: Path) -> None:
    data = RunData(run)
    (entry,) = {(o.segment, o.document.number) for o in trace(data, POISON, ByteTokenizer())}
    head = Book(run, None, cause="rewind")
    with head as book:
        book.decide("quarantine", {"segment": entry[0], "documents": [entry[1]]})
        for _ in range(20):
            book.commit(6, 0)
    data = RunData(run)
    for occurrence in trace(data, POISON, ByteTokenizer()):
        assert occurrence.steps == []
        states = {exposure.state for exposure in occurrence.exposures}
        assert "quarantined" in states
        for exposure in occurrence.exposures:
            if exposure.state == "quarantined" and exposure.step:
                hidden = [part for part in data.locate(exposure.step) if part.document.number == entry[1]]
                assert any(part.quarantined for part in hidden)
                ranking = suspects(data, exposure.step, Surprise(data, [1]))
                assert all(not suspect.located.quarantined for suspect in ranking)


def test_not_finite_losses_come_first(run: Path) -> None:
    data = RunData(run)

    class Broken(Surprise):
        def losses(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
            result = super().losses(rows)
            result[2, 0] = np.nan
            return result

    ranking = suspects(data, 3, Broken(data, [1]))
    assert ranking[0].located.sample == data.step(3).first + 2 and ranking[0].score == np.inf


def test_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no ledger"):
        RunData(tmp_path)
