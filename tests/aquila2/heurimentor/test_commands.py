"""`aquila2 ledger` and `aquila2 mentor` on a real run with a poisoned document."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aquila2.cli import main
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.locate import RunData
from aquila2.training import trainer
from tests.aquila2.heurimentor.runs import lineage_of, options_for, write_texts

POISON = "ZQ!9 xX7#k~~Vw8@@ lkjhQQzz0101%% Jp3^^mNb&&tT5**"


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose words have one document that is none."""
    folder = tmp_path_factory.mktemp("poisoned")
    write_texts(folder)
    lines = (folder / "words.jsonl").read_text().splitlines()
    lines[17] = json.dumps({"text": POISON})
    (folder / "words.jsonl").write_text("\n".join(lines * 1) + "\n")
    options = options_for(
        folder, folder / "run", train={"samples": 160}, run={"save_every": 2, "keep": 50}, data={"heldout": 0.05}
    )
    trainer.train(options)
    return folder / "run"


def poisoned_step(folder: Path) -> int:
    """A late step that trained the poison for the first time."""
    data = RunData(folder)
    steps = [
        number
        for number in range(1, data.lineage.step + 1)
        if any(part.document.id.startswith("words.jsonl:18") for part in data.locate(number))
    ]
    return steps[0]


def test_audit(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ledger", "audit", trained, "--data") == 0
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("exactly once: proved") and "trying the order of segment 0" in captured.err
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    text = (broken / NAME).read_text()
    (broken / NAME).write_text(text.replace('"count":4', '"count":3', 1))
    assert run("ledger", "audit", broken) == 2
    error = capsys.readouterr().err
    assert error.startswith("aquila2 ledger: ") and "is not what its chain value was made for" in error
    assert error.count("\n") == 1


def test_locate_and_trace_find_the_poison(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = poisoned_step(trained)
    assert run("ledger", "locate", trained, "--step", step, "--top", "3") == 0
    head, titles, first, *rest = capsys.readouterr().out.splitlines()
    assert head.startswith(f"step {step}: samples ") and titles.split()[:4] == ["score", "loss", "domain", "document"]
    if step > 6:  # a model that has learnt something
        assert "words.jsonl:18" in first and "ZQ!9" in first
    assert len(rest) == 2

    assert run("ledger", "trace", trained, "xx7#K~~Vw8@@ lkjhQQzz0101") == 0
    titles, *found = capsys.readouterr().out.splitlines()
    assert titles.split()[:3] == ["domain", "document", "row"] and all("words.jsonl:18" in line for line in found)
    assert any(f" {step}" in line for line in found)
    assert run("ledger", "trace", trained, "stands nowhere at all") == 1
    assert "holds that text" in capsys.readouterr().out


def test_locate_says_what_it_scores_with(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for checkpoint in sorted((copy / "checkpoints").glob("step-*"))[:-1]:
        shutil.rmtree(checkpoint)
    assert run("ledger", "locate", copy, "--step", "3") == 0
    captured = capsys.readouterr()
    assert "no checkpoint from before step 3 is left; step-00000040 has seen these documents already" in captured.err
    assert run("ledger", "locate", copy, "--step", "41") == 2
    assert capsys.readouterr().err == "aquila2 ledger: step must lie in 1 .. 40, got 41\n"
    shutil.rmtree(copy / "checkpoints")
    assert run("ledger", "locate", copy, "--step", "3") == 2
    assert "has no whole checkpoint to score the documents with" in capsys.readouterr().err


def test_mentor_set_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "texts")
    options = options_for(tmp_path / "texts", tmp_path / "run", run={"save_every": 3})
    trainer.train(options)
    for checkpoint in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(checkpoint)
    later = ("--after", "13")
    assert run("mentor", "set", tmp_path / "run", "mixture=words:1,sums:3", "lr=5e-3", "stage=late", *later) == 0
    assert "asked: after step 13: the mixture is words 25.0%, sums 75.0%" in capsys.readouterr().out
    assert run("mentor", "set", tmp_path / "run", "quarantine=words.jsonl:18#0") == 0
    assert run("mentor", "show", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "in force  after step 0: words draws from data/train/words" in out
    assert "waiting   after step 13: the peak learning rate is 0.005 (mentor set)" in out
    trainer.train(options)
    lineage = lineage_of(tmp_path / "run")
    assert [line.record["what"] for line in lineage.pending] == ["mixture", "rate", "stage"]
    assert len(lineage.schedule.quarantined) == 1
    assert run("mentor", "show", tmp_path / "run") == 0
    assert "planned   after step 13: the stage is late (mentor set)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("mixture=nobody:1", "the domain 'nobody' has no open segment"),
        ("mixture=words", "mixture must look like code:2,english:1, each domain once, got 'words'"),
        ("mixture=words:much", "mixture, words, must be a number, got 'much'"),
        ("mixture=words:0", "at least one weight must be positive"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("lr=-1", "lr must be finite and at least 0, got -1"),
        ("skip=0.5", "skip must be a whole number of samples from 1 on, got 0.5"),
        ("colour=red", "a decision must be one of mixture=..., lr=..., batch=..., stage=..., skip=..."),
        ("quarantine=nothing.txt", "quarantine must name a document of the run, got 'nothing.txt'"),
    ],
)
def test_wrong_decisions_are_one_sentence(
    trained: Path, assignment: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("mentor", "set", trained, assignment) == 2
    error = capsys.readouterr().err
    assert error.startswith("aquila2 mentor: ") and sentence in error and error.count("\n") == 1
    assert not (trained / "control").exists()


def test_a_folder_without_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("mentor", "show"), ("mentor", "set"), ("ledger", "audit"), ("ledger", "trace")):
        extra = {"set": ["lr=1"], "trace": ["text"]}.get(arguments[1], [])
        assert run(*arguments, tmp_path, *extra) == 2
        error = capsys.readouterr().err
        assert "has no ledger.jsonl" in error and error.count("\n") == 1
