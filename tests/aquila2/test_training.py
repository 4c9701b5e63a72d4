"""A run: it learns, it can be cut at any step and goes on with the same bits, and it survives broken checkpoints."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2 import Aquila2Tokenizer, from_pretrained
from aquila2.heurimentor import hashing, verified
from aquila2.training import trainer
from aquila2.training.checkpoints import (
    checkpoint_fault,
    checkpoint_to_continue,
    contents_of,
    list_checkpoints,
    newest_valid,
    save_checkpoint,
)
from aquila2.training.curve import write_loss_curve
from aquila2.training.lock import only_run_in
from aquila2.training.metrics import MetricsLog, read_metrics
from aquila2.training.optim import make_adamw
from aquila2.training.options import OptimizerOptions, Options, dump_options, parse_options


def options_for(texts: Path, folder: Path, **sections: dict[str, Any]) -> Options:
    """A tiny run of 12 steps; `sections` override."""
    entries: dict[str, dict[str, Any]] = {
        "model": {"preset": "tiny"},
        "tokenizer": {"vocab_size": 304},
        "data": {"sources": [{"name": "texts", "path": str(texts)}], "seq_len": 32, "heldout": 0.2, "heldout_rows": 4},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_samples": 8},
        "batch": {"micro": 2, "size": 4},
        "train": {"samples": 48},
        "run": {"folder": str(folder), "tensorboard": False, "progress": False, "keep": 10},
    }
    for name, values in sections.items():
        entries[name] = {**entries[name], **values}
    return parse_options(entries)


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(folder) if r["kind"] == "train"]


def test_it_learns(text_folder: Path, tmp_path: Path) -> None:
    result = trainer.train(options_for(text_folder, tmp_path / "run", train={"samples": 120}))
    assert result.heldout_after["texts"].mean < result.heldout_before["texts"].mean - 1.0
    assert result.stopped_by is None
    assert (result.progress.step, result.progress.samples, result.progress.tokens) == (30, 120, 120 * 32)
    # The checkpoint is a model folder.
    loaded = from_pretrained(result.checkpoint)
    ids = torch.tensor([Aquila2Tokenizer.from_pretrained(result.checkpoint).encode("The quick", bos=True)])
    assert torch.equal(loaded(ids).logits, result.model.eval()(ids).logits)
    write_loss_curve(read_metrics(tmp_path / "run"), tmp_path / "loss.svg", "a <run>")
    picture = (tmp_path / "loss.svg").read_text()
    assert picture.startswith("<svg") and "a &lt;run&gt;" in picture and "held out: texts" in picture


@pytest.mark.parametrize("schedule", [{"kind": "cosine"}, {"kind": "wsd", "decay_samples": 20}], ids=["cosine", "wsd"])
def test_interrupted_and_continued_losses_are_bitwise_equal(
    text_folder: Path, tmp_path: Path, schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, dict[str, Any]] = {
        "schedule": {"warmup_samples": 8, **schedule},
        "batch": {"micro": 2, "size": 6, "ramp_start": 2, "ramp_increment": 2, "ramp_samples": 16},
    }
    trainer.train(options_for(text_folder, tmp_path / "whole", **sections))
    expected = losses_of(tmp_path / "whole")

    class Interrupted(Exception):
        pass

    # First a signal, which saves; then a crash between two checkpoints, whose steps are done again.
    options = options_for(text_folder, tmp_path / "cut", **sections, run={"save_every": 4})
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> dict[str, float]:
        measured = one_step(self, *arguments)
        if self.progress.step == 3 and not list_checkpoints(tmp_path / "cut" / "checkpoints"):
            os.kill(os.getpid(), signal.SIGINT)
        if self.progress.step == 6 and not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            raise Interrupted
        return measured

    monkeypatch.setattr(trainer.Loop, "_one_step", stepping)
    first = trainer.train(options)
    assert (first.stopped_by, first.progress.step) == (signal.SIGINT, 3)
    with pytest.raises(Interrupted):
        trainer.train(options)
    last = trainer.train(options)
    assert last.stopped_by is None
    assert losses_of(tmp_path / "cut") == expected
    assert last.heldout_before == trainer.train(options_for(text_folder, tmp_path / "whole", **sections)).heldout_before


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_broken_checkpoint_is_skipped_with_its_reason(
    text_folder: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_for(text_folder, tmp_path / "run", run={"save_every": 4})
    trainer.train(options)
    expected = losses_of(tmp_path / "run")
    newest, older = list_checkpoints(tmp_path / "run" / "checkpoints")[:2]
    weights = newest / "model.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "remove":
        weights.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    assert checkpoint_fault(older) is None
    trainer.train(options)
    assert f"{newest} is set aside as {newest.name}.faulty: " in capsys.readouterr().err
    assert losses_of(tmp_path / "run") == expected
    assert checkpoint_fault(newest) is None


def flip_a_bit(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


def test_faulty_checkpoints_of_later_steps_do_not_outrank_what_is_saved_after_them(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    trainer.train(options_for(text_folder, tmp_path / "run", run={"save_every": 4}))
    for name in ("step-00000008", "step-00000012"):
        flip_a_bit(folder / name)

    class Interrupted(Exception):
        pass

    saved: list[Path] = []
    save = trainer.Loop._save

    def save_and_stop(self: trainer.Loop, last: bool = False) -> Path:
        saved.append(save(self, last))
        raise Interrupted

    monkeypatch.setattr(trainer.Loop, "_save", save_and_stop)
    with pytest.raises(Interrupted):
        trainer.train(options_for(text_folder, tmp_path / "run", run={"save_every": 2, "keep": 1}))
    assert saved == [folder / "step-00000006"]
    assert newest_valid(folder, pytest.fail) == saved[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000006",
        "step-00000008.faulty",
        "step-00000012.faulty",
    ]


def test_only_the_checkpoint_that_a_run_goes_on_from_is_read(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    options = options_for(text_folder, tmp_path / "run", run={"save_every": 2, "keep": 9})
    trainer.train(options)
    flip_a_bit(folder / "step-00000004")  # older than what is loaded: nobody needs it
    hashed: list[Path] = []
    hash_block = hashing.hash_block

    def noting(path: Path, *rest: Any) -> str:
        hashed.append(path.parent)
        return hash_block(path, *rest)

    monkeypatch.setattr(hashing, "hash_block", noting)
    newest = list_checkpoints(folder)[0]
    assert checkpoint_to_continue(folder, pytest.fail) == newest and set(hashed) == {newest}
    # Of one whose steps were undone its manifest says enough.
    hashed.clear()
    said: list[str] = []
    second = folder / "step-00000010"
    assert checkpoint_to_continue(folder, said.append, lambda head: "undone" if head.step > 10 else None) == second
    assert set(hashed) == {second} and said == [f"{newest} is set aside as {newest.name}.undone: undone"]
    assert (folder / "step-00000004").is_dir()


def test_saving_never_removes_what_it_wrote(text_folder: Path, tmp_path: Path) -> None:
    result = trainer.train(options_for(text_folder, tmp_path / "run", run={"keep": 1}))
    later = result.checkpoint.with_name("step-00000099")
    later.mkdir()
    optimizer = make_adamw(result.model, OptimizerOptions())
    for parameter in result.model.parameters():
        optimizer.state[parameter] = {name: torch.zeros(()) for name in ("step", "exp_avg", "exp_avg_sq")}
    contents = contents_of(result.model, optimizer, {"step": 13})
    written = save_checkpoint(later.parent, contents, result.tokenizer, keep=1)
    assert checkpoint_fault(written) is None
    assert list_checkpoints(later.parent) == [later, written]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        save_checkpoint(later.parent, contents._replace(step=14), result.tokenizer, keep=0)
    assert list_checkpoints(later.parent) == [later, written]


def test_a_run_with_faulty_checkpoints_only_does_not_start_over(text_folder: Path, tmp_path: Path) -> None:
    options = options_for(text_folder, tmp_path / "run", run={"save_every": 6})
    trainer.train(options)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        flip_a_bit(checkpoint)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no whole checkpoint among 2 .*; restore one, or .*step 0") as caught:
            trainer.train(options)
        assert "step-00000012: model.safetensors is not as it was written" in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    # Nor where an earlier continuation has set them aside and the whole one has gone since.
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        checkpoint.rename(checkpoint.with_suffix(".faulty"))
    with pytest.raises(ValueError, match="no whole checkpoint among 2 "):
        trainer.train(options)


@pytest.mark.parametrize("keep", [0, -1])
def test_keep_is_at_least_one(text_folder: Path, tmp_path: Path, keep: int) -> None:
    with pytest.raises(ValueError, match=rf"run\.keep must be at least 1, got {keep}"):
        options_for(text_folder, tmp_path, run={"keep": keep})


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_stops_the_run_and_is_not_saved(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: float
) -> None:
    one_step = trainer.Loop._one_step
    before: list[torch.Tensor] = []

    def stepping(self: trainer.Loop, *arguments: Any) -> dict[str, float]:
        if self.progress.step == 6:
            before.extend(parameter.detach().clone() for parameter in self.model.parameters())
            loss = self.loss
            self.loss = lambda *args, **kwargs: loss(*args, **kwargs) * poison
            models.append(self.model)
        return one_step(self, *arguments)

    models: list[torch.nn.Module] = []
    monkeypatch.setattr(trainer.Loop, "_one_step", stepping)
    options = options_for(text_folder, tmp_path / "run", run={"save_every": 4})
    with pytest.raises(FloatingPointError, match=r"step 7 .*gradient norm .*(nan|inf)"):
        trainer.train(options)
    assert all(torch.equal(parameter, old) for parameter, old in zip(models[0].parameters(), before, strict=True))
    saved = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert saved == ["step-00000006", "step-00000004"]  # what stood before the step is kept
    assert losses_of(tmp_path / "run")[-1][0] == 6


def test_metrics_are_whole_when_their_rewriting_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": 1.0 / step})
    log.close()
    records = read_metrics(tmp_path)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", fail)
        context.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="no space"):
            MetricsLog(tmp_path, 2, tensorboard=False)
    assert read_metrics(tmp_path) == records
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    MetricsLog(tmp_path, 2, tensorboard=False).close()
    assert read_metrics(tmp_path) == records[:2]
    assert (tmp_path / "metrics.jsonl").stat().st_ino != inode


def test_only_the_newest_checkpoints_are_kept(text_folder: Path, tmp_path: Path) -> None:
    trainer.train(options_for(text_folder, tmp_path / "run", run={"save_every": 3, "keep": 2}))
    names = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step-00000012", "step-00000009"]
    (tmp_path / "run" / "checkpoints" / "step-00000099.tmp").mkdir()
    newest = newest_valid(tmp_path / "run" / "checkpoints", pytest.fail)
    assert newest is not None and newest.name == "step-00000012"


def test_accumulation_equals_one_large_batch(text_folder: Path, tmp_path: Path) -> None:
    runs = []
    for micro in (6, 2):
        folder = tmp_path / f"micro{micro}"
        trainer.train(options_for(text_folder, folder, batch={"micro": micro, "size": 6}, train={"samples": 24}))
        runs.append(losses_of(folder))
    for (_, loss, norm), (_, other_loss, other_norm) in zip(*runs, strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-4)
        assert norm == pytest.approx(other_norm, rel=1e-3)


@pytest.mark.parametrize(
    "train", [{"precision": "bf16"}, {"activation_checkpointing": True}], ids=["bf16", "recompute"]
)
def test_other_arithmetic_trains_alike(text_folder: Path, tmp_path: Path, train: dict[str, Any]) -> None:
    plain = trainer.train(options_for(text_folder, tmp_path / "plain"))
    other = trainer.train(options_for(text_folder, tmp_path / "other", train=train))
    assert other.heldout_after["texts"].mean == pytest.approx(plain.heldout_after["texts"].mean, abs=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in other.model.parameters())


def test_tensorboard_and_metrics(text_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    trainer.train(options_for(text_folder, folder, run={"tensorboard": True, "eval_every": 6}))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 12
    assert [event.step for event in events.Scalars("heldout/texts")] == [0, 6, 12]
    record = [r for r in read_metrics(folder) if r["kind"] == "train"][-1]
    assert {"loss", "lr", "grad_norm", "samples", "tokens_per_second"} <= set(record)


def test_another_configuration_is_not_continued(text_folder: Path, tmp_path: Path) -> None:
    trainer.train(options_for(text_folder, tmp_path / "run", train={"samples": 8}))
    with pytest.raises(ValueError, match=r"holds a run with another optimizer\.lr, train\.samples;"):
        trainer.train(options_for(text_folder, tmp_path / "run", optimizer={"lr": 0.02}))


def test_a_cut_metrics_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0}\n{"kind": "tr')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_metrics_are_json_whatever_was_measured(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, -1, tensorboard=False)
    values = {"loss": math.nan, "half": math.inf, "low": -math.inf, "layers": {"wq": [1.0, math.inf]}}
    alert = {"alert": "not_finite", "subject": "nan", "sentence": "inf"}
    log.write("train", 1, values)
    log.write("alert", 1, alert)
    log.close()

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON")

    first, second = ((tmp_path / "metrics.jsonl").read_text()).splitlines()
    assert json.loads(first, parse_constant=refuse)["half"] == "inf"
    assert json.loads(second, parse_constant=refuse)["subject"] == "nan"
    train, told = read_metrics(tmp_path)
    assert math.isnan(train["loss"]) and train["low"] == -math.inf and train["layers"] == {"wq": [1.0, math.inf]}
    assert told == {"kind": "alert", "step": 1, **alert}


def test_a_checkpoint_s_state_is_json(text_folder: Path, tmp_path: Path) -> None:
    # One held-out row has no interval.
    result = trainer.train(options_for(text_folder, tmp_path / "run", data={"heldout_rows": 1}))
    assert result.heldout_before["all"].half == math.inf
    assert "Infinity" not in (result.checkpoint / "state.json").read_text()
    again = trainer.train(options_for(text_folder, tmp_path / "run", data={"heldout_rows": 1}))
    assert again.heldout_before == result.heldout_before


def test_sigterm_saves_and_the_same_command_continues(text_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = options_for(text_folder, folder, train={"samples": 4000})
    (tmp_path / "config.yaml").write_text(dump_options(options))
    command = [sys.executable, "-m", "aquila2.cli", "train", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(losses_of(folder)) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"aquila2 train {folder / 'config.yaml'} goes on" in out
    (checkpoint,) = list_checkpoints(folder / "checkpoints")
    assert checkpoint_fault(checkpoint) is None
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert losses_of(folder)[-1][0] == step


def test_a_second_run_in_the_same_folder_is_refused(text_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = options_for(text_folder, folder)
    (tmp_path / "config.yaml").write_text(dump_options(options))
    command = [sys.executable, "-m", "aquila2.cli", "train", str(tmp_path / "config.yaml"), "optimizer.lr=0.5"]
    with only_run_in(folder):  # as a run that has saved nothing yet
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"aquila2 train: run.folder {folder} is in use by another run; wait for it, or give another folder"
    ]
    assert [path.name for path in folder.iterdir()] == ["run.lock"]


def test_a_run_that_was_killed_locks_nothing(text_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holding = (
        "import sys, time; from pathlib import Path; from aquila2.training.lock import only_run_in\n"
        "with only_run_in(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(120)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", holding, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="is in use by another run"):
        trainer.train(options_for(text_folder, folder))
    process.kill()
    process.wait()
    process.stdout.close()
    assert trainer.train(options_for(text_folder, folder)).progress.step == 12


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"samples": None}, "samples"),
        ({"tokens": None, "heldout_before": None}, "tokens, heldout_before"),
        ({"heldout_before": {"all": 5.5}}, "intervals of losses"),
    ],
)
def test_a_checkpoint_of_an_older_trainer_is_refused_in_a_sentence(
    text_folder: Path, tmp_path: Path, change: dict[str, Any], lacks: str
) -> None:
    options = options_for(text_folder, tmp_path / "run", run={"keep": 1})
    checkpoint = trainer.train(options).checkpoint
    state = {**json.loads((checkpoint / "state.json").read_text()), **change}
    kept = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != verified.MANIFEST}
    kept["state.json"] = json.dumps({key: value for key, value in state.items() if value is not None}).encode()
    with verified.verified_folder(checkpoint, verified.read_manifest(checkpoint)["facts"]) as temporary:
        for name, content in kept.items():
            (temporary / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"is of an older trainer, whose state.json keeps no {lacks}; go on with that"):
        trainer.train(options)
