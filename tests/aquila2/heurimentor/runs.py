"""Tiny training runs for the tests of the engine, and what their files say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.training.metrics import read_metrics
from aquila2.training.options import Options, parse_options

ROOT = Path(__file__).parents[3]


def run_python(*arguments: str | Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Runs Python with this checkout on its path and one thread per process; a failure shows what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done


def write_texts(folder: Path) -> None:
    """Two sources of small documents: words and sums."""
    folder.mkdir(parents=True, exist_ok=True)
    words = "".join(f'{{"text": "word {"la " * (i % 5)}number {i} ends here"}}\n' for i in range(60))
    sums = "".join(f'{{"text": "{i} plus {i * 7 % 31} is {i + i * 7 % 31}."}}\n' for i in range(50))
    (folder / "words.jsonl").write_text(words)
    (folder / "sums.jsonl").write_text(sums)


def options_for(texts: Path, folder: Path, **sections: Any) -> Options:
    """A tiny run of 12 steps of 4 samples on two domains; `sections` override."""
    entries: dict[str, Any] = {
        "model": {"preset": "tiny"},
        "tokenizer": {"vocab_size": 300},
        "data": {
            "sources": [
                {"name": "words", "path": str(texts / "words.jsonl"), "weight": 3.0},
                {"name": "sums", "path": str(texts / "sums.jsonl"), "weight": 1.0},
            ],
            "seq_len": 24,
            "heldout": 0.1,
            "heldout_rows": 4,
        },
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_samples": 8},
        "batch": {"micro": 2, "size": 4},
        "train": {"samples": 48},
        "run": {"folder": str(folder), "tensorboard": False, "progress": False, "keep": 10},
    }
    for name, values in sections.items():
        entries[name] = {**entries.get(name, {}), **values} if isinstance(values, dict) else values
    return parse_options(entries)


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    """(step, loss, norm of the gradient) of every step."""
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(folder) if r["kind"] == "train"]


def lineage_of(folder: Path) -> Lineage:
    """What the ledger of a run says."""
    return Lineage.of(scan(folder / NAME).lines)


def rows_of(folder: Path) -> list[tuple[str, int]]:
    """(segment, row) of every sample that the lineage trained, in order."""
    lineage = lineage_of(folder)
    rows: list[tuple[str, int]] = []
    for step in lineage.steps:
        draws = lineage.schedule.draws(step.first, step.samples)
        names = [lineage.schedule.segments[number].id for number in draws.segments.tolist()]
        rows += zip(names, draws.rows.tolist(), strict=True)
    return rows


def ranks_of(run: Path) -> list[list[int]]:
    """The shares of the ranks, as often as they changed."""
    return [line.record["shares"] for line in scan(run / NAME).lines if line.record["kind"] == "ranks"]
