"""One run that several layouts of ranks take in turn, and the run of one process that it has to equal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from aquila2.training.options import Options, dump_options, load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks
from tests.aquila2.heurimentor.runs import losses_of, options_for, rows_of, run_python, write_texts

SCRIPT = "import sys; from tests.aquila2.parallel.turns import take_turns; take_turns(*sys.argv[1:])"
QUIET = {"tensorboard": False, "progress": False, "eval_every": 4, "keep": 10}


def take_turns(config: str, *turns: str) -> None:
    """Forks the ranks of each turn, such as "2 6 parallel.shard=0": two of them, up to step 6.

    To be called where torch has run no threads.
    """
    one_step = trainer.Loop._one_step

    for ranks, end, *overrides in map(str.split, turns):

        def train(rank: int, end: int = int(end), overrides: list[str] = overrides) -> None:
            def stepping(self: trainer.Loop, *arguments: object) -> object:
                measured = one_step(self, *arguments)  # type: ignore[arg-type]
                if self.progress.step == end and rank == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                return measured

            trainer.Loop._one_step = stepping  # type: ignore[assignment]
            trainer.train(load_options(config, overrides))

        assert fork_ranks(int(ranks), train) == [0] * int(ranks)


def same_run(folder: Path, *turns: str, layers: int = 2) -> tuple[Path, Path, str]:
    """Trains 12 steps of 6 rows in turns, and again in one process; the second has to be the first within rounding.

    Returns:
        The folders of both, and what the first said.
    """
    write_texts(folder / "texts")
    run, alone = folder / "run", folder / "alone"

    def options(place: Path) -> Options:
        sections = {"model": {"num_hidden_layers": layers}, "batch": {"micro": 2, "size": 6}, "train": {"samples": 72}}
        return options_for(folder / "texts", place, run=QUIET, **sections)

    (folder / "config.yaml").write_text(dump_options(options(run)))
    said = run_python("-c", SCRIPT, folder / "config.yaml", *turns).stderr
    trainer.train(options(alone))
    assert not audit(run, data=True).faults
    assert rows_of(run) == rows_of(alone)
    expected, found = losses_of(alone), losses_of(run)
    assert [step for step, _, _ in found] == [step for step, _, _ in expected] == [*range(1, 13)]
    for (_, loss, norm), (_, other, other_norm) in zip(expected, found, strict=True):
        assert other == pytest.approx(loss, rel=1e-3)
        assert other_norm == pytest.approx(norm, rel=2e-2)
    seen, more = ([r for r in read_metrics(place) if r["kind"] == "train"] for place in (alone, run))
    for one, several in zip(seen, more, strict=True):  # each rank looks at a row of its own
        assert one.keys() == several.keys()
        for key in (key for key in one if key.startswith("max_logit")):
            assert several[key] >= one[key] - 0.02 * abs(one[key])
    return run, alone, said
