"""Task files in the YAML form of lm_eval, and the local documents that they name.

The subset: output types multiple_choice and loglikelihood, JSON data on this machine, texts from Jinja templates or
columns, metrics acc and acc_norm. A file that asks for more is refused with what it asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

METRICS = {"multiple_choice": ("acc", "acc_norm"), "loglikelihood": ("acc",)}
ENDINGS = (".yaml", ".yml")
KNOWN = (
    "task", "output_type", "dataset_path", "dataset_kwargs", "training_split", "validation_split", "test_split",
    "fewshot_split", "fewshot_config", "num_fewshot", "description", "doc_to_text", "doc_to_choice", "doc_to_target",
    "target_delimiter", "fewshot_delimiter", "metric_list",
)  # fmt: skip
# They change no score: names for lists, notes, what looks for documents in the training data.
WITHOUT_EFFECT = ("task_alias", "tag", "group", "metadata", "should_decontaminate", "doc_to_decontamination_query")
# Options that are taken at their defaults only.
DEFAULTS: dict[str, Any] = {"dataset_name": None, "repeats": 1, "unsafe_code": False}

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What a task file says.

    Attributes:
        name: Of the task.
        kind: "multiple_choice" or "loglikelihood".
        metrics: "acc", and for choices "acc_norm".
        documents: What is asked about.
        examples: What few-shot examples are taken from; None where they come from `documents`, themselves left out.
        shots: Few-shot examples before each question.
        first_n: Whether they are the first ones, else they are drawn.
        text, target: Templates or names of columns.
        choices: The same, or the choices of all documents.
        description: A template of what stands before everything.
        target_delimiter, fewshot_delimiter: Between question and answer, and behind an example.
    """

    name: str
    kind: str
    metrics: tuple[str, ...]
    documents: list[Document]
    examples: list[Document] | None
    shots: int
    first_n: bool
    text: str
    target: str | int
    choices: str | list[str] | None
    description: str
    target_delimiter: str
    fewshot_delimiter: str


def read_tasks(paths: Sequence[str | Path]) -> list[Task]:
    """The tasks of files, and of all .yaml files of folders, by their names.

    Raises:
        FileNotFoundError: A path, or data that a file names, is not there.
        ValueError: A file is not of the supported subset, a folder has none, or two tasks share a name.
    """
    tasks: dict[str, Task] = {}
    for file in _files(paths):
        task = _task(file)
        if task.name in tasks:
            raise ValueError(f"{file} has the name of another task, {task.name}")
        tasks[task.name] = task
    return [tasks[name] for name in sorted(tasks)]


def _files(paths: Iterable[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix in ENDINGS)
            if not found:
                raise ValueError(f"{path} has no task files ({' or '.join(ENDINGS)})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path} is no task file and no folder of them")
    return files


def _task(file: Path) -> Task:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{file} must hold the options of a task, got {entries!r:.60}")
    _check_options(file, entries)
    kind = entries["output_type"]
    splits = _splits(file, entries)
    named = {role: entries.get(f"{role}_split") for role in ("training", "validation", "test", "fewshot")}
    for role, split in named.items():
        if split is not None and not (isinstance(split, str) and split in splits):
            raise ValueError(f"{file}: {role}_split must be one of {', '.join(splits)}, got {split!r}")
    asked = named["test"] or named["validation"]
    if asked is None:
        raise ValueError(f"{file} must name a test_split or validation_split")
    if not splits[asked]:
        raise ValueError(f"{file}: the split {asked!r} has no documents")
    shots = entries.get("num_fewshot") or 0
    source = named["fewshot"] or named["training"] or named["validation"] or asked
    own = source == asked
    if shots and len(splits[source]) < shots + own:
        raise ValueError(f"{file}: num_fewshot = {shots} needs more documents than the split {source!r} has")
    return Task(
        name=entries["task"],
        kind=kind,
        metrics=_metrics(file, entries),
        documents=splits[asked],
        examples=None if own else splits[source],
        shots=shots,
        first_n=(entries.get("fewshot_config") or {}).get("sampler") == "first_n",
        text=entries["doc_to_text"],
        target=entries["doc_to_target"],
        choices=_choices(entries.get("doc_to_choice")),
        description=entries.get("description") or "",
        target_delimiter=entries.get("target_delimiter", " "),
        fewshot_delimiter=entries.get("fewshot_delimiter", "\n\n"),
    )


def _check_options(file: Path, entries: Mapping[str, Any]) -> None:
    """Refuses what is not of the subset, by name."""
    for key, value in entries.items():
        if key in DEFAULTS and value != DEFAULTS[key]:
            raise ValueError(f"{file}: {key} must be {DEFAULTS[key]!r}, got {value!r}")
        if key not in (*KNOWN, *WITHOUT_EFFECT, *DEFAULTS):
            raise ValueError(f"{file}: the option {key} is not supported; supported are {', '.join(KNOWN)}")
    kind = entries.get("output_type", "generate_until")
    few = entries.get("fewshot_config") or {}
    text, target, choices = (entries.get(f"doc_to_{what}") for what in ("text", "target", "choice"))
    shots = entries.get("num_fewshot") or 0
    checks = [
        (isinstance(kind, str) and kind in METRICS, f"output_type must be {' or '.join(METRICS)}, got {kind!r}"),
        (isinstance(entries.get("task"), str) and entries["task"], "task must be a name"),
        (entries.get("dataset_path") == "json", f"dataset_path must be json, got {entries.get('dataset_path')!r}"),
        (isinstance(text, str), f"doc_to_text must be a template or a column, got {text!r}"),
        (type(target) in (str, int), f"doc_to_target must be a template, a column or a number, got {target!r}"),
        (
            choices is None if kind == "loglikelihood" else isinstance(choices, (str, list, dict)),
            f"doc_to_choice must be choices, a template or a column where there are choices, got {choices!r}",
        ),
        (type(shots) is int and shots >= 0, f"num_fewshot must be a number of at least 0, got {shots!r}"),
        (
            isinstance(few, dict)
            and few.get("sampler", "default") in ("default", "first_n")
            and set(few) <= {"sampler"},
            f"fewshot_config must be a sampler, default or first_n, got {few!r}",
        ),
    ]
    checks += [
        (type(entries.get(key, "")) is str, f"{key} must be text, got {entries.get(key)!r}")
        for key in ("description", "target_delimiter", "fewshot_delimiter")
    ]
    for holds, sentence in checks:
        if not holds:
            raise ValueError(f"{file}: {sentence}")


def _metrics(file: Path, entries: Mapping[str, Any]) -> tuple[str, ...]:
    allowed = METRICS[entries["output_type"]]
    listed = entries.get("metric_list")
    if listed is None:
        return allowed
    for entry in listed if isinstance(listed, list) and listed else [listed]:
        known = isinstance(entry, dict) and entry.get("metric") in allowed
        if not known or entry.get("aggregation", "mean") != "mean":
            raise ValueError(f"{file}: metric_list may have the mean of {' and '.join(allowed)}, got {entry!r}")
    return tuple(entry["metric"] for entry in listed)


def _choices(given: Any) -> str | list[str] | None:
    if isinstance(given, dict):
        return [str(value) for value in given.values()]
    return [str(value) for value in given] if isinstance(given, list) else given


def _splits(file: Path, entries: Mapping[str, Any]) -> dict[str, list[Document]]:
    """The documents of every split; names of files are taken from the task file's folder."""
    arguments = entries.get("dataset_kwargs") or {}
    if not isinstance(arguments, dict) or set(arguments) != {"data_files"}:
        raise ValueError(f"{file}: dataset_kwargs must have data_files, and nothing else, got {arguments!r}")
    files = arguments["data_files"]
    by_split = files if isinstance(files, dict) else {"train": files}
    found = {}
    for split, names in by_split.items():
        several = names if isinstance(names, list) else [names]
        if not isinstance(split, str) or not all(isinstance(name, str) for name in several):
            raise ValueError(f"{file}: data_files must be names of files, by split or of all, got {files!r:.60}")
        found[split] = [document for name in several for document in _documents(file.parent / name)]
    return found


def _documents(file: Path) -> list[Document]:
    """The objects of a JSON array, or of lines."""
    try:
        text = file.read_text(encoding="utf-8")
        whole = text.lstrip().startswith("[")
        documents = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON array and no JSON lines: {error}") from None
    if not all(isinstance(document, dict) for document in documents):
        raise ValueError(f"{file} must hold JSON objects only")
    return list(documents)
