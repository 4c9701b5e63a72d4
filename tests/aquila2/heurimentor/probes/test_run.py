"""Probes in a run: recorded when they are due, shown in its report, and without a trace in its training."""

from __future__ import annotations

from pathlib import Path

import pytest

from aquila2.heurimentor.report.collect import RunView
from aquila2.heurimentor.report.page import charts_of
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.probes.task_files import CHOICES, write_tasks
from tests.aquila2.heurimentor.runs import losses_of, options_for, run_python, write_texts


def test_a_probed_run(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    tasks = write_tasks(tmp_path / "tasks")
    probe = {"tasks": [str(tasks)], "every": 5, "limit": 3}
    trainer.train(options_for(tmp_path / "texts", tmp_path / "probed", probe=probe))
    trainer.train(options_for(tmp_path / "texts", tmp_path / "plain"))
    assert losses_of(tmp_path / "probed") == losses_of(tmp_path / "plain")

    records = read_metrics(tmp_path / "probed")
    found = [record for record in records if record["kind"] == "probe"]
    assert [record["step"] for record in found] == [0, 5, 10, 12]
    assert all(record["animals/acc"] * 3 == pytest.approx(round(record["animals/acc"] * 3)) for record in found)
    epochs = [record for record in records if record["kind"] == "epochs"]
    assert epochs[-1]["sums"] > epochs[0]["sums"] == 0
    halves = [record for record in records if record["kind"] == "probe_interval"]
    assert all(0 < record["animals/acc"] < 1 for record in halves)
    charts = {chart.key: chart for chart in charts_of(RunView.of(tmp_path / "probed"))}
    names = [series.name for series in charts["probes"].series]
    assert names == ["animals, acc", "animals, chance", "animals, acc_norm", "last_word, acc"]
    assert {y for _, y in charts["probes"].series[1].points} == {1 / 3}
    assert charts_of(RunView.of(tmp_path / "plain"))[1].is_empty


def test_ranks_that_share_layers_answer_as_one(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    tasks = write_tasks(tmp_path / "tasks")
    sections = {"probe": {"tasks": [str(tasks)]}, "train": {"samples": 4}}
    trainer.train(options_for(tmp_path / "texts", tmp_path / "alone", **sections))
    divided = options_for(tmp_path / "texts", tmp_path / "divided", **sections, parallel={"tensor": 2})
    (tmp_path / "task.yaml").write_text(dump_options(divided))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_python(*torchrun, "-m", "aquila2.cli", "train", tmp_path / "task.yaml")
    found = []
    for name in ("alone", "divided"):
        records = [record for record in read_metrics(tmp_path / name) if record["kind"] == "probe"]
        found.append([(record["step"], record["animals/acc"], record["last_word/acc"]) for record in records])
    assert found[0] == found[1] and len(found[0]) == 2


def test_a_wrong_task_file_leaves_no_run_behind(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    options = options_for(tmp_path / "texts", tmp_path / "run", probe={"tasks": [str(tmp_path / "nowhere")]})
    with pytest.raises(FileNotFoundError, match="nowhere is no task file"):
        trainer.train(options)
    tasks = write_tasks(tmp_path / "tasks", {**CHOICES, "doc_to_target": 7})
    with pytest.raises(ValueError, match="document 0: doc_to_target must give one of the choices"):
        trainer.train(options_for(tmp_path / "texts", tmp_path / "run", probe={"tasks": [str(tasks)]}))
    assert not (tmp_path / "run").exists()


def test_tasks_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    tasks = write_tasks(tmp_path / "tasks")
    trainer.train(options_for(tmp_path / "texts", tmp_path / "run"))
    trainer.train(options_for(tmp_path / "texts", tmp_path / "run", probe={"tasks": [str(tasks / "animals.yaml")]}))
    assert not [record for record in read_metrics(tmp_path / "run") if record["kind"] == "probe"]
