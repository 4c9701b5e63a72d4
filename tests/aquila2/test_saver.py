"""Checkpoints beside the training: what was there at the call is saved, and whatever ends the run waits for it."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aquila2.heurimentor import hashing
from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import checkpoints, saver, trainer
from aquila2.training.checkpoints import checkpoint_fault, contents_of, list_checkpoints, step_of
from aquila2.training.options import Options
from aquila2.training.saver import Saver
from tests.aquila2.heurimentor.runs import losses_of, options_for, rows_of, write_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts")
    return tmp_path / "texts"


def saved_steps(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run / "checkpoints")]


def every(run: Path, texts: Path, steps: int, **more: Any) -> Options:
    return options_for(texts, run, run={"save_every": steps, "keep": 20, **more})


def at_write(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], object]) -> None:
    """Has `before` called with its step where a checkpoint is to be written."""
    write = checkpoints.save_checkpoint

    def writing(folder: Path, contents: checkpoints.Contents, *rest: Any) -> Path:
        before(contents.step)
        return write(folder, contents, *rest)

    monkeypatch.setattr(saver, "save_checkpoint", writing)


def test_the_moment_of_the_call_is_saved(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = trainer.train(options_for(texts, tmp_path / "run"))
    model, optimizer = result.model, torch.optim.AdamW(result.model.parameters())
    changed = threading.Event()
    at_write(monkeypatch, lambda step: step == 1 and changed.wait(60))
    state: dict[str, Any] = {"step": 1, "seen": [1]}
    with Saver(tmp_path / "saved", result.tokenizer, options_for(texts, tmp_path / "run")) as subject:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        weights = {name: tensor.clone() for name, tensor in checkpoints.weights_of(model).items()}
        moments = {name: value.clone() for name, value in contents_of(model, optimizer, state).moments.items()}
        path = subject.save(contents_of(model, optimizer, state))
        assert not path.exists()
        optimizer.step()
        state["seen"].append(2)
        changed.set()
        second = subject.save(contents_of(model, optimizer, {**state, "step": 2}))
        assert checkpoint_fault(path) is None  # the next one waits for it
    assert checkpoint_fault(second) is None and checkpoints.state_of(path) == {"step": 1, "seen": [1]}
    for name, expected in (("model", weights), ("optimizer", moments)):
        found = load_file(path / f"{name}.safetensors")
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    later = load_file(second / "model.safetensors")
    assert all(torch.equal(later[name], tensor) for name, tensor in checkpoints.weights_of(model).items())


def test_both_ways_of_saving_leave_the_same_files(texts: Path, tmp_path: Path) -> None:
    for way in ("async", "sync"):
        trainer.train(every(tmp_path / way, texts, 4, save=way))
    for step in (4, 8, 12):
        for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"):
            one, other = (tmp_path / way / "checkpoints" / f"step-{step:08d}" / name for way in ("async", "sync"))
            assert one.read_bytes() == other.read_bytes(), (step, name)
    with pytest.raises(ValueError, match=r"run\.save must be async or sync, got 'never'"):
        every(tmp_path, texts, 4, save="never")


@pytest.mark.parametrize("way", ["async", "sync"])
def test_a_full_disk_ends_the_run_which_can_be_continued(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def full(step: int) -> None:
        if step == 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as context:
        at_write(context, full)
        with pytest.raises(OSError, match="No space left on device"):
            trainer.train(every(run, texts, 3, save=way))
    assert saved_steps(run) == [3] and losses_of(run)[-1][0] in ((6, 7, 8, 9) if way == "async" else (6,))
    assert trainer.train(every(run, texts, 3, save=way)).progress.step == 12
    trainer.train(every(tmp_path / "calm", texts, 3))
    assert losses_of(run) == losses_of(tmp_path / "calm") and rows_of(run) == rows_of(tmp_path / "calm")
    assert not audit(run, data=True).faults


def test_a_failed_save_is_found_at_the_next_step(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Saver.save

    def failing(self: Saver, contents: checkpoints.Contents, last: bool = False, owned: bool = False) -> Path:
        path = save(self, contents, last, owned)
        assert self._under_way is not None
        self._under_way.exception(60)  # the thread is as quick as it can be
        return path

    def gone(step: int) -> None:
        raise FileNotFoundError(errno.ENOENT, "the folder has vanished")

    monkeypatch.setattr(Saver, "save", failing)
    at_write(monkeypatch, gone)
    with pytest.raises(FileNotFoundError, match="the folder has vanished"):
        trainer.train(every(tmp_path / "run", texts, 3))
    assert losses_of(tmp_path / "run")[-1][0] == 3


def test_what_ends_the_run_waits_for_the_save_and_goes_before_its_error(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        if self.progress.step == 3:
            ended.set()
            raise RuntimeError("the end")
        return one_step(self, *arguments)

    monkeypatch.setattr(trainer.Loop, "_one_step", stepping)
    with monkeypatch.context() as context:
        at_write(context, lambda step: ended.wait(60))
        with pytest.raises(RuntimeError, match="the end"):
            trainer.train(every(tmp_path / "run", texts, 3))
    assert saved_steps(tmp_path / "run") == [3]

    def full(step: int) -> None:
        ended.wait(60)
        raise OSError(errno.ENOSPC, "No space left on device")

    ended.clear()
    at_write(monkeypatch, full)
    with pytest.raises(RuntimeError, match="the end"):
        trainer.train(every(tmp_path / "other", texts, 3))
    assert "the last checkpoint was not written: [Errno 28] No space left on device" in capfd.readouterr().err


def test_a_rewind_waits_for_the_checkpoint_that_it_goes_back_to(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = threading.Event()
    update, verdict = trainer.Loop._update, trainer.Loop._verdict

    def updating(self: trainer.Loop, order: Any, *rest: Any) -> Any:
        whole = self.loss
        if order.first == 16:
            self.loss = lambda *arguments, **more: whole(*arguments, **more) * float("nan")
        try:
            return update(self, order, *rest)
        finally:
            self.loss = whole

    def judging(self: trainer.Loop, *arguments: Any) -> Any:
        judged.set()
        return verdict(self, *arguments)

    monkeypatch.setattr(trainer.Loop, "_update", updating)
    monkeypatch.setattr(trainer.Loop, "_verdict", judging)
    at_write(monkeypatch, lambda step: step == 4 and judged.wait(60))
    options = options_for(texts, tmp_path / "run", run={"save_every": 4, "keep": 20}, monitor={"not_finite": "rewind"})
    assert trainer.train(options).progress.step == 11
    assert judged.is_set() and saved_steps(tmp_path / "run") == [11, 8, 4]
    assert not audit(tmp_path / "run", data=True).faults


def priorities_of_a_thread(*wanted: int) -> list[int]:
    """What a thread gets that asks for these, one after the other: not only root may raise one, nor may every root."""
    got = []

    def ask() -> None:
        for priority in wanted:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), priority)
            got.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return got


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")
def test_the_writer_gives_way_to_the_steps_until_it_is_waited_for(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities: dict[str, int] = {}
    hash_block, prefer = hashing.hash_block, saver._prefer_writers
    hashes, waits = threading.Event(), threading.Event()

    def note(what: str) -> None:
        priorities[what] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def hashed(*arguments: Any) -> str:
        note("hashing")
        hashes.set()
        waits.wait(60)
        note("hashing, waited for")
        return hash_block(*arguments)

    def preferring() -> None:
        prefer()
        waits.set()

    result = trainer.train(options_for(texts, tmp_path / "run"))
    optimizer = torch.optim.AdamW(result.model.parameters())
    note("steps")
    lowest, raised = priorities_of_a_thread(19, priorities["steps"])
    at_write(monkeypatch, lambda step: note("writing"))
    monkeypatch.setattr(hashing, "hash_block", hashed)
    monkeypatch.setattr(saver, "_prefer_writers", preferring)
    with Saver(tmp_path / "saved", result.tokenizer, options_for(texts, tmp_path / "run")) as subject:
        for step in (1, 2):
            hashes.clear()
            waits.clear()
            subject.save(contents_of(result.model, optimizer, {"step": step}))
            assert hashes.wait(60)
            assert priorities["writing"] == priorities["hashing"] == lowest
            subject.wait()
            assert priorities["hashing, waited for"] == raised
        subject.save(contents_of(result.model, optimizer, {"step": 3}), last=True)  # nothing is trained meanwhile
    assert priorities["writing"] == priorities["hashing"] == priorities["steps"]


def test_threads_that_have_just_been_started_are_preferred_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    writer, late = (threading.Thread(name=name) for name in (saver.NAME, f"{hashing.THREADS}_0"))
    ids: dict[threading.Thread, int | None] = {writer: 7, late: None}
    monkeypatch.setattr(threading.Thread, "native_id", property(lambda thread: ids[thread]))
    # The second is started while the first is raised, and has no id before somebody waits for it.
    monkeypatch.setattr(saver, "_writers", lambda: [writer, late] if asked else [writer])
    monkeypatch.setattr(saver, "_set_priority", lambda native_id, priority: asked.append(native_id))
    monkeypatch.setattr(saver.time, "sleep", lambda seconds: ids.update({late: 8}))
    monkeypatch.setattr(saver.sys, "platform", "linux")
    saver._prefer_writers()
    assert asked == [7, 8]


def test_a_machine_that_forbids_priorities_saves_all_the_same(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    assert trainer.train(every(tmp_path / "run", texts, 4)).progress.step == 12
    assert saved_steps(tmp_path / "run") == [12, 8, 4]


def test_the_last_save_takes_no_copy(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copying(*arguments: Any) -> Any:
        pytest.fail("the last checkpoint was copied")

    monkeypatch.setattr(Saver, "_copies", copying)
    trainer.train(options_for(texts, tmp_path / "run"))
    assert saved_steps(tmp_path / "run") == [12]


def test_a_machine_without_memory_for_the_copy_is_told_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*arguments: Any, **more: Any) -> torch.Tensor:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(saver.torch, "empty", refusing)
    with pytest.raises(ValueError, match=r"no memory for its copy .*\(not enough memory\); run\.save sync needs none"):
        saver._memory_like(torch.ones(3))
