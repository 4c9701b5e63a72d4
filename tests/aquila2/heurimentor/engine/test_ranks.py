"""Several ranks do what one does: the same gradient, the same samples, the same losses, whatever their shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import trainer
from aquila2.training.metrics import read_metrics
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import (
    lineage_of,
    losses_of,
    options_for,
    ranks_of,
    rows_of,
    run_python,
    write_texts,
)

GRADIENTS = """
import sys, torch
from pathlib import Path
from aquila2 import Aquila2Config, Aquila2ForCausalLM
from aquila2.heurimentor.engine.gradients import GradientSum
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.ledger.book import share_out
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

def work(rank, shares, out):
    torch.manual_seed(0)
    model = Aquila2ForCausalLM(Aquila2Config.named("tiny", vocab_size=304))
    ids = torch.randint(304, (8, 17))
    targets = ids[:, 1:].clone()
    for row in range(8):
        targets[row, : 2 * row] = -100  # rows count differently
    world = World()
    gradients = GradientSum(model.parameters(), world, bucket_bytes=100_000)
    for step in range(2):  # the second one finds buckets in use
        model.zero_grad(set_to_none=step == 0)
        places = share_out(8, shares)[rank]
        count = world.sum(int((targets[places.start : places.stop] >= 0).sum()))
        for row in places:
            if row == places.stop - 1:
                gradients.begin()
            mine = int((targets[row] >= 0).sum())
            (model.loss(ids[row : row + 1, :-1], targets[row : row + 1]) * (mine / count)).backward()
        gradients.finish()
    torch.save([parameter.grad for parameter in model.parameters()], f"{out}-{rank}.pt")

out = sys.argv[1]
for shares in ([1], [3, 1], [2, 0, 1], [2, 1, 3, 2]):
    name = f"{out}/{len(shares)}"
    assert fork_ranks(len(shares), lambda rank: work(rank, shares, name)) == [0] * len(shares)
"""


def test_gradients_equal_the_single_process(tmp_path: Path) -> None:
    run_python("-c", GRADIENTS, tmp_path)
    (alone,) = [torch.load(tmp_path / "1-0.pt")]
    for size in (2, 3, 4):
        ranks = [torch.load(tmp_path / f"{size}-{rank}.pt") for rank in range(size)]
        for index, expected in enumerate(alone):
            assert all(torch.equal(rank[index], ranks[0][index]) for rank in ranks)
            torch.testing.assert_close(ranks[0][index], expected, rtol=2e-5, atol=2e-7)


UNEQUAL = """
import sys
from pathlib import Path
from aquila2.training import trainer
from aquila2.training.options import load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

options = load_options(Path(sys.argv[1]))
update = trainer.Loop._update
now = [0.0]  # seconds of a rank, which pass by the rows that it works on and by nothing else

def timed(self, order, places, part, waited):
    whole = self.loss

    def loss(ids, *rest, **more):
        now[0] += 0.005 * (1 + 2 * self.world.rank) * len(ids)
        return whole(ids, *rest, **more)

    self.loss = loss
    try:
        return update(self, order, places, part, waited)
    finally:
        self.loss = whole

trainer.Loop.clock = staticmethod(lambda: now[0])
trainer.Loop._update = timed
assert fork_ranks(2, lambda rank: trainer.train(options)) == [0, 0]
"""


def test_shares_follow_speed_and_change_no_gradient(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    run, equal = tmp_path / "run", tmp_path / "equal"
    sections: dict[str, Any] = {"batch": {"micro": 2, "size": 8}, "train": {"samples": 144, "shares": "speed"}}
    (tmp_path / "config.yaml").write_text(dump_options(options_for(tmp_path / "texts", run, **sections)))
    run_python("-c", UNEQUAL, tmp_path / "config.yaml")
    trainer.train(options_for(tmp_path / "texts", equal, **sections))
    assert not audit(run, data=True).faults
    assert ranks_of(run) == [[1, 1], [6, 2]]  # the second takes three times as long for a row: a quarter is best
    seconds = [record["seconds"] for record in read_metrics(run) if record["kind"] == "train"]
    assert [round(value, 6) for value in seconds] == [0.02] * 8 + [0.03] * 10
    assert rows_of(run) == rows_of(equal)
    for (_, loss, _), (_, other, _) in zip(losses_of(equal), losses_of(run), strict=True):
        assert other == pytest.approx(loss, rel=2e-3)


def test_torchrun_starts_ranks_and_the_first_speaks_for_all(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    options = options_for(tmp_path / "texts", tmp_path / "run", train={"samples": 16})
    (tmp_path / "config.yaml").write_text(dump_options(options))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_python(*torchrun, "-m", "aquila2.cli", "train", tmp_path / "config.yaml")
    assert done.stdout.count("held-out loss") == 1
    assert not audit(tmp_path / "run", data=True).faults
    assert lineage_of(tmp_path / "run").ranks == [1, 1]


PREPARED = """
import os, sys, time
from pathlib import Path
import torch.distributed as dist
from aquila2.heurimentor.engine.world import OtherRankFailed
from aquila2.training import trainer
from aquila2.training.options import load_options

options = load_options(Path(sys.argv[1]))
rank, timeouts = int(os.environ["RANK"]), []
prepare, join = trainer.prepare, dist.init_process_group

def preparing(*arguments):
    assert rank == 0 and not dist.is_initialized()  # nobody waits for it in a group
    if len(sys.argv) > 2:
        raise ValueError("no text")
    return prepare(*arguments)

def joining(*arguments, timeout, **more):
    assert (Path(options.run.folder) / "data" / "prepared.json").is_file()
    timeouts.append(timeout.total_seconds())
    return join(*arguments, timeout=timeout, **more)

trainer.prepare, dist.init_process_group = preparing, joining
try:
    assert trainer.train(options).progress.step == 12
    assert timeouts == [600.0] and not dist.is_initialized()
except (OtherRankFailed, ValueError) as error:
    assert "no text" in str(error) and not timeouts and len(sys.argv) > 2
    print(f"rank {rank}: {type(error).__name__}", flush=True)
"""


def test_the_first_rank_prepares_before_there_is_a_group(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    options = options_for(
        tmp_path / "texts", tmp_path / "run", run={"timeout_minutes": 10, "tensorboard": False, "progress": False}
    )
    (tmp_path / "config.yaml").write_text(dump_options(options))
    (tmp_path / "script.py").write_text(PREPARED)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "script.py"]
    done = run_python(*torchrun, tmp_path / "config.yaml", "fail")
    assert sorted(done.stdout.split("\n")) == ["", "rank 0: ValueError", "rank 1: OtherRankFailed"]
    run_python(*torchrun, tmp_path / "config.yaml")
    assert not audit(tmp_path / "run", data=True).faults


UNLIKE = """
import sys, torch
from pathlib import Path
from aquila2.training import trainer
from aquila2.training.options import load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

options = load_options(Path(sys.argv[1]))
one_step, seed = trainer.Loop._one_step, torch.manual_seed

def train(rank):
    torch.manual_seed = lambda number: seed(number + rank)  # as if ranks drew other weights
    def stepping(self, *arguments):
        measured = one_step(self, *arguments)
        if rank == 1 and self.progress.step == 6:  # as if another machine rounded otherwise
            with torch.no_grad():
                next(self.model.parameters()).view(-1)[:1].mul_(1 + 2**-20)
        return measured
    trainer.Loop._one_step = stepping
    result = trainer.train(options)
    torch.save(list(result.model.parameters()), f"{options.run.folder}-{rank}.pt")

assert fork_ranks(2, train) == [0, 0]
"""


def test_ranks_begin_and_stay_with_the_weights_of_the_first(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    run, alone = tmp_path / "run", tmp_path / "alone"
    (tmp_path / "config.yaml").write_text(
        dump_options(options_for(tmp_path / "texts", run, run={"save_every": 8, "tensorboard": False}))
    )
    said = run_python("-c", UNLIKE, tmp_path / "config.yaml").stderr
    assert said.count("rank 1 had other weights than rank 0") == 1
    (alert,) = [record for record in read_metrics(run) if record.get("alert") == "ranks_differ"]
    assert (alert["step"], alert["subject"]) == (8, "rank 1")
    first, second = (torch.load(f"{run}-{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    trainer.train(options_for(tmp_path / "texts", alone))
    assert losses_of(run)[0][1] == pytest.approx(losses_of(alone)[0][1], rel=1e-6)
