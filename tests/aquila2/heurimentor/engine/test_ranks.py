"""Several ranks do what one does: the same gradient, the same samples, the same losses, whatever their shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import trainer
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
for shares in ([1], [3, 1], [2, 0, 1]):
    name = f"{out}/{len(shares)}"
    assert fork_ranks(len(shares), lambda rank: work(rank, shares, name)) == [0] * len(shares)
"""


def test_gradients_equal_the_single_process(tmp_path: Path) -> None:
    run_python("-c", GRADIENTS, tmp_path)
    (alone,) = [torch.load(tmp_path / "1-0.pt")]
    for size in (2, 3):
        ranks = [torch.load(tmp_path / f"{size}-{rank}.pt") for rank in range(size)]
        for index, expected in enumerate(alone):
            assert all(torch.equal(rank[index], ranks[0][index]) for rank in ranks)
            torch.testing.assert_close(ranks[0][index], expected, rtol=2e-5, atol=2e-7)


UNEQUAL = """
import sys, time
from pathlib import Path
from aquila2.training import trainer
from aquila2.training.options import load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

options = load_options(Path(sys.argv[1]))
update = trainer.Loop._update

def slow(self, order, places, part, waited):
    whole = self.loss
    pause = 0.005 * (1 + 2 * self.world.rank)
    self.loss = lambda ids, *rest, **more: time.sleep(pause * len(ids)) or whole(ids, *rest, **more)
    try:
        return update(self, order, places, part, waited)
    finally:
        self.loss = whole

trainer.Loop._update = slow
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
    slow_rank = [shares[1] / sum(shares) for shares in ranks_of(run)]
    assert slow_rank[0] == 0.5 and 0.2 <= slow_rank[-1] <= 0.4  # a quarter is best
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
