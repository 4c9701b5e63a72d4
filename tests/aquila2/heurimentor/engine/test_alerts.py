"""A step that the monitor objects to: it names step, rank and documents, and the run warns, skips or stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.control import request
from aquila2.heurimentor.ledger.locate import RunData
from aquila2.training import trainer
from aquila2.training.checkpoints import checkpoint_fault
from aquila2.training.metrics import read_metrics
from tests.aquila2.heurimentor.runs import lineage_of, losses_of, options_for, write_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts")
    return tmp_path / "texts"


def poison_sample(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiplies the loss of the batch that a sample is in."""
    update = trainer.Loop._update

    def poisoned(self: trainer.Loop, order: Any, places: range, part: Any, waited: float) -> Any:
        whole = self.loss
        calls = iter(range(len(part.batches)))

        def loss(*arguments: Any, **options: Any) -> Any:
            first = order.first + places.start + next(calls) * self.options.batch.micro
            factor = next((f for sample, f in factors.items() if first <= sample < first + 2), 1.0)
            return whole(*arguments, **options) * factor

        self.loss = loss
        try:
            return update(self, order, places, part, waited)
        finally:
            self.loss = whole

    monkeypatch.setattr(trainer.Loop, "_update", poisoned)


def test_a_skipped_step_is_a_decision_and_stays_one(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as context:
        poison_sample(context, {22: math.nan})
        with pytest.raises(FloatingPointError, match=r"step 6 has the gradient norm nan .*; rank 0 fares worst"):
            trainer.train(options_for(texts, tmp_path / "stopped"))
        trainer.train(options_for(texts, run, monitor={"not_finite": "skip"}, run={"save_every": 4}))
    assert "monitor, step 6: the loss is nan (rank 0, documents " in capsys.readouterr().err
    result = audit(run, data=True)
    assert not result.faults and (result.steps, result.samples) == (11, 48)
    assert sum(use.skipped for use in result.segments) == 4
    (skip,) = [line.record for line, _ in lineage_of(run).applied if line.record["what"] == "skip"]
    assert skip["after"] == 5 and skip["by"] == "monitor: the loss is nan"
    (alert,) = [record for record in read_metrics(run) if record["kind"] == "alert"]
    assert (alert["step"], alert["alert"], alert["rank"]) == (6, "not_finite", 0)
    # The documents are those of the second batch of the samples 20 to 23.
    data = RunData(run)
    draws = data.lineage.schedule.draws(22, 2)
    rows = [data.segments[s].row(r, 24) for s, r in zip(draws.segments.tolist(), draws.rows.tolist(), strict=True)]
    names = {
        f"{data.lineage.schedule.segments[s].domain}/{data.segments[s].document(piece.document).id}"
        for s, row in zip(draws.segments.tolist(), rows, strict=True)
        for piece in row.pieces
        if piece.document >= 0
    }
    assert set(alert["documents"]) == names
    # A continued run skips it again, now that nothing is wrong with it, because the log says so.
    expected = losses_of(run)
    for checkpoint in sorted((run / "checkpoints").glob("step-*"))[1:]:
        checkpoint.rename(checkpoint.with_suffix(".away"))
    trainer.train(options_for(texts, run, monitor={"not_finite": "skip"}, run={"save_every": 4}))
    assert losses_of(run) == expected and not audit(run, data=True).faults


def test_a_poisoned_sample_stays_skipped_where_its_step_has_become_another(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    sections: dict[str, Any] = {"monitor": {"not_finite": "skip"}, "run": {"save_every": 4}}
    poison_sample(monkeypatch, {22: math.nan})
    trainer.train(options_for(texts, run, **sections))
    for checkpoint in sorted((run / "checkpoints").glob("step-*"))[1:]:
        checkpoint.rename(checkpoint.with_suffix(".away"))
    request(run, "batch", 3)  # from step 4 on, which ends before sample 16
    trainer.train(options_for(texts, run, **sections))
    assert not [record for record in read_metrics(run) if record["kind"] == "alert"]  # the poison was not met again
    lineage = lineage_of(run)
    assert [(step.first, step.samples) for step in lineage.steps[4:8]] == [(16, 3), (19, 1), (24, 3), (27, 3)]
    result = audit(run, data=True)
    assert not result.faults and result.samples == 48 and sum(use.skipped for use in result.segments) == 4


def test_a_run_of_broken_steps_stops(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_sample(monkeypatch, dict.fromkeys(range(0, 48, 4), math.inf))
    with pytest.raises(FloatingPointError, match=r"step 1 .*, the 9th in a row"):
        trainer.train(options_for(texts, tmp_path / "run", monitor={"not_finite": "skip"}))


def test_a_rewind_goes_back_to_a_checkpoint_and_skips_to_the_end_of_the_step(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    sections: dict[str, Any] = {
        "train": {"samples": 120},
        "run": {"save_every": 8, "eval_every": 10},
        "monitor": {"spike": "rewind"},
        "optimizer": {"lr": 1e-3},
    }
    trainer.train(options_for(texts, plain, **sections, decisions=[{"after": 16, "skip": 32}]))
    with monkeypatch.context() as context:
        poison_sample(context, {95: 40.0})
        trainer.train(options_for(texts, run, **sections))
    assert (
        "the run goes back from step 24 to step 16 and skips 32 samples (rank 0, documents " in capsys.readouterr().err
    )
    # As if somebody had known it, to the last bit.
    assert losses_of(run) == losses_of(plain) and len(losses_of(run)) == 22
    result = audit(run, data=True)
    assert not result.faults and (result.steps, result.undone) == (22, 7)
    assert sum(use.skipped for use in result.segments) == 32
    assert [line.record["cause"] for line in lineage_of(run).resumes] == ["rewind"]
    (alert,) = [record for record in read_metrics(run) if record.get("alert") == "rewind"]
    assert (alert["step"], alert["kind"], alert["subject"], alert["rank"]) == (16, "alert", "loss", 0)
    assert alert["documents"]
    for checkpoint in sorted((run / "checkpoints").glob("step-*"))[1:]:
        checkpoint.rename(checkpoint.with_suffix(".away"))
    trainer.train(options_for(texts, run, **sections))
    assert losses_of(run) == losses_of(plain) and not audit(run, data=True).faults


def test_a_rewind_ends(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_sample(monkeypatch, dict.fromkeys(range(8, 48, 4), math.nan))
    sections: dict[str, Any] = {"monitor": {"not_finite": "rewind"}}
    with pytest.raises(FloatingPointError, match=r"step 3 .*, and has no checkpoint to go back to"):
        trainer.train(options_for(texts, tmp_path / "none", **sections))
    with pytest.raises(FloatingPointError, match=r"step 3 .*, the 4th in a row, and went back 3 times"):
        trainer.train(options_for(texts, tmp_path / "run", run={"save_every": 2}, **sections))
    assert not audit(tmp_path / "run", data=True).faults


def loss_rises(monkeypatch: pytest.MonkeyPatch, samples: range) -> None:
    """Adds to the loss of the steps that these samples are in, for who looks at applied steps."""
    update = trainer.Loop._update

    def rising(self: trainer.Loop, order: Any, *rest: Any) -> Any:
        reports, loss, *more = update(self, order, *rest)
        return reports, loss + 3.0 * (order.first in samples), *more

    monkeypatch.setattr(trainer.Loop, "_update", rising)


DIVERGING: dict[str, Any] = {
    "batch": {"micro": 2, "size": 2},
    "train": {"samples": 104},
    "monitor": {"window": 16, "divergence": "rewind"},
    "optimizer": {"lr": 1e-3},
}


def test_a_divergence_goes_back_to_before_it(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    trainer.train(options_for(texts, plain, **DIVERGING, decisions=[{"after": 30, "skip": 36}]))
    capsys.readouterr()
    with monkeypatch.context() as context:
        loss_rises(context, range(64, 96))
        trainer.train(options_for(texts, run, **DIVERGING, run={"save_every": 10, "keep": 10}))
    said = capsys.readouterr().err
    assert "monitor.divergence rewind goes back at least" not in said  # which kept enough
    assert "the loss rises" in said and "the run goes back from step 48 to step 30 and skips 36 samples" in said
    assert "step-00000040.undone: the loss rises since step 32" in " ".join(said.split())
    assert losses_of(run) == losses_of(plain) and len(losses_of(run)) == 34
    result = audit(run, data=True)
    assert not result.faults and (result.steps, result.undone) == (34, 18)


def test_what_a_run_saves_at_its_end_is_no_checkpoint_of_undone_steps(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_45 = iter(["late", "asked to stop"])  # before the run goes back from step 48, and when it is there again
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        measured = one_step(self, *arguments)
        turn = next(at_45) if self.progress.step == 45 else ""
        monkeypatch.setattr(trainer.Loop, "_is_late", lambda self: turn == "late")
        self.asked_to_stop = turn == "asked to stop"
        return measured

    loss_rises(monkeypatch, range(64, 96))
    monkeypatch.setattr(trainer.Loop, "_one_step", stepping)
    options = {**DIVERGING, "train": {"samples": 140}}
    result = trainer.train(options_for(texts, tmp_path / "run", **options, run={"save_every": 30, "keep": 10}))
    assert (result.progress.step, result.checkpoint.name) == (45, "step-00000045")
    assert checkpoint_fault(result.checkpoint) is None


def test_a_divergence_without_a_checkpoint_before_it_ends_the_run(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss_rises(monkeypatch, range(64, 96))
    result = trainer.train(options_for(texts, tmp_path / "run", **DIVERGING, run={"save_every": 7, "keep": 2}))
    assert (result.progress.step, result.stopped_by) == (48, trainer.ASKED)
    said = capsys.readouterr().err
    assert said.startswith(
        "monitor.divergence rewind goes back at least monitor.window (16) steps, and run.keep 2 with"
    )
    assert "and no whole checkpoint is from before step 33), asked for by monitor" in " ".join(said.split())


@pytest.mark.parametrize("policy", ["warn", "skip"])
def test_a_spike(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    poison_sample(monkeypatch, {95: 40.0})
    options = options_for(
        texts, tmp_path / "run", train={"samples": 100}, monitor={"spike": policy}, optimizer={"lr": 1e-3}
    )
    trainer.train(options)
    assert "monitor, step 24: the loss jumps to " in capsys.readouterr().err
    lineage = lineage_of(tmp_path / "run")
    assert (lineage.step, lineage.schedule.is_skipped(95)) == ((25, False) if policy == "warn" else (24, True))
