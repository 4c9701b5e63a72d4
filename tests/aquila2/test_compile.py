"""The whole model is one graph."""

from __future__ import annotations

import pytest
import torch

from aquila2 import Aquila2ForCausalLM


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_fullgraph(tiny_model: Aquila2ForCausalLM, packed: bool) -> None:
    ids = torch.randint(304, (2, 24))
    places = {"cu_seqlens": torch.tensor([0, 5, 24, 48], dtype=torch.int32)} if packed else {}
    compiled = torch.compile(tiny_model, fullgraph=True, backend="aot_eager")
    gradients = []
    for model in (tiny_model, compiled):
        tiny_model.zero_grad()
        output = model(ids[:, :], ids, **places)
        output.loss.backward()
        gradients.append([output.logits.detach(), *(parameter.grad.clone() for parameter in tiny_model.parameters())])
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-6)


def test_the_loss_alone_is_one_graph(tiny_model: Aquila2ForCausalLM) -> None:
    ids = torch.randint(304, (2, 24))
    gradients = []
    for loss in (tiny_model.loss, torch.compile(tiny_model.loss, fullgraph=True, dynamic=True, backend="aot_eager")):
        tiny_model.zero_grad()
        loss(ids, ids).backward()
        gradients.append([parameter.grad.clone() for parameter in tiny_model.parameters()])
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-6)
