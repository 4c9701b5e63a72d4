"""Divided runs under bf16: a broken step is skipped or gone back from, and a killed rank is made up for."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2.heurimentor.ledger.audit import audit
from aquila2.parallel.values import local
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from aquila2.training.options import dump_options, load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks
from tests.aquila2.heurimentor.runs import lineage_of, losses_of, options_for, rows_of, run_python, write_texts

LAYOUTS: dict[str, dict[str, Any]] = {"shard": {"shard": 2}, "tensor": {"tensor": 2}, "stages": {"stages": [1, 1]}}
SECTIONS: dict[str, Any] = {
    "batch": {"micro": 4, "size": 4},
    "train": {"samples": 88, "precision": "bf16"},
    "optimizer": {"lr": 1e-3},
    "run": {"save_every": 8, "save": "sync", "tensorboard": False, "progress": False, "keep": 10},
}
SCRIPT = "import sys; from tests.aquila2.parallel.test_divided_alerts import run_all; run_all(sys.argv[1:])"
KILLED_AT, BROKEN_AT, LARGE_AT = 10, 3, 20


def break_gradients() -> None:
    """Breaks a gradient at two steps, once each, on the last rank only and where it is not summed any more."""
    passes = trainer.Loop._passes
    to_come = {BROKEN_AT: float("nan"), LARGE_AT: 1e3}

    def breaking(self: trainer.Loop, *arguments: Any) -> list[torch.Tensor]:
        losses = passes(self, *arguments)
        factor = to_come.pop(self.progress.step + 1, None)
        if factor is not None and self.world.rank == 1:
            first = next(parameter.grad for parameter in self.model.parameters() if parameter.grad is not None)
            local(first).mul_(factor)
        return losses

    trainer.Loop._passes = breaking  # type: ignore[method-assign]


def run_all(configs: list[str]) -> None:
    """Trains each configuration on two forked ranks, one of which is killed on the way."""
    one_step = trainer.Loop._one_step

    def dying(self: trainer.Loop, *arguments: Any) -> Any:
        if self.progress.step == KILLED_AT and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(self, *arguments)

    for config in configs:

        def train(rank: int, killed: bool, config: str = config) -> None:
            break_gradients()
            trainer.Loop._one_step = dying if killed else one_step  # type: ignore[method-assign]
            trainer.train(load_options(config))

        first, second = fork_ranks(2, lambda rank: train(rank, killed=True))
        assert first != 0 and second == -signal.SIGKILL
        assert fork_ranks(2, lambda rank: train(rank, killed=False)) == [0, 0]


def test_divided_runs_skip_go_back_and_outlive_a_rank(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    configs = [tmp_path / f"{name}.yaml" for name in LAYOUTS]
    for name, parallel in LAYOUTS.items():
        monitor = {"not_finite": "skip", "spike": "rewind"}
        options = options_for(tmp_path / "texts", tmp_path / name, **SECTIONS, monitor=monitor, parallel=parallel)
        (tmp_path / f"{name}.yaml").write_text(dump_options(options))
    run_python("-c", SCRIPT, *configs)
    # As if one process had known it all.
    decisions = [{"after": BROKEN_AT - 1, "skip": 4}, {"after": 16, "skip": 16}]
    trainer.train(options_for(tmp_path / "texts", tmp_path / "alone", **SECTIONS, decisions=decisions))
    expected = losses_of(tmp_path / "alone")
    for name in LAYOUTS:
        run = tmp_path / name
        result = audit(run, data=True)
        assert not result.faults and result.undone == (KILLED_AT - 8) + (LARGE_AT - 1 - 16), name
        told = [(r["step"], r["alert"], r["rank"]) for r in read_metrics(run) if r["kind"] == "alert" and "rank" in r]
        assert told == [(BROKEN_AT, "not_finite", 0), (16, "rewind", 0)], name
        assert [line.record["cause"] for line in lineage_of(run).resumes] == ["crash", "rewind"], name
        assert rows_of(run) == rows_of(tmp_path / "alone"), name
        for (step, loss, norm), (same, other, other_norm) in zip(expected, losses_of(run), strict=True):
            assert step == same
            assert other == pytest.approx(loss, rel=2e-3), name
            assert other_norm == pytest.approx(norm, rel=2e-2), name
