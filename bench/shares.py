"""`python -m bench.shares [file]`: ranks of unequal speed, and how near `train.shares: speed` comes to the best split.

Two ranks on gloo, one thread each, one of which sleeps after each of its passes twice as long as that took: it is three
times as slow, and takes no time from the other. A turn is three runs of the same steps: rows shared equally, shared by
speed, and shared 3:1 from the start, which is the balanced optimum. A run counts with the first quartile of its last
steps: what else is at work on the machine only adds to them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import flagattn
from aquila2.heurimentor.data.stream import Part
from aquila2.heurimentor.engine.keeper import Keeper
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from aquila2.training.options import Options, dump_options, load_options, parse_options
from bench import machine

COMMAND = "python -m bench.shares"
TURNS, STEPS, COUNTED = 3, 24, 12
SLOWER, ROWS, MICRO, SEQLEN = 3, 16, 2, 128
RUNS = ("equal", "speed", "best")


def options_of(run: Path, shares: str) -> Options:
    """A run as long as a turn's."""
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


def rank(config: str, shares: str) -> None:
    """One rank of a run; to be started by torchrun."""
    torch.set_num_threads(1)
    passes, share = trainer.Loop._passes, Keeper.share

    def slowed(self: trainer.Loop, part: Part, count: int) -> list[torch.Tensor]:
        started = time.perf_counter()
        losses = passes(self, part, count)
        if self.world.rank:
            time.sleep((SLOWER - 1) * (time.perf_counter() - started))
        return losses

    trainer.Loop._passes = slowed  # type: ignore[method-assign]
    if shares == "best":
        Keeper.share = lambda self, shares: share(self, [SLOWER, 1])  # type: ignore[method-assign]
    trainer.train(load_options(config))


def measure(folder: Path, shares: str, prepared: Path) -> tuple[float, list[int]]:
    """Seconds of a step of a run, and its last shares."""
    run = folder / shares
    if prepared.is_dir() and prepared != run:
        for part in ("tokenizer", "data"):
            shutil.copytree(prepared / part, run / part)
    config = folder / f"{shares}.yaml"
    config.write_text(dump_options(options_of(run, "speed" if shares == "speed" else "equal")), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "bench.shares", "rank", str(config), shares]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    seconds = [record["seconds"] for record in read_metrics(run) if record["kind"] == "train"]
    entered = [line.record["shares"] for line in scan(run / NAME).lines if line.record["kind"] == "ranks"]
    return statistics.quantiles(seconds[-COUNTED:], n=4)[0], entered[-1]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["rank"]:
        rank(*arguments[1:])
        return 0
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "shares.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    last: list[list[int]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(TURNS):
            folder = Path(temporary) / f"turn{turn}"
            folder.mkdir()
            for name in RUNS:
                taken, shares = measure(folder, name, Path(temporary) / "turn0" / RUNS[0])
                seconds[name].append(taken)
                if name == "speed":
                    last.append(shares)
            print(json.dumps({name: values[-1] for name, values in seconds.items()}), last[-1], flush=True)

    def over_best(name: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds["best"], strict=True))

    facts = {
        "command": COMMAND,
        "torch": torch.__version__,
        "cpu_level": str(flagattn.cpu_level()),
        "slower": SLOWER,
        "rows": ROWS,
        "tokens_per_row": SEQLEN,
        "step_ms": {name: float(f"{1e3 * statistics.median(values):.4g}") for name, values in seconds.items()},
        "shares_found": last,
        "over_the_best_percent": {name: float(f"{100 * (over_best(name) - 1):.3g}") for name in ("equal", "speed")},
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
