"""The gradients of CUDA attention on a GPU against the oracle, on the cases of the host-executed kernels' tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn.testing import (
    AttentionCase,
    assert_all_close_to_oracle,
    attention_by_op,
    attention_by_reference,
    make_inputs,
)
from tests.host_exec.test_attention_backward_sm80 import CASES, DTYPES

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
def test_same_bits_every_time_on_any_stream(head_dim: int, causal: bool) -> None:
    case = AttentionCase("long", 2048, 2048, batch=2, heads_q=8, heads_k=2, head_dim=head_dim, causal=causal)
    inputs = make_inputs(case, torch.bfloat16, device="cuda")
    first = attention_by_op(case, inputs)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            again = attention_by_op(case, inputs)
            assert all(torch.equal(again[name], first[name]) for name in first)


def gradients(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    leaves = [operand.detach().requires_grad_() for operand in (q, k, v)]
    return torch.autograd.grad(flagattn.flash_attn_func(*leaves, causal=True), leaves, dout)


def test_a_gradient_that_is_a_view_of_anything() -> None:
    """torch.cat hands on a piece that begins 8 bytes into its rows, which the kernels cannot read where it lies."""
    q, k, v = (torch.randn(1, 70, 4, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    wide = torch.randn(1, 70, 4 + 4 * 64, device="cuda", dtype=torch.bfloat16)
    others = torch.zeros(1, 70, 4, device="cuda", dtype=torch.bfloat16)
    joined = torch.cat([others, flagattn.flash_attn_func(q, k, v, causal=True).flatten(-2)], -1)
    ours = torch.autograd.grad(joined, [q, k, v], wide)
    expected = gradients(q, k, v, wide[..., 4:].unflatten(-1, (4, 64)).contiguous())
    assert all(torch.equal(gradient, other) for gradient, other in zip(ours, expected, strict=True))


def test_is_captured_in_a_graph() -> None:
    """More than one tile of keys, so that blocks wait for each other; a replay starts from cleared counters."""
    q, k, v, dout = (torch.randn(1, 700, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    expected = gradients(q, k, v, dout)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(q, k, v, dout)
    for _ in range(3):
        for gradient in captured:
            gradient.zero_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected))


def test_large_offsets() -> None:
    """Operands of more than 2^31 elements: the last batch lies beyond 32-bit offsets."""
    batch, seqlen, heads, head_dim = 70, 1024, 240, 128
    bytes_of_one = batch * seqlen * heads * head_dim * 2
    if torch.cuda.get_device_properties(0).total_memory < 12 * bytes_of_one:
        pytest.skip("the GPU's memory is too small")
    q = torch.randn(batch, seqlen, heads, head_dim, device="cuda", dtype=torch.bfloat16)
    whole = gradients(q, q, q, q)
    alone = gradients(q[-1:], q[-1:], q[-1:], q[-1:])
    assert all(torch.equal(a[-1:], b) for a, b in zip(whole, alone))
