"""A rank of a divided run is killed, and torchrun and the checkpoints make up for it without a person."""

from __future__ import annotations

from pathlib import Path

from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import trainer
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import lineage_of, options_for, ranks_of, rows_of, run_python, write_texts

DYING = """
import os, signal, sys
from aquila2.training import trainer
from aquila2.training.options import load_options

one_step = trainer.Loop._one_step

def dying(self, *arguments):
    if self.progress.step == 5 and self.world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return one_step(self, *arguments)

trainer.Loop._one_step = dying
trainer.train(load_options(sys.argv[1]))
"""


def test_torchrun_starts_a_divided_run_again(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    run, samples = tmp_path / "run", {"samples": 32}
    quiet = {"save_every": 2, "save": "sync", "tensorboard": False, "progress": False}
    options = options_for(tmp_path / "texts", run, run=quiet, parallel={"shard": 2}, train=samples)
    (tmp_path / "config.yaml").write_text(dump_options(options))
    (tmp_path / "dying.py").write_text(DYING)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    run_python(*torchrun, tmp_path / "dying.py", tmp_path / "config.yaml")
    result = audit(run, data=True)
    assert not result.faults and (result.steps, result.undone) == (8, 1)
    assert [line.record["cause"] for line in lineage_of(run).resumes] == ["crash"] and ranks_of(run) == [[1, 1]]
    trainer.train(options_for(tmp_path / "texts", tmp_path / "calm", train=samples))
    assert rows_of(run) == rows_of(tmp_path / "calm")
