"""`python -m bench.trainer [file]`: what `aquila2 train` costs over a bare loop with the same model and batches.

The bare loop has forward, backward, clipping, AdamW and reads the loss; its batches lie ready. The trainer has its
ledger, monitor, metrics and reading of rows beside. Both take turns, each from the same weights; the first steps of
every turn are left out, and a turn counts with the median of its steps.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import flagattn
from aquila2.heurimentor.data.stream import BatchStream
from aquila2.heurimentor.ledger.locate import RunData
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training import trainer
from aquila2.training.data import Batch, tokenizer_id
from aquila2.training.optim import make_adamw
from aquila2.training.options import Options
from bench import machine
from bench.runs import options_for

COMMAND = "python -m bench.trainer"
TURNS, WARM_UP = 5, 8
MODELS = {"4m": 40, "25m": 16}  # steps of a turn
SEQLEN, ROWS = 256, 4


def options_of(folder: Path, model: str, steps: int) -> Options:
    """A run as long as a turn."""
    tokenizer = {"vocab_size": 4104, "sample_bytes": 500_000}
    return options_for(folder, preset=model, tokenizer=tokenizer, seqlen=SEQLEN, rows=ROWS, steps=steps)


@contextmanager
def timed_steps(found: list[float]) -> Iterator[None]:
    """Notes how long every step of the trainer but the last takes, from its beginning to that of the next."""
    begun: list[float] = []
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        begun.append(time.perf_counter())
        return one_step(self, *arguments)

    with mock.patch.object(trainer.Loop, "_one_step", stepping):
        yield
    found += [end - start for start, end in itertools.pairwise(begun)]


def batches_of(run: Path) -> list[Batch]:
    """What a finished run was fed, step by step."""
    data = RunData(run)
    tokenizer = Aquila2Tokenizer.from_pretrained(run / "tokenizer")
    stream = BatchStream(run, SEQLEN, tokenizer_id(tokenizer))
    stream.open(data.lineage.schedule.segments)
    found = []
    for step in data.lineage.steps:
        draws = data.lineage.schedule.draws(step.first, step.samples)
        found += stream.part(draws, range(step.samples), ROWS).batches
    return found


def bare_turn(options: Options, vocabulary: int, batches: list[Batch]) -> tuple[list[float], list[float]]:
    """Seconds and losses of the steps of a loop that does nothing but train."""
    torch.manual_seed(options.train.seed)
    model = Aquila2ForCausalLM(options.model_config(vocabulary, 0, 0, 0)).train()
    optimizer = make_adamw(model, options.optimizer)
    seconds, losses = [], []
    for batch in batches:
        started = time.perf_counter()
        loss = model.loss(batch.input_ids, batch.targets, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    return seconds, losses


def measure(model: str, steps: int) -> dict[str, float]:
    """Milliseconds of a step, the trainer's and the bare loop's, and by how much the first exceeds the second."""
    ours, bare, gaps = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(TURNS):
            run = Path(temporary) / f"run{turn}"
            options = options_of(run, model, steps)
            if turn:  # the tokenizer and the rows of the first
                for part in ("tokenizer", "data"):
                    shutil.copytree(Path(temporary) / "run0" / part, run / part)
            taken: list[float] = []
            with timed_steps(taken):
                result = trainer.train(options)
            ours.append(statistics.median(taken[WARM_UP:]))
            seconds, losses = bare_turn(options, len(result.tokenizer), batches_of(run))
            bare.append(statistics.median(seconds[WARM_UP:]))
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            first = next(record["loss"] for record in records if record["kind"] == "train")
            gaps.append(abs(first - losses[0]))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    return {
        "trainer_ms": 1e3 * statistics.median(ours),
        "bare_ms": 1e3 * statistics.median(bare),
        "overhead_percent": 100 * (ratio - 1),
        "first_loss_gap": max(gaps),
    }


def main(arguments: list[str]) -> int:
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "trainer.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {}
    for model, steps in MODELS.items():
        table[model] = {key: float(f"{value:.4g}") for key, value in measure(model, steps).items()}
        print(model, json.dumps(table[model]), flush=True)
    facts = {
        "command": COMMAND,
        "torch": torch.__version__,
        "cpu_level": str(flagattn.cpu_level()),
        "threads": torch.get_num_threads(),
        "rows": ROWS,
        "tokens_per_row": SEQLEN,
        "models": table,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
