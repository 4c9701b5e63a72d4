"""Every head dim that the kernels take, forward and backward: results and gradients against the float64 oracle."""

from __future__ import annotations

import pytest
import torch

from flagattn.testing import (
    AttentionCase,
    attention_by_op,
    attention_by_reference,
    make_inputs,
)
from tests.attention.small_problems import assert_close_in_small_problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("values", ["as wide", "of another width"])
@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_head_dim(head_dim: int, values: str, dtype: torch.dtype, cpu_level: str) -> None:
    value_dim = head_dim if values == "as wide" else 264 - head_dim
    case = AttentionCase(
        f"dim_{head_dim}_value_{value_dim}",
        33,
        41,
        heads_q=4,
        heads_k=2,
        head_dim=head_dim,
        head_dim_v=value_dim,
        causal=True,
        lse_gradient=True,
    )
    inputs = make_inputs(case, dtype)
    plain, ref64 = (attention_by_reference(case, inputs, kind) for kind in (dtype, torch.float64))
    assert_close_in_small_problem(attention_by_op(case, inputs), plain, ref64)
