"""The gradients of CUDA attention on a GPU: the shared cases against the oracle and the host-executed kernels."""

from __future__ import annotations

import pytest
import torch

from flagattn.testing import (
    DENSE_CASES,
    VARLEN_CASES,
    AttentionCase,
    assert_all_close_to_oracle,
    attention_by_op,
    attention_by_reference,
    make_inputs,
)
from tests.host_exec import kernels_backward

CASES = [case for case in (*DENSE_CASES, *VARLEN_CASES) if kernels_backward.supported_by_sm80(case)]
DTYPES = [torch.bfloat16, torch.float16]

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    ours = attention_by_op(case, make_inputs(case, dtype, device="cuda"))
    plain = attention_by_reference(case, inputs, dtype)
    ref64 = attention_by_reference(case, inputs, torch.float64)
    assert_all_close_to_oracle({name: result.cpu() for name, result in ours.items()}, plain, ref64)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_same_bits_every_time(head_dim: int, causal: bool) -> None:
    case = AttentionCase("long", 2048, 2048, batch=2, heads_q=8, heads_k=2, head_dim=head_dim, causal=causal)
    inputs = make_inputs(case, torch.bfloat16, device="cuda")
    first = attention_by_op(case, inputs)
    for _ in range(20):
        again = attention_by_op(case, inputs)
        assert all(torch.equal(again[name], first[name]) for name in first)
