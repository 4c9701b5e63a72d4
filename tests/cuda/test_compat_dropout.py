"""What FlashAttention-2's signature shows of dropout on CUDA belongs to the attention that was computed."""

from __future__ import annotations

import pytest
import torch

from flagattn.compat import flash_attn

pytestmark = pytest.mark.gpu


def test_dropped_weights_are_those_of_the_output() -> None:
    q, k, v = (torch.randn(2, 40, 2, 64, device="cuda") for _ in range(3))
    q, k, v = (operand.bfloat16() for operand in (q, k, v))
    slopes = torch.rand(2, device="cuda")
    torch.manual_seed(3)
    out, lse, signed = flash_attn.flash_attn_func(q, k, v, 0.5, alibi_slopes=slopes, return_attn_probs=True)
    weights = signed[..., :40, :40].float()
    kept = torch.where(weights > 0, weights, 0) / weights.abs().sum(-1, keepdim=True) * 2
    expected = torch.einsum("bhij,bjhd->bihd", kept, v.float())
    assert signed.device == q.device and lse.device == q.device
    torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)
