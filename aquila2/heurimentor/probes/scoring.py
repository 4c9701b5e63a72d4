"""How well a model answers: the likelihood of every ending, and from it the share of right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch

from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.monitor.intervals import Estimate, proportion
from aquila2.heurimentor.probes.prompts import Question, questions
from aquila2.heurimentor.probes.tasks import Task, read_tasks
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer


class Row(NamedTuple):
    """The ids of a context with an ending, and the place of the first that counts."""

    ids: list[int]
    first: int


class Score(NamedTuple):
    """The log-likelihood of an ending, and whether the model would have written it by itself."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Probe:
    """A task whose questions are ids.

    Attributes:
        task: What it was made from.
        asked: Its questions.
        rows: All endings of all questions, in order.
    """

    task: Task
    asked: list[Question]
    rows: list[Row]

    @property
    def chance(self) -> float:
        """The share of right answers of one who knows nothing; 0 where there are no choices."""
        shares = [1 / len(question.endings) for question in self.asked if question.gold is not None]
        return sum(shares) / len(self.asked)

    def accuracies(self, scores: Sequence[Score]) -> dict[str, Estimate]:
        """Per metric, the share of right answers with its 95 % interval, from the scores of all rows."""
        right = dict.fromkeys(self.task.metrics, 0)
        at = 0
        for question in self.asked:
            mine = scores[at : at + len(question.endings)]
            at += len(mine)
            for metric in right:
                right[metric] += _is_right(question, mine, metric)
        return {f"{self.task.name}/{metric}": proportion(count, len(self.asked)) for metric, count in right.items()}


def make_probes(paths: Sequence[str], tokenizer: Aquila2Tokenizer, longest: int, limit: int = 0) -> list[Probe]:
    """The probes of task files and of folders of them (see `read_tasks` and `make_probe`)."""
    return [make_probe(task, tokenizer, longest, limit) for task in read_tasks(paths)]


def make_probe(task: Task, tokenizer: Aquila2Tokenizer, longest: int, limit: int = 0) -> Probe:
    """Encodes the questions of a task.

    Every row begins with the tokenizer's opening id, as documents do in training. Special tokens spelled out in a text
    are only text. Where context and ending share a token, the ending counts from it on; all endings of a question
    count from the same place. Contexts that are too long lose their beginning.

    Args:
        task: What its file says.
        tokenizer: The model's.
        longest: Ids that the model reads at once.
        limit: How many documents are taken; 0 takes all.

    Raises:
        ValueError: A document does not fit the templates, or an ending has no id of its own, or too many.
    """
    asked = questions(task, limit)
    contexts, wholes = [], []
    for question in asked:
        # A space belongs to the word behind it.
        context = question.context.rstrip()
        spaces = question.context[len(context) :]
        contexts.append(context)
        wholes += [f"{context}{spaces}{ending}" for ending in question.endings]
    known = tokenizer.encode_batch(contexts, bos=True, allow_special=False)
    ids = iter(tokenizer.encode_batch(wholes, bos=True, allow_special=False))
    rows: list[Row] = []
    for number, (question, prefix) in enumerate(zip(asked, known, strict=True)):
        several = [next(ids) for _ in question.endings]
        first = min(_shared(prefix, one) for one in several)
        for one in several:
            if not 0 < len(one) - first < longest:
                raise ValueError(
                    f"task {task.name}, document {number}: an ending must have between 1 and {longest - 1} ids, "
                    f"got {len(one) - first}"
                )
            cut = max(0, len(one) - 1 - longest)
            kept = [one[0], *one[1 + cut :]]
            rows.append(Row(kept, first - cut))
    return Probe(task, asked, rows)


@torch.no_grad()
def run_probes(
    model: Aquila2ForCausalLM,
    probes: Sequence[Probe],
    most_tokens: int,
    device: torch.device,
    bf16: bool = False,
    world: World | None = None,
) -> dict[str, Estimate]:
    """Asks a model all questions; neither its weights nor any random state change.

    All ranks go through the model equally often, as those that share its weights have to.

    Args:
        model: The model.
        probes: The tasks.
        most_tokens: Of rows that are read at once; a longer row is read alone.
        device: Where the model is.
        bf16: Whether it works in bf16 (autocast).
        world: The ranks, which share the batches; their number changes no bit.

    Returns:
        Per task and metric, as "task/metric", the share of right answers with its 95 % interval.
    """
    world = world or World()
    rows = [row for probe in probes for row in probe.rows]
    batches = _batches(rows, most_tokens)
    was_training = model.training
    model.eval()
    mine = []
    for first in range(0, len(batches), world.size):
        number = first + world.rank
        batch = batches[min(number, len(batches) - 1)]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scored = _scores(model, [rows[index] for index in batch], device)
        if number < len(batches):
            mine.append(scored)
    model.train(was_training)
    everybody = world.gather(mine)
    scores = [Score(0.0, False)] * len(rows)
    for number, batch in enumerate(batches):
        for index, score in zip(batch, everybody[number % world.size][number // world.size], strict=True):
            scores[index] = score
    found: dict[str, Estimate] = {}
    at = 0
    for probe in probes:
        found.update(probe.accuracies(scores[at : at + len(probe.rows)]))
        at += len(probe.rows)
    return found


def _scores(model: Aquila2ForCausalLM, rows: Sequence[Row], device: torch.device) -> list[Score]:
    """One pass over rows that stand behind each other, each of them a document of its own."""
    inputs = [row.ids[:-1] for row in rows]
    starts = [0]
    for ids in inputs:
        starts.append(starts[-1] + len(ids))
    places = [start + at for row, start in zip(rows, starts) for at in range(row.first - 1, len(row.ids) - 1)]
    packed = torch.tensor([[token for ids in inputs for token in ids]], device=device)
    logits = model(
        packed,
        cu_seqlens=torch.tensor(starts, dtype=torch.int32, device=device),
        max_seqlen=max(map(len, inputs)),
        logits_at=torch.tensor(places, device=device),
    ).logits.float()
    targets = torch.tensor([token for row in rows for token in row.ids[row.first :]], device=device)
    picked = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].double().cpu()
    greedy = (logits.argmax(dim=-1) == targets).cpu()
    counts = [len(row.ids) - row.first for row in rows]
    pairs = zip(picked.split(counts), greedy.split(counts), strict=True)
    return [Score(float(values.sum()), bool(hits.all())) for values, hits in pairs]


def _batches(rows: Sequence[Row], most_tokens: int) -> list[list[int]]:
    """Numbers of rows, the longest first, in batches of at most so many ids."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    batches: list[list[int]] = []
    filled = most_tokens
    for index in order:
        size = len(rows[index].ids) - 1
        if filled + size > most_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += size
    return batches


def _is_right(question: Question, scores: Sequence[Score], metric: str) -> bool:
    if question.gold is None:
        return scores[0].greedy
    weights = question.lengths if metric == "acc_norm" else [1] * len(scores)
    values = [score.log_likelihood / weight for score, weight in zip(scores, weights, strict=True)]
    return max(range(len(values)), key=values.__getitem__) == question.gold


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second))))
