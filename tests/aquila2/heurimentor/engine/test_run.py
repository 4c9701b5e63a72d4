"""A real run and its ledger: crashes are replayed, decisions are obeyed at their steps, the audit proves all of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from aquila2.heurimentor.data.apportionment import UNITS
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.control import rejected_requests, request
from aquila2.training import trainer
from aquila2.training.checkpoints import head_of, list_checkpoints
from aquila2.training.metrics import read_metrics
from tests.aquila2.heurimentor.runs import lineage_of, losses_of, options_for, rows_of, write_texts

DECISIONS = [
    {"after": 3, "mixture": {"words": 1.0, "sums": 1.0}},
    {"after": 5, "skip": 3},
    {"after": 6, "lr": 0.002},
    {"after": 6, "stage": "second"},
    {"after": 7, "batch": 6},
]


class Crash(Exception):
    pass


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts")
    return tmp_path / "texts"


def crash_after(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Makes the trainer die once after each of these steps."""
    left = list(steps)
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> dict[str, float]:
        measured = one_step(self, *arguments)
        if self.progress.step in left:
            left.remove(self.progress.step)
            raise Crash
        return measured

    monkeypatch.setattr(trainer.Loop, "_one_step", stepping)


def test_the_ledger_proves_a_run_with_crashes_and_decisions(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {"decisions": DECISIONS, "run": {"save_every": 2, "eval_every": 4}}
    trainer.train(options_for(texts, tmp_path / "whole", **sections))
    with monkeypatch.context() as context:
        crash_after(context, 1, 5, 7)
        for _ in range(3):
            with pytest.raises(Crash):
                trainer.train(options_for(texts, tmp_path / "cut", **sections))
        trainer.train(options_for(texts, tmp_path / "cut", **sections))
    for name, undone in (("whole", 0), ("cut", 3)):
        result = audit(tmp_path / name, data=True)
        assert not result.faults and result.undone == undone and len(result.resumes) == undone
        assert result.digests == result.steps == lineage_of(tmp_path / name).step
        assert sum(use.skipped for use in result.segments) == 3
        assert result.samples == 48 and result.heads == len(list_checkpoints(tmp_path / name / "checkpoints"))
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    lineage = lineage_of(tmp_path / "whole")
    assert [step.samples for step in lineage.steps] == [4] * 7 + [6, 6, 5]
    rates = [record["lr"] for record in read_metrics(tmp_path / "whole") if record["kind"] == "train"]
    assert rates[5] > 0.005 > 0.002 > rates[6]
    first, later = lineage.drawn(0, 12), lineage.drawn(15, 33)
    assert [end - start for _, start, end in first] == [9, 3]
    assert abs(later[0][2] - later[0][1] - (later[1][2] - later[1][1])) <= 2


def test_requests_are_obeyed_at_a_step_and_again_after_a_crash(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = options_for(texts, run, run={"save_every": 4})
    crash_after(monkeypatch, 5)
    with pytest.raises(Crash):
        trainer.train(options)
    request(run, "mixture", {"words": UNITS // 2, "sums": UNITS // 2}, by="a person")
    request(run, "rate", 0.001, after=8)
    request(run, "rate", 0.001, after=2)
    request(run, "mixture", {"nobody": UNITS})
    trainer.train(options)
    said = capsys.readouterr().err
    assert "after step 4: the mixture is words 50.0%, sums 50.0%, asked for by a person" in said
    assert "a request was refused: " in said and "takes effect after step 2, and step 4 is done" in said
    assert len(rejected_requests(run)) == 2 and not list((run / "control").glob("*.json"))
    before = losses_of(run)
    # The same again from the checkpoint of step 4: the decisions come from the log now.
    for checkpoint in list_checkpoints(run / "checkpoints")[:2]:
        shutil.rmtree(checkpoint)
    trainer.train(options)
    assert losses_of(run) == before
    result = audit(run, data=True)
    assert not result.faults and (result.steps, result.undone) == (12, 1 + 8)


def test_a_step_is_in_the_ledger_before_the_next_one(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    update = trainer.Loop._update
    seen: list[int] = []

    def looking(self: trainer.Loop, *arguments: Any) -> Any:
        seen.append(sum(line.record["kind"] == "step" for line in scan(run / NAME).lines))
        return update(self, *arguments)

    monkeypatch.setattr(trainer.Loop, "_update", looking)
    trainer.train(options_for(texts, run))
    assert seen == list(range(12))
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    head = head_of(checkpoint)
    assert head is not None and head.step == 12 and head.offset == (run / NAME).stat().st_size


def test_a_changed_or_missing_ledger_stops_the_run(texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = options_for(texts, run, run={"save_every": 4})
    trainer.train(options)
    for checkpoint in list_checkpoints(run / "checkpoints")[:1]:
        shutil.rmtree(checkpoint)
    ledger = (run / NAME).read_bytes()
    (run / NAME).write_bytes(ledger.replace(b'"count":4', b'"count":5', 1))
    with pytest.raises(ValueError, match="is not as it was written"):
        trainer.train(options)
    (run / NAME).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no ledger\.jsonl"):
        trainer.train(options)
    (run / NAME).write_bytes(ledger)
    assert trainer.train(options).progress.step == 12


def test_a_beginning_that_was_cut_off_is_made_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr("aquila2.heurimentor.ledger.book.Book.mix", lambda *arguments: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            trainer.train(options_for(texts, run))
    assert (run / NAME).is_file()
    trainer.train(options_for(texts, run))
    result = audit(run)
    assert not result.faults and result.resumes == []


def test_sources_of_one_domain_share_its_samples(texts: Path, tmp_path: Path) -> None:
    sources = [
        {"name": "a", "path": str(texts / "words.jsonl"), "domain": "text"},
        {"name": "b", "path": str(texts / "sums.jsonl"), "domain": "text"},
    ]
    result = trainer.train(options_for(texts, tmp_path / "run", data={"sources": sources}))
    assert list(result.heldout_after) == ["text", "all"]
    intervals = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "heldout_interval"]
    assert intervals[-1]["text"] == result.heldout_after["text"].half > 0
    uses = audit(tmp_path / "run").segments
    assert {use.segment.domain for use in uses} == {"text"}
    assert uses[0].drawn * uses[1].segment.rows == pytest.approx(uses[1].drawn * uses[0].segment.rows, rel=0.15)


def test_restarts_before_the_first_checkpoint_leave_one_measurement(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    crash_after(monkeypatch, 1, 1, 2, 1, 3, 1)
    for _ in range(6):
        with pytest.raises(Crash):
            trainer.train(options_for(texts, run))
    trainer.train(options_for(texts, run))
    trainer.train(options_for(texts, tmp_path / "calm"))
    assert found(run, "heldout") == found(tmp_path / "calm", "heldout") and losses_of(run) == losses_of(
        tmp_path / "calm"
    )


def found(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run) if record["kind"] == kind]


def test_a_continued_run_finds_what_it_would_have_found(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "run": {"eval_every": 1, "save_every": 2},
        "decisions": [
            {"after": 0, "stage": "first"},
            {"after": 3, "lr": 0.0},
            {"after": 8, "stage": "second"},
            {"after": 11, "stage": "third"},
        ],
    }
    trainer.train(options_for(texts, tmp_path / "whole", **sections))
    with monkeypatch.context() as context:
        crash_after(context, 7, 9)
        for _ in range(2):
            with pytest.raises(Crash):
                trainer.train(options_for(texts, tmp_path / "cut", **sections))
    trainer.train(options_for(texts, tmp_path / "cut", **sections))
    alerts = []
    for name in ("whole", "cut"):
        by_losses = [r for r in found(tmp_path / name, "alert") if r["alert"] in ("no_better", "plateau", "overfit")]
        alerts.append([(record["step"], record["alert"], record["subject"]) for record in by_losses])
    assert alerts[0] == alerts[1]
    assert [alert for alert in alerts[0] if alert[1] == "no_better"] == [(11, "no_better", "second")]
