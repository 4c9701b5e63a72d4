"""Task files for the tests of probes, in lm_eval's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ANIMALS = [
    {"question": "What barks?", "options": ["a dog", "a very quiet stone", "rain"], "answer": 0},
    {"question": "What meows?", "options": ["snow", "the old cat", "a dog"], "answer": 1},
    {"question": "什么会飞？", "options": ["石头", "鱼", "一只鸟"], "answer": 2},
    {"question": "What swims?", "options": ["a fish", "sand", "wood and iron"], "answer": 0},
    {"question": "What jumps over the dog?", "options": ["the quick brown fox", "it", "[CLS]"], "answer": 0},
]
CHOICES: dict[str, Any] = {
    "task": "animals",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "animals.json"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "options",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0},
}
WORDS: dict[str, Any] = {
    "task": "last_word",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "words.jsonl", "train": ["shots.jsonl"]}},
    "output_type": "loglikelihood",
    "validation_split": "validation",
    "training_split": "train",
    "doc_to_text": "{{text.split(' ')[:-1] | join(' ')}}",
    "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
SENTENCES = ["The quick brown fox jumps", "over the lazy dog", "we learn it by heart", "small text", "on small text"]
SHOTS = ["a small model on small text", "the lazy dog", "and it learns it by heart"]


def write_tasks(folder: Path, *tasks: dict[str, Any]) -> Path:
    """Writes the tasks, by default both, and their data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "animals.json").write_text(json.dumps(ANIMALS), encoding="utf-8")
    for name, texts in (("words", SENTENCES), ("shots", SHOTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for task in tasks or (CHOICES, WORDS):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    return folder
