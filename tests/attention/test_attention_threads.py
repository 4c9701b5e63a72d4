"""Same inputs, same bits: for any thread count, from any thread, after a fork, run after run."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import flagattn
from flagattn.testing import DENSE_CASES, PIECEWISE_CASES, VARLEN_CASES, AttentionCase, attention_by_op, make_inputs

WIDE = AttentionCase("wide", 700, 900, heads_q=2, heads_k=1, causal=True, lse_gradient=True)
ONE_HEAD = AttentionCase("one_head", 1500, 1500, heads_q=1, heads_k=1, head_dim=32, causal=True)
FAR = AttentionCase("far", 600, 600, heads_q=2, heads_k=1, causal=True, dist_threshold=170)


def cases() -> list[AttentionCase]:
    names = {"gqa_6_short", "window_both", "long_full", "packed", "odd_lengths", "many_short", "aligned"}
    return [WIDE, ONE_HEAD, FAR, *(c for c in DENSE_CASES + VARLEN_CASES + PIECEWISE_CASES if c.name in names)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_bits_do_not_depend_on_threads(case: AttentionCase, dtype: torch.dtype, set_threads: Callable) -> None:
    inputs = make_inputs(case, dtype)
    results = []
    for threads in (1, 2, 3, 8, 2):
        set_threads(threads)
        results.append(attention_by_op(case, inputs))
    for name, first in results[0].items():
        assert all(torch.equal(first, other[name]) for other in results[1:]), name


def test_a_sequences_bits_do_not_depend_on_its_batch() -> None:
    q, k, v = (torch.randn(3, 130, heads, 32, requires_grad=True) for heads in (4, 2, 2))
    dout = torch.randn(3, 130, 4, 32)
    out = flagattn.flash_attn_func(q, k, v, causal=True)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    for index in range(3):
        alone = slice(index, index + 1)
        out_alone = flagattn.flash_attn_func(q[alone], k[alone], v[alone], causal=True)
        assert torch.equal(out[alone], out_alone)
        for gradient, gradient_alone in zip(gradients, torch.autograd.grad(out_alone, (q, k, v), dout[alone])):
            assert torch.equal(gradient[alone], gradient_alone[alone])


def test_many_python_threads_at_once(set_threads: Callable) -> None:
    set_threads(2)
    inputs = make_inputs(WIDE, torch.float32)
    expected = attention_by_op(WIDE, inputs)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: attention_by_op(WIDE, inputs), range(8)):
            assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_a_forked_child_computes_the_same() -> None:
    inputs = make_inputs(FAR, torch.float32)
    expected = attention_by_op(FAR, inputs)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            ours = attention_by_op(FAR, inputs)
            status = 0 if all(torch.equal(ours[name], expected[name]) for name in expected) else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
