"""How runs end: by a decision, by a finding, before the first step; and who starts them again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from aquila2.cli import main
from aquila2.heurimentor import commands
from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.data.stream import BatchStream
from aquila2.heurimentor.ledger import control
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import Book
from aquila2.heurimentor.monitor import detectors
from aquila2.training import trainer
from aquila2.training.checkpoints import checkpoint_fault, list_checkpoints, step_of
from aquila2.training.metrics import read_metrics
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import lineage_of, losses_of, options_for, rows_of, run_python, write_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts")
    return tmp_path / "texts"


def not_finite_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    update = trainer.Loop._update

    def updating(self: trainer.Loop, order: Any, *rest: Any) -> Any:
        if order.step == step:
            whole = self.loss
            self.loss = lambda *arguments, **more: whole(*arguments, **more) * float("nan")
            try:
                return update(self, order, *rest)
            finally:
                self.loss = whole
        return update(self, order, *rest)

    monkeypatch.setattr(trainer.Loop, "_update", updating)


def test_a_finding_that_stops_the_run_loses_no_step(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(texts, tmp_path / "run")  # as by default: no regular checkpoints, not_finite stops
    with monkeypatch.context() as context:
        not_finite_at(context, 6)
        with pytest.raises(FloatingPointError, match="step 6 has the gradient norm nan"):
            trainer.train(options)
        assert [step_of(path) for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [5]
        # torchrun would start it over and over.
        context.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        with pytest.raises(ValueError, match="has stopped by itself and is not started again: step 6 has"):
            trainer.train(options)
    assert trainer.train(options).progress.step == 12
    assert not (tmp_path / "run" / "stopped.txt").exists()
    trainer.train(options_for(texts, tmp_path / "calm"))
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "calm")


def test_a_decision_ends_the_run_and_another_start_goes_on(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = options_for(texts, tmp_path / "run", decisions=[{"after": 7, "stop": "planned"}])
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        if self.progress.step == 3:
            assert main(["mentor", "set", str(tmp_path / "run"), "stop=enough for today"]) == 0
        return one_step(self, *arguments)

    with monkeypatch.context() as context:
        context.setattr(trainer.Loop, "_one_step", stepping)
        result = trainer.train(options)
    assert (result.progress.step, result.stopped_by, step_of(result.checkpoint)) == (3, trainer.ASKED, 3)
    assert "the run saves and ends (enough for today)" in capfd.readouterr().err
    assert trainer.train(options).progress.step == 7
    assert trainer.train(options).progress.step == 12
    trainer.train(options_for(texts, tmp_path / "calm"))
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "calm")
    assert not audit(tmp_path / "run", data=True).faults


def test_a_finding_may_end_the_run_and_another_start_goes_on(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, Any] = {"monitor": {"plateau": "stop"}, "run": {"eval_every": 1}}
    options = options_for(texts, tmp_path / "run", **sections)
    sentences = iter([None, None, None, "no better", *[None] * 40])
    monkeypatch.setattr(detectors, "plateau", lambda heldout: next(sentences))
    result = trainer.train(options)
    assert (result.progress.step, result.stopped_by, step_of(result.checkpoint)) == (3, trainer.ASKED, 3)
    assert "the run saves and ends (plateau: no better), asked for by monitor" in " ".join(
        capfd.readouterr().err.split()
    )
    assert trainer.train(options).progress.step == 12
    trainer.train(options_for(texts, tmp_path / "calm"))
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "calm")
    assert not audit(tmp_path / "run", data=True).faults


def test_torchrun_does_not_undo_a_decision_to_stop(texts: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(
        dump_options(options_for(texts, run, decisions=[{"after": 3, "stop": "a"}, {"after": 5, "stop": "b"}]))
    )
    assert main(["train", str(config)]) == 0 and lineage_of(run).step == 3
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    run_python(*torchrun, "-m", "aquila2.cli", "train", config)
    assert lineage_of(run).step == 5
    assert main(["train", str(config)]) == 0 and lineage_of(run).step == 12


def test_a_run_may_be_stopped_before_its_first_step(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(texts, tmp_path / "run", monitor={"not_finite": "skip"})
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return one_step(self, *arguments)

    with monkeypatch.context() as context:
        not_finite_at(context, 1)
        context.setattr(trainer.Loop, "_one_step", stepping)
        result = trainer.train(options)
    assert (result.progress.step, result.stopped_by) == (0, signal.SIGTERM)
    assert checkpoint_fault(result.checkpoint) is None
    assert trainer.train(options).progress.step == 11
    assert rows_of(tmp_path / "run") and not audit(tmp_path / "run", data=True).faults


def test_a_run_goes_on_with_what_another_machine_has_room_for(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        if self.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(self, *arguments)

    with monkeypatch.context() as context:
        context.setattr(trainer.Loop, "_one_step", stepping)
        assert trainer.train(options_for(texts, run, batch={"micro": 4})).progress.step == 6
    smaller: dict[str, Any] = {"batch": {"micro": 1}, "train": {"activation_checkpointing": True}}
    assert trainer.train(options_for(texts, run, **smaller)).progress.step == 12
    trainer.train(options_for(texts, tmp_path / "calm", batch={"micro": 4}))
    assert rows_of(run) == rows_of(tmp_path / "calm") and not audit(run, data=True).faults
    assert losses_of(run)[:6] == losses_of(tmp_path / "calm")[:6]
    for (_, loss, _), (_, other, _) in zip(losses_of(tmp_path / "calm"), losses_of(run), strict=True):
        assert other == pytest.approx(loss, rel=2e-3)


def test_checkpoints_are_made_by_time(texts: Path, tmp_path: Path) -> None:
    trainer.train(options_for(texts, tmp_path / "run", run={"save_minutes": 1e-9, "keep": 20}))
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 12
    trainer.train(options_for(texts, tmp_path / "never", run={"save_minutes": 0, "keep": 20}))
    assert len(list_checkpoints(tmp_path / "never" / "checkpoints")) == 1


def test_a_source_that_comes_later_is_measured(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = texts / "more.jsonl"
    more.write_text("".join(f'{{"text": "more, {i}, and again {i} times more"}}\n' for i in range(60)))
    run = tmp_path / "run"
    options = options_for(texts, run, run={"eval_every": 4, "save_every": 4})
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        if self.progress.step == 5 and not (run / "data" / "train" / "more").exists():
            add = ["mentor", "add", str(run), "more", str(more), "--mixture", "words:1,sums:1,more:2"]
            assert main([*add[:-1], "words:1,nonsense:2"]) == 2 and not (run / "data" / "train" / "more").exists()
            assert main(add) == 0
            assert main(add) == 2 and (run / "data" / "train" / "more").exists()
        return one_step(self, *arguments)

    with monkeypatch.context() as context:
        context.setattr(trainer.Loop, "_one_step", stepping)
        result = trainer.train(options)
    heldout = [record for record in read_metrics(run) if record["kind"] == "heldout"]
    assert ["more" in record for record in heldout] == [record["step"] >= 6 for record in heldout]
    last = heldout[-1]
    assert last["all"] == pytest.approx((last["words"] + last["sums"] + last["more"]) / 3)
    # And by a run that is continued, or at its end.
    assert trainer.train(options).heldout_after["more"] == pytest.approx(result.heldout_after["more"])


def test_the_folder_of_a_refused_source_is_not_taken_for_another(texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer.train(options_for(texts, run))
    wrong, right = texts / "wrong.jsonl", texts / "right.jsonl"
    wrong.write_text('{"text": "the wrong text"}\n' * 9)
    right.write_text('{"text": "what was meant"}\n' * 9)
    assert main(["mentor", "add", str(run), "papers", str(wrong), "--after", "0"]) == 2
    assert not (run / "data" / "train" / "papers").exists() and not (run / "data" / "heldout" / "papers").exists()
    assert main(["mentor", "add", str(run), "papers", str(right)]) == 0
    assert "right.jsonl" in (run / "data" / "train" / "papers" / "segment.json").read_text()
    for name in ("../../etc", "zh/wiki", "all", "step", "a,b", ""):
        assert main(["mentor", "add", str(run), name, str(right)]) == 2


@pytest.mark.parametrize("at", ["the second request", "the first word"])
def test_an_interrupted_addition_leaves_what_its_request_names(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    run, more = tmp_path / "run", texts / "more.jsonl"
    more.write_text('{"text": "more of it"}\n' * 30)
    trainer.train(options_for(texts, run, train={"samples": 24}))
    asked: list[str] = []

    def asking(folder: str, what: str, *arguments: Any, **more: Any) -> Any:
        if asked and at == "the second request":
            raise KeyboardInterrupt
        asked.append(what)
        return control.request(folder, what, *arguments, **more)

    def saying(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(commands, "request", asking)
        context.setattr(commands, "print", saying, raising=False)
        assert main(["mentor", "add", str(run), "more", str(more), "--mixture", "words:1,more:1"]) == 130
    assert asked == ["open", "mixture"][: 1 if at == "the second request" else 2]
    with Book(run) as book:
        assert [line.record["what"] for line in control.answer_requests(book)] == asked
        BatchStream(run, 24, Segment(run / "data/train/words").tokenizer).open(book.lineage.schedule.segments)


def test_two_additions_of_one_name_do_not_meet(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, more = tmp_path / "run", texts / "more.jsonl"
    more.write_text('{"text": "more of it"}\n' * 30)
    trainer.train(options_for(texts, run))
    add = ["mentor", "add", str(run), "more", str(more)]
    prepare_source, inside = commands.prepare_source, []

    def preparing(*arguments: Any) -> Any:
        if not inside:
            inside.append(main(add))
        return prepare_source(*arguments)

    monkeypatch.setattr(commands, "prepare_source", preparing)
    assert main(add) == 0 and inside == [2]
    assert "name 'more' is being added to" in capsys.readouterr().err
    (wanted,) = control.waiting_requests(run)
    assert Segment(run / wanted["value"]["folder"]).id == wanted["value"]["id"]
