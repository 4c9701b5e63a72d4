"""A byte is flipped in, or a part cut off, every file of a run: it goes on, and equals the run that nobody touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aquila2.cli import main
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import Tampered
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from aquila2.training.options import Options
from tests.aquila2.heurimentor.runs import losses_of, options_for, rows_of, write_texts


def options_in(folder: Path) -> Options:
    return options_for(folder / "texts", folder / "run", train={"samples": 16}, run={"save_every": 1, "keep": 2})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was stopped after its second step, and the same one undisturbed."""
    folder = tmp_path_factory.mktemp("damage")
    write_texts(folder / "texts")
    trainer.train(options_for(folder / "texts", folder / "calm", train={"samples": 16}))
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: object) -> dict[str, object]:
        measured = one_step(self, *arguments)  # type: ignore[arg-type]
        self.asked_to_stop = self.progress.step == 2
        return measured  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer.Loop, "_one_step", stepping)
        trainer.train(options_in(folder))
    (folder / "run").rename(folder / "stopped")
    yield folder


def files_of(run: Path) -> list[str]:
    names = [str(path.relative_to(run)) for path in sorted(run.rglob("*")) if path.is_file()]
    return [name for name in names if ".lock" not in name and "step-00000001" not in name]


@pytest.mark.parametrize("part", range(6))
def test_every_file_of_a_run_may_lose_a_bit_or_its_end(made: Path, part: int) -> None:
    names = files_of(made / "stopped")
    assert len(names) >= 25 and {"config.yaml", "metrics.jsonl", "tokenizer/tokenizer.json"} < set(names)
    for turn, name in list(enumerate(names))[part::6]:
        shutil.rmtree(made / "run", ignore_errors=True)
        shutil.copytree(made / "stopped", made / "run")
        path = made / "run" / name
        content = bytearray(path.read_bytes())
        if not content:
            continue
        if turn % 3 < 2:
            content[len(content) // 2] ^= 0x80 if turn % 2 else 1
        else:
            del content[2 * len(content) // 3 :]
        path.write_bytes(content)
        if name == NAME:
            with pytest.raises(Tampered):
                trainer.train(options_in(made))
            continue
        assert trainer.train(options_in(made)).progress.step == 4, name
        steps = [step for step, _, _ in losses_of(made / "run")]
        if name == "metrics.jsonl":
            assert steps[-2:] == [3, 4] and len(read_metrics(made / "run")) >= 4
        else:
            assert losses_of(made / "run") == losses_of(made / "calm"), name
        assert rows_of(made / "run") == rows_of(made / "calm")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 40):
        content[place] ^= 1
    path.write_bytes(content)


def test_changed_data_is_found_and_made_again(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made / "run", ignore_errors=True)
    shutil.copytree(made / "stopped", made / "run")
    damage(made / "run" / "data" / "train" / "words" / "tokens.bin")
    damage(made / "run" / "data" / "heldout" / "sums" / "tokens.bin")
    trainer.train(options_in(made))
    said = capfd.readouterr().err
    assert said.count("is not as it was written") == 2 and said.count("was made again from") == 2
    assert losses_of(made / "run") == losses_of(made / "calm")
    assert not audit(made / "run", data=True).faults
    table = audit(made / "run").table()
    assert table.endswith("exactly once: proved from the log; no row was read, --data does")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_data_that_cannot_be_made_again_is_refused(made: Path, tmp_path: Path, split: str) -> None:
    shutil.copytree(made / "stopped", tmp_path / "run")
    shutil.copytree(made / "texts", tmp_path / "texts")
    options = options_for(made / "texts", tmp_path / "run", train={"samples": 16})
    words = made / "texts" / "words.jsonl"
    before = words.read_text()
    damage(tmp_path / "run" / "data" / split / "words" / "tokens.bin")
    try:
        words.write_text(before.replace("number", "figure"))
        with pytest.raises(ValueError, match=r"the run decided to use|the held-out text of words is not what it was"):
            trainer.train(options)
    finally:
        words.write_text(before)


def test_the_records_behind_a_broken_line_stay(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made / "run", ignore_errors=True)
    shutil.copytree(made / "stopped", made / "run")
    path = made / "run" / "metrics.jsonl"
    records = read_metrics(made / "run")
    content = path.read_bytes().split(b"\n")
    for number, change in enumerate((b'"stap"', b"\xff", b"NaN}")):
        content[number] = content[number].replace(b'"step"', change, 1)
    path.write_bytes(b"\n".join(content))
    assert read_metrics(made / "run") == records[3:]
    trainer.train(options_in(made))
    assert "3 lines are not as they were written" in capfd.readouterr().err
    (aside,) = (made / "run").glob("metrics.jsonl.broken-*")
    assert aside.read_bytes() == b"\n".join(content[:3]) + b"\n"
    assert read_metrics(made / "run")[: len(records) - 3] == records[3:]


@pytest.fixture(scope="module")
def grown(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stopped run with a source that was added from another folder, stopped again; and its undisturbed end."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(made / "texts", folder / "texts")
    (folder / "texts" / "more.jsonl").write_text("".join(f'{{"text": "more, {i} times"}}\n' for i in range(40)))
    options = options_for(folder / "texts", folder / "run", run={"save_every": 1, "keep": 2})
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: object) -> dict[str, object]:
        measured = one_step(self, *arguments)  # type: ignore[arg-type]
        if self.progress.step == 2:
            mixture = ("--mixture", "words:1,sums:1,more:2")
            assert main(["mentor", "add", str(folder / "run"), "more", "more.jsonl", *mixture]) == 0
        self.asked_to_stop = self.progress.step == 5
        return measured  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder / "texts")
        context.setattr(trainer.Loop, "_one_step", stepping)
        trainer.train(options)
    shutil.copytree(folder / "run", folder / "stopped")
    trainer.train(options)
    (folder / "run").rename(folder / "calm")
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_an_added_source_is_made_again_too(grown: Path) -> None:
    parts = [grown / "stopped" / "data" / split / "more" for split in ("train", "heldout")]
    names = [path.relative_to(grown / "stopped") for part in parts for path in sorted(part.iterdir())]
    assert len(names) == 8
    for name in names:
        shutil.rmtree(grown / "run", ignore_errors=True)
        shutil.copytree(grown / "stopped", grown / "run")
        flip(grown / "run" / name)
        options = options_for(grown / "texts", grown / "run", run={"save_every": 1, "keep": 2})
        assert trainer.train(options).progress.step == 12, name
        assert losses_of(grown / "run") == losses_of(grown / "calm"), name
        assert rows_of(grown / "run") == rows_of(grown / "calm")


def test_an_added_source_that_is_gone_is_asked_for(grown: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(grown / "stopped", run)
    options = options_for(grown / "texts", run, run={"save_every": 1, "keep": 2})
    more, tokens = grown / "texts" / "more.jsonl", run / "data" / "train" / "more" / "tokens.bin"
    before = more.read_bytes()
    flip(tokens)
    more.unlink()
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"train/more must be made again and cannot be: .*more.jsonl is not"):
                trainer.train(options)
        flip(tokens)  # restored
        assert trainer.train(options).progress.step == 12
    finally:
        more.write_bytes(before)
    for part in ("train", "heldout"):
        flip(run / "data" / part / "more" / "segment.json")
    with pytest.raises(ValueError, match="cannot be: nothing tells any more what it was made from; restore it"):
        trainer.train(options)
