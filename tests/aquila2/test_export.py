"""A run's model on its own: what transformers reads, verified before, in the dtype that was asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from aquila2 import Aquila2Tokenizer, from_pretrained
from aquila2.cli import main
from aquila2.training import trainer
from aquila2.training.checkpoints import checkpoint_path
from tests.aquila2.heurimentor.runs import options_for, write_texts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_texts(folder / "texts")
    trainer.train(options_for(folder / "texts", folder / "run", train={"samples": 16}, run={"save_every": 2}))
    return folder / "run"


def test_the_newest_model_is_written(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(made), str(tmp_path / "out")]) == 0
    newest = checkpoint_path(made / "checkpoints", 4)
    assert capsys.readouterr().out == f"{tmp_path / 'out'} has the model of {newest}\n"
    ours, theirs = from_pretrained(tmp_path / "out").state_dict(), from_pretrained(newest).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert Aquila2Tokenizer.from_pretrained(tmp_path / "out").encode("1 plus 2") == Aquila2Tokenizer.from_pretrained(
        newest
    ).encode("1 plus 2")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"optimizer.safetensors", "manifest.json", "state.json"}


def test_an_older_step_in_another_dtype_as_transformers_reads_it(made: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["export", str(made), str(tmp_path / "out"), "--step", "2", "--dtype", "bfloat16"]) == 0
    older = from_pretrained(checkpoint_path(made / "checkpoints", 2), dtype=torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in older.state_dict().items())


def test_only_what_is_whole_is_written(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    weights = checkpoint_path(run / "checkpoints", 4) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for arguments, sentence in (
        (["--step", "4"], "step-00000004 is not whole: model.safetensors is not as it was written"),
        (["--step", "3"], "has no checkpoint of step 3"),
    ):
        assert main(["export", str(run), str(tmp_path / "out"), *arguments]) != 0
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["export", str(run), str(run / "checkpoints" / "step-00000002")]) != 0
    assert "out must lie outside of the run's folder" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "skipping" in said.err and "step-00000002" in said.out
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "out")]) != 0
