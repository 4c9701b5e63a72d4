"""The commands, run in this process: they do what they say, and say in one sentence what is wrong."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch

from aquila2 import PRESETS, Aquila2Config, Aquila2ForCausalLM, Aquila2Tokenizer, save_pretrained
from aquila2.cli import main
from aquila2.demo import _claim
from aquila2.training.lock import only_run_in
from aquila2.training.options import dump_options, load_options


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def config(text_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
model: {{preset: tiny}}
tokenizer: {{vocab_size: 304}}
data:
  sources: [{{name: texts, path: {text_folder}}}]
  seq_len: 32
  heldout: 0.2
batch: {{micro: 4, size: 4}}
train: {{samples: 16}}
run: {{folder: {tmp_path / "run"}, tensorboard: false, progress: false}}
"""
    )
    return path


def test_train_then_generate(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", config, "optimizer.lr=5e-3") == 0
    out = capsys.readouterr().out
    assert "held-out loss" in out and "texts" in out
    assert (tmp_path / "run" / "loss.svg").is_file()
    assert run("generate", tmp_path / "run", "The quick", "--max-new-tokens", "5") == 0
    assert capsys.readouterr().out.startswith("The quick")
    assert (
        run("generate", tmp_path / "run", "def", "注意", "--max-new-tokens", "5", "--temperature", "1", "--seed", "1")
        == 0
    )
    assert capsys.readouterr().out.count("---") == 2


def test_tokenizer_commands(text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenizer", "train", text_folder, "--vocab-size", "300", "--out", tmp_path / "tokenizer") == 0
    assert "300 ids" in capsys.readouterr().out
    assert run("tokenizer", "encode", tmp_path / "tokenizer", "注意 fox") == 0
    ids = capsys.readouterr().out.split()
    assert [int(i) for i in ids] == Aquila2Tokenizer.from_pretrained(tmp_path / "tokenizer").encode("注意 fox")
    assert run("tokenizer", "decode", tmp_path / "tokenizer", *ids) == 0
    assert capsys.readouterr().out == "注意 fox\n"
    for wrong in ("99999", "300", "-1"):
        assert run("tokenizer", "decode", tmp_path / "tokenizer", ids[0], wrong) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == f"aquila2 tokenizer: ids must lie in [0, 300), got {wrong}\n"


@pytest.mark.parametrize(("scaling", "limit"), [("none", 16), ("dynamic", 32)])
def test_text_beyond_the_models_length_is_warned_of(
    scaling: str, limit: int, tokenizer: Aquila2Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Aquila2Config.named(
        "tiny", vocab_size=304, max_position_embeddings=16, rope_scaling=scaling, rope_scaling_factor=2.0
    )
    save_pretrained(Aquila2ForCausalLM(config), tmp_path)
    tokenizer.save_pretrained(tmp_path)
    room = limit - len(tokenizer.encode("def", bos=True))
    assert run("generate", tmp_path, "def", "--max-new-tokens", str(room)) == 0
    assert capsys.readouterr().err == ""
    assert run("generate", tmp_path, "def", "--max-new-tokens", str(room + 1)) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"aquila2 generate: warning: prompt and new tokens may take {limit + 1} positions")
    assert error.count("\n") == 1


def test_a_finished_run_is_not_repeated(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", config) == 0
    first, records = capsys.readouterr().out, (tmp_path / "run" / "metrics.jsonl").read_text()
    assert run("train", config) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == records


def test_a_wrong_option_leaves_no_run_behind(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, option in (
        ("optimizer.lr=-1", "optimizer.lr"),
        ("model.preset=nope", "model.preset"),
        ("train.device=nope", "train.device"),
    ):
        assert run("train", config, wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"aquila2 train: {option} must be ") and error.count("\n") == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "words"), [("nope", "is not there"), ("empty.txt", "has no text; a source has some")])
def test_a_source_without_text_leaves_no_run_behind(
    name: str, words: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    (tmp_path / "empty.txt").touch()
    assert run("train", config, f"data.sources=[{{name: texts, path: {path}}}]") == 2
    assert capsys.readouterr().err == f"aquila2 train: data.sources, texts: {path} {words}\n"
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", tmp_path / "nope.yaml") == 2
    sentence = f"{tmp_path / 'nope.yaml'} is no file; the options of a run come from a YAML file"
    assert capsys.readouterr().err == f"aquila2 train: {sentence}\n"


def test_a_tokenizer_needs_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").touch()
    command = ("tokenizer", "train", tmp_path / "text.txt", "--vocab-size", "300", "--out", tmp_path / "tokenizer")
    assert run(*command) == 2
    error = capsys.readouterr().err
    assert error == f"aquila2 tokenizer: {tmp_path / 'text.txt'} has no text; a tokenizer is trained on some\n"
    assert not (tmp_path / "tokenizer").exists()
    (tmp_path / "text.txt").write_text("ab ab ab")
    assert run(*command) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("267 ids in ")
    assert captured.err == "the text has no more pairs to merge, so there are fewer than 300\n"


def test_a_run_without_a_checkpoint_takes_other_options(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What a run that died after its preparation leaves: made for other options, to be made again.
    source = f"data.sources=[{{name: texts, path: {tmp_path / 'nope'}}}]"
    other = dump_options(load_options(config, [source, "tokenizer.vocab_size=300"]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(other)
    Aquila2Tokenizer.train(["other text"], 265).save_pretrained(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "data").mkdir()
    (tmp_path / "run" / "data" / "prepared.json").write_text("{}")
    assert run("train", config) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        f"{tmp_path / 'run'} has no checkpoint yet, so its run starts with the new tokenizer.vocab_size, data.sources\n"
    )
    assert len(Aquila2Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer")) == 304
    assert run("train", config, "tokenizer.vocab_size=300") == 2
    assert "holds a run with another tokenizer.vocab_size" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has the device that is to be missing")
def test_a_missing_device_is_one_sentence(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", config, "train.device=cuda") == 2
    error = capsys.readouterr().err
    assert error.startswith("aquila2 train: train.device must be a device of this machine, got 'cuda'")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert run("generate", tmp_path, "def ", "--device", "cuda") == 2
    error = capsys.readouterr().err
    assert error.startswith("aquila2 generate: --device must be a device of this machine, got 'cuda'")
    assert error.count("\n") == 1


def test_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("configs") == 0
    table = capsys.readouterr().out
    assert all(f"`{name}`" in table for name in PRESETS)
    assert "| 7.30 B |" in table and "linear x8" in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("train", "nowhere.yaml"),
            "aquila2 train: nowhere.yaml is no file; the options of a run come from a YAML file",
        ),
        (("generate", "nowhere", "x"), "aquila2 generate: nowhere has no config.json"),
        (("tokenizer", "encode", "nowhere", "x"), "aquila2 tokenizer: nowhere has no tokenizer.json"),
    ],
)
def test_one_sentence(arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence) and error.count("\n") == 1


def test_demo_on_own_data(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aquila2.demo.kernel_report", lambda: iter(["attention  1.0 ms"]))
    small = ("model.preset=tiny", "train.samples=16", "data.seq_len=32", "data.heldout=0.2", "run.progress=false")
    demo = ("demo", "--data", text_folder, "--folder", tmp_path / "demo", *small)
    assert run(*demo, "run.tensorboard=false") == 0
    out = capsys.readouterr().out
    for expected in (
        "yours",
        "±",
        "loss.svg",
        "demo/report.html",
        "code:",
        "English:",
        "Chinese:",
        "attention  1.0 ms",
    ):
        assert expected in out
    assert run(*demo, "run.tensorboard=false") == 0  # replaces the first

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    assert run("demo", "--folder", tmp_path / "other") == 2
    assert "--folder must be new, empty or an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_a_demo_leaves_another_run_s_folder_and_keeps_the_lock_s_file(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    _claim(folder)
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}")
    with only_run_in(folder), pytest.raises(ValueError, match="is in use by another run"):
        _claim(folder)
    assert {path.name for path in folder.iterdir()} == {"demo", "run.lock", "checkpoints", "metrics.jsonl"}
    descriptor = os.open(folder / "run.lock", os.O_RDWR)  # as a run that has opened it, and not locked it yet
    _claim(folder)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert {path.name for path in folder.iterdir()} == {"demo", "run.lock"}
    with pytest.raises(ValueError, match="is in use by another run"), only_run_in(folder):
        pass
    os.close(descriptor)


def test_kernel_report_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from aquila2 import kernel_report

    monkeypatch.setattr(kernel_report, "ROUNDS", 1)
    monkeypatch.setattr(kernel_report, "WARM_UP", 0)
    lines = list(kernel_report.kernel_report())
    assert len(lines) == 6 and all(line.endswith("x") for line in lines[1:])
