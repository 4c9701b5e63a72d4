"""From the documents of a task to the texts that a model compares."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aquila2.heurimentor.probes.tasks import Document, Task

# What a template and the literals that it writes can raise.
WRONG = (
    TemplateError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError,
)  # fmt: skip
SHOTS_SEED = 1234  # lm_eval's, so that it draws the same examples


class Question(NamedTuple):
    """A context, what may follow it, and which of that is right.

    Attributes:
        context: What stands before.
        endings: What may follow it, one where the question is whether the model writes it by itself.
        lengths: Characters of every choice, by which acc_norm divides.
        gold: The number of the right one; None where there is one ending.
    """

    context: str
    endings: tuple[str, ...]
    lengths: tuple[int, ...]
    gold: int | None


def questions(task: Task, limit: int = 0) -> list[Question]:
    """The questions of a task's documents, in their order.

    Args:
        task: What its file says.
        limit: How many documents are taken; 0 takes all.

    Raises:
        ValueError: A template fails on a document, or a target is none of the choices; it names task and document.
    """
    try:
        writer = _Writer(task)
    except TemplateError as error:
        raise ValueError(f"task {task.name} has no Jinja template: {' '.join(str(error).split())}") from None
    asked = []
    for number, document in enumerate(task.documents[: limit or None]):
        try:
            asked.append(writer.question(number, document))
        except WRONG as error:
            raise ValueError(f"task {task.name}, document {number}: {' '.join(str(error).split())}") from None
    return asked


class _Writer:
    def __init__(self, task: Task) -> None:
        self.task, self.random = task, Random(SHOTS_SEED)
        self.columns = {key for document in (*task.documents, *(task.examples or ())) for key in document}
        # Files come from anywhere: their templates reach values of the document, and cannot change them.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        texts = [task.text, task.target, task.choices, task.description]
        self.templates = {text: environment.from_string(text) for text in texts if isinstance(text, str)}

    def question(self, number: int, document: Document) -> Question:
        task = self.task
        description = self.templates[task.description].render(**document)
        shots = "".join(map(self._example, self._shots(number, document)))
        context = f"{description}{shots}{self._text(document)}"
        target = self._target(document)
        if task.kind == "loglikelihood":
            return Question(context, (str(target),), (len(str(target)),), None)
        choices = self._choices(document)
        if "acc_norm" in task.metrics and not all(choices):
            raise ValueError(f"acc_norm needs choices that are not empty, got {choices}")
        gold = _gold(target, choices)
        endings = tuple(f"{task.target_delimiter}{choice}" for choice in choices)
        return Question(context, endings, tuple(map(len, choices)), gold)

    def _shots(self, number: int, document: Document) -> Sequence[Document]:
        """The examples before a question, itself never among them."""
        task = self.task
        if not task.shots:
            return ()
        if task.examples is not None:
            return task.examples[: task.shots] if task.first_n else self.random.sample(task.examples, task.shots)
        others = task.documents
        if not task.first_n:
            others = self.random.sample(task.documents, task.shots + 1)
        kept = [other for other in others if other != document][: task.shots]
        if len(kept) < task.shots:  # it stands several times among the documents
            kept = self.random.sample([other for other in task.documents if other != document], task.shots)
        return kept

    def _example(self, document: Document) -> str:
        target = self._target(document)
        if self.task.kind == "multiple_choice" and isinstance(target, int):
            choices = self._choices(document)
            target = choices[_gold(target, choices)]
        return f"{self._text(document)}{self.task.target_delimiter}{target}{self.task.fewshot_delimiter}"

    def _text(self, document: Document) -> str:
        found = self._value(self.task.text, document)
        if not isinstance(found, str):
            raise ValueError(f"doc_to_text must give a text, got {found!r:.60}")
        return found

    def _target(self, document: Document) -> str | int:
        if isinstance(self.task.target, int):
            return self.task.target
        found = self._value(self.task.target, document)
        if type(found) not in (str, int):
            raise ValueError(f"doc_to_target must give a text or a number, got {found!r:.60}")
        is_number = isinstance(found, str) and self.task.target not in self.columns and found.isdecimal()
        return int(found) if is_number and self.task.kind == "multiple_choice" else found

    def _choices(self, document: Document) -> list[str]:
        given = self.task.choices
        if isinstance(given, str):
            found = self._value(given, document)
            given = found if given in self.columns else ast.literal_eval(found)
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(choice, str) for choice in given):
            raise ValueError(f"doc_to_choice must give a list of texts, got {given!r:.60}")
        return list(given)

    def _value(self, source: str, document: Document) -> Any:
        """The value of a column, or the text of a template."""
        return document[source] if source in self.columns else self.templates[source].render(**document)


def _gold(target: str | int, choices: Sequence[str]) -> int:
    if isinstance(target, int) and 0 <= target < len(choices):
        return target
    if isinstance(target, str) and target in choices:
        return list(choices).index(target)
    raise ValueError(f"doc_to_target must give one of the choices {list(choices)} or its number, got {target!r}")
