"""The runner of attention cases where the operands are not on the CPU: meta tensors stand in for a GPU's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flagattn.testing import SCORE_CASES, AttentionCase, attention_by_op, make_inputs


class Calls(TorchDispatchMode):
    """The tensors that attention_forward is called with, by argument name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.flagattn.attention_forward.default:
            names = [argument.name for argument in func._schema.arguments]
            self.calls.append(dict(zip(names, args)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", [case for case in SCORE_CASES if not case.is_piecewise], ids=str)
def test_every_operand_is_on_the_device_and_dropout_is_the_oracles(case: AttentionCase) -> None:
    inputs = make_inputs(case, torch.bfloat16, device="meta")
    calls = Calls()
    with calls:
        results = attention_by_op(case, inputs, gradients=False)
    (call,) = calls.calls
    assert {tensor.device.type for tensor in call.values() if isinstance(tensor, torch.Tensor)} == {"meta"}
    assert call.get("rng_state") is inputs.rng_state and call.get("dropout_p", 0.0) == case.dropout_p
    assert results["out"].shape == (*inputs.operands["q"].shape[:-1], case.value_dim)


@pytest.mark.parametrize("case", [case for case in SCORE_CASES if case.dropout_p > 0.0], ids=str)
def test_the_public_functions_draw_what_the_raw_op_is_given(case: AttentionCase) -> None:
    """Of one seed both ways give the same bits, so the raw op stands for the public functions on other devices."""
    inputs = make_inputs(case, torch.bfloat16)
    calls = Calls()
    with calls:
        attention_by_op(case, inputs, gradients=False)
    assert torch.equal(calls.calls[0]["rng_state"], inputs.rng_state)
