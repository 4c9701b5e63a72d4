"""Task files: what is read, the texts made of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aquila2.heurimentor.probes.prompts import Question, questions
from aquila2.heurimentor.probes.tasks import Task, read_tasks
from tests.aquila2.heurimentor.probes.task_files import ANIMALS, CHOICES, SENTENCES, SHOTS, WORDS, write_tasks


def task_of(folder: Path, entries: dict[str, Any], **changes: Any) -> Task:
    [task] = read_tasks([write_tasks(folder, {**entries, **changes}) / f"{entries['task']}.yaml"])
    return task


def test_choices(tmp_path: Path) -> None:
    asked = questions(task_of(tmp_path, CHOICES))
    assert asked[1] == Question("Question: What meows?\nAnswer:", (" snow", " the old cat", " a dog"), (4, 11, 5), 1)
    assert [question.gold for question in asked] == [document["answer"] for document in ANIMALS]


def test_an_ending_that_the_model_should_write(tmp_path: Path) -> None:
    asked = questions(task_of(tmp_path, WORDS))
    assert asked[0] == Question("The quick brown fox", (" jumps",), (6,), None)
    assert len(asked) == len(SENTENCES) and len(questions(task_of(tmp_path, WORDS), limit=2)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"doc_to_choice": "{{options}}", "doc_to_target": "{{answer}}"},
        {"doc_to_target": "{{options[answer]}}"},
        {"doc_to_choice": "{{[options[0], options[1], options[2]]}}"},
    ],
)
def test_templates_and_columns_say_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert questions(task_of(tmp_path / "a", CHOICES, **changes)) == questions(task_of(tmp_path / "b", CHOICES))


def test_choices_of_all_documents(tmp_path: Path) -> None:
    for choices in (["yes", "no"], {"first": "yes", "second": "no"}):
        [question, *_] = questions(task_of(tmp_path, CHOICES, doc_to_choice=choices, doc_to_target=1))
        assert question.endings == (" yes", " no") and question.gold == 1


def test_first_examples_and_description(tmp_path: Path) -> None:
    few = {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}, "fewshot_delimiter": "\n"}
    task = task_of(tmp_path, WORDS, **few, description="Read: ")
    assert questions(task)[1].context == f"Read: {SHOTS[0]}\n{SHOTS[1]}\nover the lazy"


def test_a_question_is_not_its_own_example(tmp_path: Path) -> None:
    for sampler in ("default", "first_n"):
        few = {"num_fewshot": 4, "fewshot_split": "test", "fewshot_config": {"sampler": sampler}}
        asked = questions(task_of(tmp_path, CHOICES, **few))
        for question, document in zip(asked, ANIMALS, strict=True):
            assert question.context.count(document["question"]) == 1
            assert question.context.count("Answer: ") == 4
            others = [other for other in ANIMALS if other != document]
            assert all(f"{other['question']}\nAnswer: {other['options'][other['answer']]}\n\n" in question.context
                       for other in others)  # fmt: skip


def test_drawn_examples_are_the_same_every_time(tmp_path: Path) -> None:
    task = task_of(tmp_path, WORDS, num_fewshot=2)
    first = questions(task)
    assert first == questions(task)
    assert len({question.context[: question.context.index("\n\n")] for question in first}) > 1


def test_templates_reach_nothing_but_the_document(tmp_path: Path) -> None:
    for template in ("{{''.__class__.__mro__}}", "{{options.append(1)}}", "{{missing}}"):
        task = task_of(tmp_path, CHOICES, doc_to_text=template)
        with pytest.raises(ValueError, match=r"task animals, document 0: ") as caught:
            questions(task)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"output_type": "generate_until"},
            "output_type must be multiple_choice or loglikelihood, got 'generate_until'",
        ),
        ({"dataset_path": "hellaswag"}, "dataset_path must be json, got 'hellaswag'"),
        ({"dataset_name": "main"}, "dataset_name must be None, got 'main'"),
        ({"process_docs": "f"}, "the option process_docs is not supported; supported are task,"),
        ({"metric_list": [{"metric": "f1"}]}, "metric_list may have the mean of acc and acc_norm, got"),
        ({"fewshot_config": {"sampler": "balanced"}}, "fewshot_config must be a sampler, default or first_n"),
        ({"doc_to_choice": None}, "doc_to_choice must be choices, a template or a column"),
        ({"doc_to_text": 0}, "doc_to_text must be a template or a column, got 0"),
        ({"test_split": None}, "must name a test_split or validation_split"),
        ({"test_split": "other"}, "test_split must be one of test, got 'other'"),
        ({"num_fewshot": 5}, "num_fewshot = 5 needs more documents than the split 'test' has"),
        ({"num_fewshot": -1}, "num_fewshot must be a number of at least 0, got -1"),
        ({"dataset_kwargs": {"data_dir": "x"}}, "dataset_kwargs must have data_files, and nothing else"),
        ({"output_type": ["x"]}, "output_type must be multiple_choice or loglikelihood, got "),
        ({"metric_list": ["acc"]}, "metric_list may have the mean of acc and acc_norm, got 'acc'"),
        ({"metric_list": []}, "metric_list may have the mean of acc and acc_norm, got "),
        ({"metric_list": 3}, "metric_list may have the mean of acc and acc_norm, got 3"),
        ({"dataset_kwargs": "d.jsonl"}, "dataset_kwargs must have data_files, and nothing else, got 'd.jsonl'"),
        ({"dataset_kwargs": {"data_files": {"test": 3}}}, "data_files must be names of files, by split or of all"),
        ({"dataset_kwargs": {"data_files": {1: "animals.json"}}}, "data_files must be names of files, by split"),
        ({"dataset_kwargs": {"data_files": None}}, "data_files must be names of files, by split or of all"),
        ({"test_split": ["test"]}, "test_split must be one of test, got "),
        ({"target_delimiter": 3}, "target_delimiter must be text, got 3"),
    ],
)
def test_what_is_not_supported_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        task_of(tmp_path, CHOICES, **changes)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"doc_to_target": 3}, "document 0: doc_to_target must give one of the choices .* or its number, got 3"),
        ({"doc_to_target": "{{question}}"}, "document 0: doc_to_target must give one of the choices"),
        ({"doc_to_target": "options"}, "document 0: doc_to_target must give a text or a number"),
        ({"doc_to_choice": "question"}, "document 0: doc_to_choice must give a list of texts"),
        ({"doc_to_choice": ["", "no"]}, "document 0: acc_norm needs choices that are not empty"),
        ({"doc_to_text": "{{ 1 // 0 }}"}, "task animals, document 0: integer division or modulo by zero"),
        ({"doc_to_text": "{{"}, "task animals has no Jinja template"),
    ],
)
def test_documents_that_do_not_fit_are_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        questions(task_of(tmp_path, CHOICES, **changes))


@pytest.mark.parametrize("label", [-1, 7])
def test_an_example_without_an_answer_is_one_sentence(tmp_path: Path, label: int) -> None:
    files = {"data_files": {"test": "animals.json", "train": "unlabelled.json"}}
    (tmp_path / "unlabelled.json").write_text(json.dumps([{**ANIMALS[0], "answer": label}]))
    few = {"dataset_kwargs": files, "fewshot_split": "train", "num_fewshot": 1}
    with pytest.raises(ValueError, match=f"document 0: doc_to_target must give one of the choices .* got {label}"):
        questions(task_of(tmp_path, CHOICES, **few))


def test_files_that_are_none(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    assert [task.name for task in read_tasks([folder])] == ["animals", "last_word"]
    with pytest.raises(ValueError, match="has the name of another task, animals"):
        read_tasks([folder, folder / "animals.yaml"])
    (folder / "animals.yaml").write_text("task: !function utils.f")
    with pytest.raises(ValueError, match=r"animals.yaml is no plain YAML: could not determine a constructor"):
        read_tasks([folder])
    (folder / "animals.json").write_text("{")
    write_tasks(tmp_path / "broken")
    for content in (b"{", b"\xff", b"[" * 100000):
        (tmp_path / "broken" / "animals.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"animals\.json is no JSON array and no JSON lines"):
            read_tasks([tmp_path / "broken"])
    with pytest.raises(FileNotFoundError, match="is no task file and no folder of them"):
        read_tasks([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no task files"):
        read_tasks([tmp_path / "empty"])
