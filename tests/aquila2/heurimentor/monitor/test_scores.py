"""The largest attention scores: those of the masked products, at measurements and in every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aquila2 import Aquila2Config, Aquila2ForCausalLM
from aquila2.heurimentor.engine.keeper import Committed, Keeper
from aquila2.heurimentor.monitor import scores
from aquila2.heurimentor.monitor.scores import StepScores, largest_of, largest_scores
from aquila2.training import trainer
from aquila2.training.data import Batch
from aquila2.training.metrics import read_metrics
from tests.aquila2.heurimentor.runs import options_for, write_texts


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_largest_scores_are_those_of_the_masked_products(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "QUERY_BLOCK", 5)
    config = Aquila2Config.named("tiny", vocab_size=304, num_key_value_heads=kv_heads, num_hidden_layers=4)
    model = Aquila2ForCausalLM(config.replace(initializer_range=0.3)).train()
    ids = torch.randint(0, 300, (2, 16))
    bounds = torch.tensor([0, 7, 16, 17, 32], dtype=torch.int32)
    batch = Batch(ids, ids.roll(-1, 1), bounds, 16, ["a", "a"])
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in model.model.layers:
        layer.self_attn.observer = lambda number, q, k: seen.update({number: (q, k)})
    model.loss(batch.input_ids, batch.targets, cu_seqlens=bounds, max_seqlen=16)
    for layer in model.model.layers:
        layer.self_attn.observer = None
    found = largest_scores(model, [batch])
    assert list(found) == [0, 2, 3] and model.training
    for number, largest in found.items():
        q, k = (part.detach().flatten(0, 1).double() for part in seen[number])
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        products = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(config.head_dim)
        document = torch.bucketize(torch.arange(32), bounds, right=True)
        allowed = (document[:, None] == document[None]) & torch.ones(32, 32).tril().bool()
        assert largest == pytest.approx(products[:, allowed].max().item(), rel=1e-5)
    assert all(layer.self_attn.observer is None for layer in model.model.layers)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_looks_at_the_first_rows_of_its_first_batch(recompute: bool) -> None:
    config = Aquila2Config.named("tiny", vocab_size=304, num_hidden_layers=4, initializer_range=0.3)
    model = Aquila2ForCausalLM(config).train()
    model.set_activation_checkpointing(recompute)
    ids = torch.randint(0, 300, (4, 16))
    bounds = torch.tensor([0, 7, 16, 17, 32], dtype=torch.int32)
    first, second = (Batch(part, part.roll(-1, 1), bounds, 16, ["a", "a"]) for part in ids.split(2))
    watch = StepScores(model, 1)
    for batches in ([first, second], [second]):
        watch.begin(batches)
        largest_scores(model, [second])  # a measurement in between changes nothing
        for batch in batches:
            model.loss(batch.input_ids, batch.targets, cu_seqlens=bounds, max_seqlen=16).backward()
        row = Batch(batches[0].input_ids[:1], batches[0].targets[:1], bounds[:3], 16, ["a"])
        assert watch.take() == pytest.approx(largest_scores(model, [row]), rel=1e-5)
    watch.begin([])
    assert watch.take() == {}


def test_every_step_has_them_and_one_may_do_without(tmp_path: Path) -> None:
    write_texts(tmp_path)
    for name, rows in (("run", 2), ("without", 0)):
        trainer.train(options_for(tmp_path, tmp_path / name, train={"samples": 8}, monitor={"score_rows": rows}))
    steps, without = ([r for r in read_metrics(tmp_path / n) if r["kind"] == "train"] for n in ("run", "without"))
    assert all(math.isfinite(step["max_logit_layer_0"]) and math.isfinite(step["max_logit_layer_1"]) for step in steps)
    assert [step["loss"] for step in steps] == [step["loss"] for step in without]  # to look changes nothing
    assert not any("max_logit_layer_0" in step for step in without)


def test_looking_counts_as_no_work_on_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    looked, passes, commit = scores._largest_score, trainer.Loop._passes, Keeper.commit
    found: list[float] = []

    def looking(*arguments: Any) -> torch.Tensor:
        now[0] += 5.0
        return looked(*arguments)

    def passing(self: trainer.Loop, part: Any, count: int) -> list[torch.Tensor]:
        now[0] += 2.0
        return passes(self, part, count)

    def committing(self: Keeper, order: Any, digest: int, values: Any, busy: Sequence[float]) -> Committed:
        found.extend(busy)
        return commit(self, order, digest, values, busy)

    monkeypatch.setattr(trainer.Loop, "clock", staticmethod(lambda: now[0]))
    monkeypatch.setattr(scores, "_largest_score", looking)
    monkeypatch.setattr(trainer.Loop, "_passes", passing)
    monkeypatch.setattr(Keeper, "commit", committing)
    write_texts(tmp_path / "texts")
    trainer.train(options_for(tmp_path / "texts", tmp_path / "run", train={"samples": 8}))
    assert found == [2.0, 2.0] and now[0] > 4.0 + 2 * 5.0


def test_ranks_have_other_heads_or_layers() -> None:
    found = largest_of([{0: 1.0, 3: -2.0}, {}, {0: 2.0, 1: math.nan}, {1: 5.0}])
    assert list(found) == [0, 1, 3] and (found[0], found[3]) == (2.0, -2.0) and math.isnan(found[1])
