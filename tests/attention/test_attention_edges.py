"""Inputs at the edge of what is allowed: expanded operands, generous bounds, NaN, autocast, meta tensors."""

from __future__ import annotations

import sys

import pytest
import torch

import flagattn


def packed_gradients(q, k, v, cu_seqlens, longest, **options):
    leaves = [operand.detach().requires_grad_() for operand in (q, k, v)]
    out = flagattn.flash_attn_varlen_func(*leaves, cu_seqlens, cu_seqlens, longest, longest, **options)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("expanded", ["k", "v"])
def test_rows_of_stride_zero_in_sequences_of_different_lengths(expanded: str) -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(74, 2, 32, generator=generator)
    k, v = torch.randn(2, 74, 1, 32, generator=generator)
    one = torch.randn(1, 1, 32, generator=generator).expand(74, 1, 32)
    k, v = (one, v) if expanded == "k" else (k, one)
    cu_seqlens = torch.tensor([0, 10, 74], dtype=torch.int32)
    for ours, copied in zip(
        packed_gradients(q, k, v, cu_seqlens, 64),
        packed_gradients(q, k.contiguous(), v.contiguous(), cu_seqlens, 64),
        strict=True,
    ):
        assert torch.equal(ours, copied)


def test_any_upper_bound_serves_as_max_seqlen() -> None:
    q, k, v = torch.randn(3, 20, 2, 16)
    cu_seqlens = torch.tensor([0, 7, 20], dtype=torch.int32)
    exact = packed_gradients(q, k, v, cu_seqlens, 13, causal=True)
    for bound in (14, 2**33, sys.maxsize):
        for result, expected in zip(packed_gradients(q, k, v, cu_seqlens, bound, causal=True), exact, strict=True):
            assert torch.equal(result, expected)


def test_a_window_wider_than_any_sequence_is_none() -> None:
    q, k, v = torch.randn(3, 1, 30, 2, 16)
    wide = flagattn.flash_attn_func(q, k, v, window_size=(2**70, sys.maxsize))
    assert torch.equal(wide, flagattn.flash_attn_func(q, k, v))
    far = flagattn.piecewise_attn_func(q, k, k, q, v, 2**70)
    assert torch.equal(far, flagattn.flash_attn_func(q, k, v))


def test_softcap_does_not_hide_nan(cpu_level: str) -> None:
    q, k, v = torch.randn(3, 1, 30, 2, 16)
    q[0, 5] = torch.nan
    out, lse = flagattn.flash_attn_func(q, k, v, softcap=10.0, return_lse=True)
    assert out[0, 5].isnan().all() and lse[0, :, 5].isnan().all()
    assert out[0, 6:].isfinite().all()


def test_denormal_bf16_is_zero_in_tiles(cpu_level: str) -> None:
    """As docs/numerics.md tells."""
    q = torch.ones(1, 1, 2, 32, dtype=torch.bfloat16)
    v = torch.full((1, 40, 2, 32), 1e-39, dtype=torch.bfloat16)
    out = flagattn.flash_attn_func(q, torch.ones_like(v), v)
    assert torch.equal(out, torch.zeros_like(q) if cpu_level == "amx" else v[:, :1])


def test_autocast_joins_operands_of_different_dtypes() -> None:
    q, k, v = torch.randn(3, 1, 30, 2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert flagattn.flash_attn_func(q, k, v.bfloat16()).dtype == torch.bfloat16
        assert flagattn.piecewise_attn_func(q, k, q.bfloat16(), k.bfloat16(), v, 3).dtype == torch.bfloat16


def test_meta_tensors_give_shapes() -> None:
    q = torch.empty(2, 30, 4, 16, device="meta")
    k = torch.empty(2, 40, 2, 16, device="meta")
    assert flagattn.flash_attn_func(q, k, k).shape == (2, 30, 4, 16)


@pytest.mark.parametrize(("name", "value"), [("softmax_scale", 1e39), ("softcap", 1e-50)])
def test_numbers_that_fp32_cannot_hold(name: str, value: float) -> None:
    q, k, v = torch.randn(3, 1, 30, 2, 16)
    with pytest.raises(RuntimeError, match=name):
        flagattn.flash_attn_func(q, k, v, **{name: value})


def test_merging_ignores_what_empty_parts_hold() -> None:
    out, lse = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 4)
    nothing = torch.full_like(lse, -torch.inf)
    merged, merged_lse = flagattn.merge_attention_states([out, torch.full_like(out, torch.nan)], [lse, nothing])
    torch.testing.assert_close(merged, out)
    torch.testing.assert_close(merged_lse, lse)
