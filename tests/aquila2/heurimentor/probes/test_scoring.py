"""Scores are those of a plain pass over each row, whatever is beside it; ranks share them; lm_eval finds the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2 import Aquila2ForCausalLM, Aquila2Tokenizer
from aquila2.heurimentor.probes.prompts import Question
from aquila2.heurimentor.probes.scoring import Probe, Row, Score, _scores, make_probe, make_probes, run_probes
from aquila2.heurimentor.probes.tasks import Task, read_tasks
from tests.aquila2.heurimentor.probes.task_files import CHOICES, WORDS, write_tasks
from tests.aquila2.heurimentor.runs import run_python

CPU = torch.device("cpu")


def plain(model: Aquila2ForCausalLM, row: Row) -> Score:
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        logits = model(ids).logits[0].double().log_softmax(-1)
    places = range(row.first, len(row.ids))
    total = sum(float(logits[at - 1, row.ids[at]]) for at in places)
    return Score(total, all(int(logits[at - 1].argmax()) == row.ids[at] for at in places))


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    return read_tasks([write_tasks(tmp_path / "tasks")])


def test_scores_are_those_of_each_row_alone(
    tasks: list[Task], tiny_model: Aquila2ForCausalLM, tokenizer: Aquila2Tokenizer
) -> None:
    for task in tasks:
        probe = make_probe(task, tokenizer, 256)
        assert all(row.ids[0] == tokenizer.bos_token_id for row in probe.rows)
        with torch.no_grad():
            scores = _scores(tiny_model, probe.rows, CPU)
        for row, score in zip(probe.rows, scores, strict=True):
            wanted = plain(tiny_model, row)
            assert score.log_likelihood == pytest.approx(wanted.log_likelihood, abs=1e-4)
            assert score.greedy == wanted.greedy


def test_accuracies_do_not_depend_on_batches(
    tasks: list[Task], tiny_model: Aquila2ForCausalLM, tokenizer: Aquila2Tokenizer
) -> None:
    probes = [make_probe(task, tokenizer, 256) for task in tasks]
    tiny_model.train()
    found = [run_probes(tiny_model, probes, most, CPU) for most in (1, 40, 10_000)]
    assert tiny_model.training
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {"animals/acc", "animals/acc_norm", "last_word/acc"}
    mine = [[plain(tiny_model, row) for row in probe.rows] for probe in probes]
    assert found[0] == {**probes[0].accuracies(mine[0]), **probes[1].accuracies(mine[1])}


def test_accuracies_from_scores(tasks: list[Task]) -> None:
    asked = [Question("", ("a", "bbbb"), (1, 4), gold) for gold in (0, 1, 1)]
    probe = Probe(tasks[0], asked, [])
    scores = [Score(-2.0, False), Score(-4.0, False)] * 2 + [Score(-1.0, False), Score(-1.0, False)]
    found = probe.accuracies(scores)
    assert found["animals/acc"].mean == pytest.approx(1 / 3)  # the first of two that are equal is taken
    assert found["animals/acc_norm"].mean == pytest.approx(2 / 3)
    assert probe.chance == 0.5
    ending = Probe(tasks[1], [Question("", ("a",), (1,), None)] * 2, [])
    assert ending.accuracies([Score(-9.0, True), Score(-1.0, False)])["last_word/acc"].mean == 0.5
    assert ending.chance == 0


def test_long_contexts_lose_their_beginning(tasks: list[Task], tokenizer: Aquila2Tokenizer) -> None:
    whole, cut = (make_probe(tasks[0], tokenizer, longest) for longest in (256, 20))
    for long, short in zip(whole.rows, cut.rows, strict=True):
        assert len(short.ids) == min(len(long.ids), 21) and short.ids[0] == tokenizer.bos_token_id
        assert short.ids[short.first :] == long.ids[long.first :] and short.first > 0
    with pytest.raises(ValueError, match=r"document 0: an ending must have between 1 and 2 ids, got \d"):
        make_probe(tasks[0], tokenizer, 3)


def test_ids_across_the_boundary_count_for_all_endings(tmp_path: Path) -> None:
    tokenizer = Aquila2Tokenizer.train(["abab abab abac abac"] * 4, 300)
    changes = {"doc_to_text": "aba", "doc_to_choice": ["b", "c", " x"], "doc_to_target": 0, "target_delimiter": ""}
    [task] = read_tasks([write_tasks(tmp_path, {**CHOICES, **changes}) / "animals.yaml"])
    rows = make_probe(task, tokenizer, 256).rows[:3]
    wholes = tokenizer.encode_batch(["abab", "abac", "aba x"], bos=True)
    assert [row.ids for row in rows] == wholes
    assert {row.first for row in rows} == {1}


def test_ranks_share_the_batches_and_change_no_bit(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, torch
from pathlib import Path
from aquila2 import Aquila2Config, Aquila2ForCausalLM, Aquila2Tokenizer
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.probes.scoring import make_probes, run_probes
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

def work(ranks, rank):
    torch.manual_seed(0)
    tokenizer = Aquila2Tokenizer.train(["the quick brown fox"] * 4, 300)
    model = Aquila2ForCausalLM(Aquila2Config.named("tiny", vocab_size=304, initializer_range=0.2))
    probes = make_probes([sys.argv[1]], tokenizer, 256)
    found = run_probes(model, probes, 50, torch.device("cpu"), world=World())
    Path(sys.argv[2], f"{ranks}-{rank}").write_text(repr(sorted(found.items())))

for ranks in (1, 2, 3):
    assert fork_ranks(ranks, lambda rank: work(ranks, rank)) == [0] * ranks
"""
    )
    (tmp_path / "found").mkdir()
    run_python(script, tmp_path / "tasks", tmp_path / "found")
    found = [file.read_text() for file in (tmp_path / "found").iterdir()]
    assert len(found) == 6 and len(set(found)) == 1


def test_lm_eval_asks_and_finds_the_same(
    tmp_path: Path, tiny_model: Aquila2ForCausalLM, tokenizer: Aquila2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval import evaluator
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

    folder = tmp_path / "tasks"
    few: dict[str, Any] = {"num_fewshot": 2}
    entries = [
        CHOICES,
        {**CHOICES, **few, "task": "own_shots", "fewshot_split": "test"},
        {**CHOICES, "task": "templates", "doc_to_choice": "{{options}}", "doc_to_target": "{{options[answer]}}"},
        WORDS,
        {**WORDS, **few, "task": "drawn", "fewshot_split": "train", "description": "Read.\n"},
        {**WORDS, **few, "task": "first", "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}},
    ]
    write_tasks(folder, *entries)
    monkeypatch.chdir(folder)  # where lm_eval looks for data
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    asked: list[tuple[str, str]] = []

    class Adapter(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = []
            for request in requests:
                context, ending = request.args
                asked.append((context, ending))
                kept = context.rstrip()
                ids = tokenizer.encode(context + ending, bos=True, allow_special=False)
                first = len(tokenizer.encode(kept, bos=True, allow_special=False))
                score = plain(tiny_model, Row(ids, first))
                found.append((score.log_likelihood, score.greedy))
            return found

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError

    theirs = {entry["task"]: ConfigurableTask(config=dict(entry)) for entry in entries}
    for one in theirs.values():
        one.set_fewshot_seed(1234)  # the default of its command
    results = evaluator.evaluate(Adapter(), theirs, bootstrap_iters=0)["results"]
    probes = make_probes([str(folder)], tokenizer, 256)
    found = run_probes(tiny_model, probes, 200, CPU)
    for name, estimate in found.items():
        task, metric = name.split("/")
        assert estimate.mean == pytest.approx(results[task][f"{metric},none"]), name
    ours = [(question.context, ending) for probe in probes for question in probe.asked for ending in question.endings]
    assert sorted(ours) == sorted(asked)
