"""Numbers of a step: FLOPs against a count of the model's own products, MFU, memory, skew."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aquila2 import Aquila2Config, Aquila2ForCausalLM
from aquila2.heurimentor.monitor.speed import Speed, flops_per_token, peak_flops


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_of_the_products(tied: bool) -> None:
    config = Aquila2Config.named("tiny", vocab_size=304, tie_word_embeddings=tied)
    model = Aquila2ForCausalLM(config)
    ids = torch.randint(304, (2, 32))
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).loss.backward()
    # Attention is an op of ours, which torch's counter does not know, and the norms' gains are no products.
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * 32
    gains = 6 * (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert counter.get_total_flops() / 64 == pytest.approx(flops_per_token(config, 32) - attention - gains)


def test_values_of_a_step() -> None:
    config = Aquila2Config.named("tiny", vocab_size=304)
    cpu = torch.device("cpu")
    assert 1e8 < peak_flops(cpu) < 1e15 and peak_flops(torch.device("meta")) == 0.0
    values = Speed(config, 32, cpu, 3).values(6400, 2.0, [0.5, 1.5, 0.6])
    assert values["tokens_per_second"] == 3200 and values["skew"] == pytest.approx(2.5)
    assert 0 < values["mfu"] < 1 and values["memory"] > 1e7
