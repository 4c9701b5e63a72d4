"""More keys than a chunk, and than a worker keeps packed: results, and bits that depend on a row's own keys alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import flagattn
from flagattn.testing import (
    AttentionCase,
    assert_all_close_to_oracle,
    attention_by_op,
    attention_by_reference,
    available_cpu_levels,
    make_inputs,
    set_cpu_level,
)

CASES = (
    AttentionCase("full", 70, 2100, heads_q=2, heads_k=1, lse_gradient=True),
    AttentionCase("causal", 1500, 1500, heads_q=1, heads_k=1, head_dim=16, causal=True),
    AttentionCase("window", 300, 3300, heads_q=1, heads_k=1, head_dim=32, window_size=(1100, 130)),
    AttentionCase("more_queries", 2300, 1200, heads_q=1, heads_k=1, head_dim=8, window_size=(700, 20)),
    AttentionCase("piecewise", 200, 2500, heads_q=3, heads_k=1, head_dim=24, causal=True, dist_threshold=1200),
    AttentionCase("packed", lengths=((40, 1025), (3, 1024), (65, 2049), (1, 7)), heads_q=4, heads_k=2, causal=True),
    # Keys and values of 128 dims fill the tiles that a worker keeps at 8192 keys: several items then share a pass.
    AttentionCase("passes", 70, 8500, heads_q=2, heads_k=1, head_dim=128, causal=True),
    AttentionCase("passes_piecewise", 60, 6300, heads_q=2, heads_k=1, head_dim=128, dist_threshold=3000),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results(case: AttentionCase, dtype: torch.dtype, set_threads: Callable) -> None:
    inputs = make_inputs(case, dtype)
    plain = attention_by_reference(case, inputs, dtype)
    ref64 = attention_by_reference(case, inputs, torch.float64)
    set_threads(2)
    for level in available_cpu_levels():
        with set_cpu_level(level):
            assert_all_close_to_oracle(attention_by_op(case, inputs), plain, ref64)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_threads(case: AttentionCase, set_threads: Callable) -> None:
    inputs = make_inputs(case, torch.float32)
    results = []
    for threads in (1, 2, 8):
        set_threads(threads)
        results.append(attention_by_op(case, inputs))
    for name, first in results[0].items():
        assert all(torch.equal(first, other[name]) for other in results[1:]), name


@pytest.mark.parametrize("level", available_cpu_levels())
def test_a_rows_bits_depend_on_its_own_keys_alone(level: str) -> None:
    q, k, v = (torch.randn(1, rows, 1, 128) for rows in (1, 8500, 8500))
    with set_cpu_level(level):
        whole = flagattn.flash_attn_func(q, k[:, :3000], v[:, :3000])
        causal = flagattn.flash_attn_func(q.expand(1, 8500, 1, 128), k, v, causal=True)
    assert torch.equal(causal[:, 2999], whole[:, 0])


@pytest.mark.parametrize("level", available_cpu_levels())
def test_what_is_not_finite_stays_in_its_chunk(level: str) -> None:
    q, k, v = (torch.randn(1, 2300, 1, 16) for _ in range(3))
    with set_cpu_level(level):
        expected = flagattn.flash_attn_func(q, k, v, causal=True)
        k[:, 1500], v[:, 1500] = torch.nan, torch.inf
        ours = flagattn.flash_attn_func(q, k, v, causal=True)
    assert torch.equal(ours[:, :1500], expected[:, :1500])
    assert ours[:, 1500:].isnan().all()
