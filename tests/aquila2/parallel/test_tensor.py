"""Layers shared by tensor parallelism are the same layers: gradients, and a run that goes on with and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aquila2 import Aquila2Config
from aquila2.parallel.tensor import check_tensor
from aquila2.training.metrics import read_metrics
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import options_for, ranks_of, run_python, write_texts
from tests.aquila2.parallel.gradients import compare_gradients
from tests.aquila2.parallel.turns import same_run

GRADIENTS = """
import sys
from pathlib import Path
from tests.aquila2.parallel.gradients import save_gradients

out = Path(sys.argv[1])
save_gradients(out / "one", [1], {}, False)
save_gradients(out / "two", [1], {"tensor": 2}, True)
save_gradients(out / "bias", [1], {}, False, attention_bias=True)
save_gradients(out / "four", [1, 2], {"shard": 2, "tensor": 2}, False, attention_bias=True)
"""


def test_gradients_of_shared_layers_equal_the_single_process(tmp_path: Path) -> None:
    run_python("-c", GRADIENTS, tmp_path)
    assert 1 < compare_gradients(tmp_path / "two", tmp_path / "one", ranks=2) < 2  # not what lies between the layers
    assert 1 < compare_gradients(tmp_path / "four", tmp_path / "bias", ranks=4) < 2


def test_a_run_goes_on_with_and_without_shared_layers(tmp_path: Path) -> None:
    run, _, said = same_run(tmp_path, "2 4 parallel.tensor=2", "4 8 parallel.tensor=2 parallel.shard=0", "1 0")
    assert ranks_of(run) == [[1, 1], [1]]  # ranks that share layers count as one
    assert "redistribut" not in said  # torch warns of norms and tensors that are put together at a cost


UNLIKE = """
import sys, torch
from aquila2.training import trainer
from aquila2.training.options import load_options
from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks

one_step = trainer.Loop._one_step

def train(rank):
    def stepping(self, *arguments):
        measured = one_step(self, *arguments)
        if rank == 1 and self.progress.step == 2:
            with torch.no_grad():
                self.model.model.norm.weight.to_local()[0] += 1e-3
        return measured
    trainer.Loop._one_step = stepping
    result = trainer.train(load_options(sys.argv[1]))
    torch.save(result.model.model.norm.weight.full_tensor(), f"{sys.argv[1]}-{rank}.pt")

assert fork_ranks(2, train) == [0, 0]
"""


def test_what_sharers_hold_alike_is_compared(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    run = tmp_path / "run"
    options = options_for(tmp_path / "texts", run, run={"save_every": 4, "tensorboard": False}, parallel={"tensor": 2})
    config = tmp_path / "config.yaml"
    config.write_text(dump_options(options))
    run_python("-c", UNLIKE, config)
    alerts = [record for record in read_metrics(run) if record.get("alert") == "ranks_differ"]
    assert [(alert["step"], alert["subject"]) for alert in alerts] == [(4, "rank 1")]
    first, second = (torch.load(f"{config}-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)


def test_layers_that_cannot_be_shared_evenly_are_refused() -> None:
    config = Aquila2Config.named("tiny")
    check_tensor(config, 2)
    sentence = "must divide the model's 2 key/value heads and its intermediate_size of 192, got 4"
    with pytest.raises(ValueError, match=f"^parallel.tensor {sentence}$"):
        check_tensor(config, 4)
