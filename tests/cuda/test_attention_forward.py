"""The CUDA attention op on a GPU against the oracle, on the cases of the host-executed kernel's tests.

bench/gpu_session.sh compares the two with one another, from a record.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import flagattn
from flagattn.testing import (
    AttentionCase,
    assert_all_close_to_oracle,
    attention_by_op,
    attention_by_reference,
    make_inputs,
)
from tests.host_exec.test_attention_forward_sm80 import CASES, DTYPES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    ours = attention_by_op(case, make_inputs(case, dtype, device="cuda"), gradients=False)
    plain = attention_by_reference(case, inputs, dtype, gradients=False)
    ref64 = attention_by_reference(case, inputs, torch.float64, gradients=False)
    assert_all_close_to_oracle({name: result.cpu() for name, result in ours.items()}, plain, ref64)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_same_bits_every_time_on_any_stream(head_dim: int) -> None:
    case = AttentionCase("long", 2048, 2048, batch=2, heads_q=8, heads_k=2, head_dim=head_dim, causal=True)
    inputs = make_inputs(case, torch.bfloat16, device="cuda")
    first = attention_by_op(case, inputs, gradients=False)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            again = attention_by_op(case, inputs, gradients=False)
            assert torch.equal(again["out"], first["out"]) and torch.equal(again["lse"], first["lse"])


def test_is_captured_in_a_graph() -> None:
    q, k, v = (torch.randn(1, 300, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = flagattn.flash_attn_func(q, k, v, causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flagattn.flash_attn_func(q, k, v, causal=True)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)


def test_large_offsets() -> None:
    """Operands of more than 2^31 elements: the last batch lies beyond 32-bit offsets."""
    batch, seqlen, heads, head_dim = 70, 1024, 240, 128
    if torch.cuda.get_device_properties(0).total_memory < 4.5 * batch * seqlen * heads * head_dim * 2:
        pytest.skip("the GPU's memory is too small")
    q = torch.randn(batch, seqlen, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    out = flagattn.flash_attn_func(q, q, q)
    alone = flagattn.flash_attn_func(q[-1:], q[-1:], q[-1:])
    assert torch.equal(out[-1:], alone)


def test_refuses_what_has_no_kernel() -> None:
    case = replace(CASES[0], head_dim=64)
    inputs = make_inputs(case, torch.float32, device="cuda")
    with pytest.raises(RuntimeError, match="attention on CUDA supports bfloat16 and float16"):
        attention_by_op(case, inputs, gradients=False)
