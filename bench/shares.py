"""`python -m bench.shares [file]`: ranks of unequal speed, and how near `train.shares: speed` comes to the best split.

Two ranks on gloo, one thread each, whose clocks count what their threads work, the second one's three times: so neither
waiting nor what else is at work on the machine is taken for work. The passes of a step take as long as the slowest
rank's; the balanced optimum is all rows over the sum of the paces that the ranks have in that step. What takes all
ranks as long whatever their shares, the sum of the gradients and the optimizer, is in neither.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import flagattn
from aquila2.heurimentor.engine.keeper import Committed, Keeper, Order
from aquila2.heurimentor.ledger.book import share_out
from aquila2.training import trainer
from aquila2.training.options import Options, dump_options, load_options, parse_options
from bench import machine

COMMAND = "python -m bench.shares"
STEPS, COUNTED = 40, 20
SLOWER, ROWS, MICRO, SEQLEN = 3, 16, 2, 128


def options_of(run: Path, shares: str) -> Options:
    """A run whose ranks share the rows of a step in some way."""
    return parse_options(
        {
            "model": {"preset": "4m"},
            "tokenizer": {"vocab_size": 4104, "sample_bytes": 500_000},
            "data": {
                "sources": [{"name": "english", "path": "builtin:english"}],
                "seq_len": SEQLEN,
                "heldout_rows": 1,
            },
            "batch": {"micro": MICRO, "size": ROWS},
            "train": {"samples": ROWS * STEPS, "shares": shares},
            "run": {"folder": str(run), "tensorboard": False, "progress": False},
        }
    )


def rank(config: str, notes: str) -> None:
    """One rank of a run, to be started by torchrun; notes rows and seconds of the ranks, a line per step."""
    torch.set_num_threads(1)
    seconds = SLOWER if int(os.environ["RANK"]) else 1
    commit = Keeper.commit

    def noted(self: Keeper, order: Order, digest: int, values: Mapping[str, float], busy: Sequence[float]) -> Committed:
        rows = [len(part) for part in share_out(order.count, order.shares)]
        with Path(notes).open("a", encoding="utf-8") as file:
            print(json.dumps([rows, list(busy)]), file=file)
        return commit(self, order, digest, values, busy)

    trainer.Loop.clock = staticmethod(lambda: seconds * time.thread_time())
    Keeper.commit = noted  # type: ignore[method-assign]
    trainer.train(load_options(config))


def over_the_best(rows: Sequence[int], busy: Sequence[float]) -> float:
    """The slowest rank's seconds over those that every rank would take under the best split."""
    return max(busy) * sum(count / taken for count, taken in zip(rows, busy, strict=True)) / sum(rows)


def measure(folder: Path, shares: str) -> tuple[float, float, list[int]]:
    """Seconds of a step's passes, how far they exceed the optimum in percent, and the rows of the ranks at the end."""
    config, notes = folder / f"{shares}.yaml", folder / f"{shares}.jsonl"
    config.write_text(dump_options(options_of(folder / shares, shares)), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "bench.shares", "rank", str(config), str(notes)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    steps = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()][-COUNTED:]
    excess = statistics.median(over_the_best(rows, busy) for rows, busy in steps) - 1
    return statistics.median(max(busy) for _, busy in steps), 100 * excess, steps[-1][0]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["rank"]:
        rank(*arguments[1:])
        return 0
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "shares.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for shares in ("equal", "speed"):
            seconds, excess, rows = measure(Path(temporary), shares)
            table[shares] = {
                "passes_ms": float(f"{1e3 * seconds:.4g}"),
                "over_the_best_percent": float(f"{excess:.3g}"),
                "rows": rows,
            }
            print(shares, json.dumps(table[shares]), flush=True)
    facts = {
        "command": COMMAND,
        "torch": torch.__version__,
        "cpu_level": str(flagattn.cpu_level()),
        "slower": SLOWER,
        "tokens_per_row": SEQLEN,
        "shares": table,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
