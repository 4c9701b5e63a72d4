"""Stop at n ranks and go on at m, with decisions, new data and a killed rank on the way: the run is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from aquila2.cli import main
from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import trainer
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import losses_of, options_for, ranks_of, rows_of, run_python, write_texts

ELASTIC = """
import os, signal, sys
from pathlib import Path
from aquila2.heurimentor.ledger.control import request
from aquila2.cli import main
from aquila2.training import trainer
from aquila2.training.options import load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

run = Path(sys.argv[1])
options = load_options(run.parent / "config.yaml")
one_step = trainer.Loop._one_step

def train(rank, end=None, how=None, who=0):
    def stepping(self, *arguments):
        measured = one_step(self, *arguments)
        if self.progress.step == end and rank == who:
            os.kill(os.getpid(), how)
        return measured
    trainer.Loop._one_step = stepping
    trainer.train(options)

stop, kill = signal.SIGTERM, signal.SIGKILL
assert fork_ranks(1, lambda rank: train(rank, 4, stop)) == [0]
assert main(["mentor", "set", str(run), "mixture=words:1,sums:1", "--after", "6"]) == 0
assert fork_ranks(2, lambda rank: train(rank, 8, stop, who=1)) == [0, 0]
more = run.parent / "texts" / "more.jsonl"
assert main(["mentor", "add", str(run), "more", str(more), "--mixture", "words:1,sums:1,more:2"]) == 0
statuses = fork_ranks(3, lambda rank: train(rank, 13, kill, who=2))  # after the checkpoint of step 12
assert statuses[2] == -kill and all(statuses), statuses
assert fork_ranks(3, lambda rank: train(rank, 15, stop)) == [0, 0, 0]
assert fork_ranks(1, lambda rank: train(rank)) == [0]

def refused(rank):
    assert main(["train", str(run.parent / "config.yaml"), "optimizer.lr=0.5"]) == 2

assert fork_ranks(2, refused) == [0, 0]
"""


def test_one_two_three_one_ranks_with_a_mixture_change_a_new_source_and_a_killed_rank(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "more.jsonl").write_text("".join(f'{{"text": "more, {i}"}}\n' for i in range(40)))
    run = tmp_path / "run"
    options = options_for(
        tmp_path / "texts", run, batch={"micro": 2, "size": 6}, train={"samples": 120}, run={"save_every": 4}
    )
    (tmp_path / "config.yaml").write_text(dump_options(options))
    said = run_python("-c", ELASTIC, run).stderr
    assert "more draws from data/train/more" in said
    assert said.count("holds a run with another optimizer.lr") == 1  # the first rank speaks for all
    result = audit(run, data=True)
    assert not result.faults and (result.steps, result.samples, result.undone) == (20, 120, 1)
    assert [len(shares) for shares in ranks_of(run)] == [2, 3, 1]

    # The same decisions on one rank without a disturbance: the same rows, and losses within rounding. How far rounding
    # reaches is what a third run shows, which differs from the second only in how many rows its gradient adds at once.
    calm, rounded = tmp_path / "calm", tmp_path / "rounded"
    undisturbed(tmp_path / "texts", calm, micro=2)
    undisturbed(tmp_path / "texts", rounded, micro=3)
    assert rows_of(calm) == rows_of(rounded) == rows_of(run)
    expected, found, other = losses_of(calm), losses_of(run), losses_of(rounded)
    assert [entry[0] for entry in found] == [entry[0] for entry in expected] == [*range(1, 21)]
    for column, most in ((1, 2e-3), (2, 3e-2)):
        assert found[0][column] == pytest.approx(expected[0][column], rel=1e-5)
        reach = max(abs(a[column] / b[column] - 1) for a, b in zip(other, expected, strict=True))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[column] == pytest.approx(theirs[column], rel=min(10 * reach + 1e-5, most))


def undisturbed(texts: Path, run: Path, micro: int) -> None:
    options = options_for(
        texts,
        run,
        batch={"micro": micro, "size": 6},
        train={"samples": 120},
        decisions=[{"after": 6, "mixture": {"words": 1.0, "sums": 1.0}}],
    )
    one_step = trainer.Loop._one_step

    def stepping(self: trainer.Loop, *arguments: object) -> dict[str, float]:
        if self.progress.step == 8 and not (run / "data" / "train" / "more").exists():
            more = texts / "more.jsonl"
            assert main(["mentor", "add", str(run), "more", str(more), "--mixture", "words:1,sums:1,more:2"]) == 0
        return one_step(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer.Loop, "_one_step", stepping)
        trainer.train(options)
