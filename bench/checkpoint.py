"""`python -m bench.checkpoint [file]`: what saving costs the steps of a 100M model, and how fast one is loaded.

Saving is measured in a run of `aquila2 train` that saves after every second step. The stall is all the time that the
trainer's thread spends in a save, ledger and waiting for the save before included; the step beside it is the one during
which the thread writes, and the other steps are undisturbed. The first save also takes the memory for the copies.

Loading is measured on the run's last checkpoint while it is in the page cache, so that the disk does not count: rounds
of hashing as many bytes in memory on all cores, of verifying, and of verifying while loading into model and optimizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import flagattn
from aquila2.heurimentor.hashing import BLOCK
from aquila2.heurimentor.verified import verify
from aquila2.training import trainer
from aquila2.training.loading import load_verified
from aquila2.training.optim import make_adamw
from aquila2.training.options import Options
from bench import machine
from bench.runs import options_for

COMMAND = "python -m bench.checkpoint"
SEQLEN, ROWS, STEPS, SAVE_EVERY = 1024, 2, 9, 2
WARM_UP = 2  # steps that are left out
ROUNDS = 5


@dataclass
class Times:
    """Seconds of every step, and of every save by the step that it stood behind."""

    steps: list[float] = field(default_factory=list)
    saves: dict[int, float] = field(default_factory=dict)


def options_of(folder: Path, way: str) -> Options:
    """A run that saves as told."""
    return options_for(
        folder,
        preset="100m",
        tokenizer={"vocab_size": 16392, "sample_bytes": 4_000_000},
        seqlen=SEQLEN,
        rows=ROWS,
        steps=STEPS,
        save=way,
        save_every=SAVE_EVERY,
        keep=1,
    )


@contextmanager
def timed_loop(times: Times) -> Iterator[None]:
    """Notes how long the trainer's thread is in every step and in every save."""
    one_step, save = trainer.Loop._one_step, trainer.Loop._save

    def stepping(self: trainer.Loop, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = one_step(self, *arguments)
        times.steps.append(time.perf_counter() - started)
        return result

    def saving(self: trainer.Loop, last: bool = False) -> Path:
        started = time.perf_counter()
        path = save(self, last)
        if not last:
            times.saves[self.progress.step] = time.perf_counter() - started
        return path

    with mock.patch.object(trainer.Loop, "_one_step", stepping), mock.patch.object(trainer.Loop, "_save", saving):
        yield


def save_figures(times: Times) -> dict[str, float]:
    """Milliseconds of a step, of the stall by a save, and of the step beside the writing."""
    beside = [seconds for step, seconds in enumerate(times.steps, 1) if step - 1 in times.saves and step > WARM_UP]
    calm = [seconds for step, seconds in enumerate(times.steps, 1) if step - 1 not in times.saves and step > WARM_UP]
    first, *later = times.saves.values()
    step, stall = statistics.median(calm), statistics.median(later)
    return {
        "step_ms": 1e3 * step,
        "stall_ms": 1e3 * stall,
        "stall_percent": 100 * stall / step,
        "first_stall_ms": 1e3 * first,
        "step_beside_ms": 1e3 * statistics.median(beside),
    }


def load_figures(result: trainer.Result, options: Options) -> dict[str, float]:
    """Rates in GB/s, medians over rounds; shares of the hash function's rate are medians of each round's."""
    optimizer = make_adamw(result.model, options.optimizer)
    files = [path.read_bytes() for path in sorted(result.checkpoint.iterdir())]
    size = sum(map(len, files))
    blocks = [
        memoryview(content)[start : start + BLOCK] for content in files for start in range(0, len(content), BLOCK)
    ]

    def hash_all() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda block: hashlib.sha256(block).digest(), blocks))

    rates: dict[str, list[float]] = {"hash": [], "verify": [], "verified_load": []}
    for _ in range(ROUNDS):
        for name, work in (
            ("hash", hash_all),
            ("verify", lambda: verify(result.checkpoint)),
            ("verified_load", lambda: load_verified(result.checkpoint, result.model, optimizer)),
        ):
            rates[name].append(size / _seconds(work) / 1e9)
    figures = {f"{name}_gb_per_s": statistics.median(found) for name, found in rates.items()}
    for name in ("verify", "verified_load"):
        ratios = [a / b for a, b in zip(rates[name], rates["hash"], strict=True)]
        figures[f"{name}_percent_of_hash"] = 100 * statistics.median(ratios)
    return {"bytes": float(size), **figures}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(arguments: list[str]) -> int:
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "checkpoint.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        options = options_of(Path(temporary) / "run", "async")
        times = Times()
        with timed_loop(times):
            result = trainer.train(options)
        figures["save"] = save_figures(times)
        figures["load"] = load_figures(result, options)
    rounded = {kind: {key: float(f"{value:.4g}") for key, value in found.items()} for kind, found in figures.items()}
    facts = {
        "command": COMMAND,
        "torch": torch.__version__,
        "cpu_level": str(flagattn.cpu_level()),
        "threads": torch.get_num_threads(),
        "parameters": result.model.config.num_parameters,
        "tokens_per_step": ROWS * SEQLEN,
        "saves": len(times.saves),
        **rounded,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
