"""The amx level's tile registers belong to the thread: torch's own kernels, which use them too, run between ours."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import flagattn
from flagattn.testing import available_cpu_levels, set_cpu_level


@pytest.mark.skipif("amx" not in available_cpu_levels(), reason="the host has no tile registers")
@pytest.mark.parametrize("threads", [1, 2])
def test_torch_and_ours_take_turns(threads: int, set_threads: object) -> None:
    assert callable(set_threads)
    set_threads(threads)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 150, 4, 64, dtype=torch.bfloat16) for _ in range(3))
    a, b = torch.randn(200, 300, dtype=torch.bfloat16), torch.randn(300, 100, dtype=torch.bfloat16)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    with set_cpu_level("amx"):
        ours = flagattn.flash_attn_func(q, k, v, causal=True)
        product, attention = a @ b, scaled_dot_product_attention(*heads_first, is_causal=True)
        for _ in range(3):
            assert torch.equal(flagattn.flash_attn_func(q, k, v, causal=True), ours)
            assert torch.equal(a @ b, product)
            assert torch.equal(flagattn.flash_attn_func(q, k, v, causal=True), ours)
            assert torch.equal(scaled_dot_product_attention(*heads_first, is_causal=True), attention)
    torch.testing.assert_close(ours.float(), attention.transpose(1, 2).float(), rtol=2e-2, atol=2e-2)
