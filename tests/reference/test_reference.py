"""The oracle itself: against torch's own ops, against finite differences, and at its edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flagattn import reference


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_attention_equals_torchs() -> None:
    q, k, v = randn(2, 7, 6, 16), randn(2, 9, 2, 16, seed=1), randn(2, 9, 2, 16, seed=2)
    mask = reference.keep_mask(7, 9, causal=True, window_size=(4, -1))
    torchs = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask, enable_gqa=True)
    out, _ = reference.attention(q, k, v, causal=True, window_size=(4, -1))
    torch.testing.assert_close(out, torchs.transpose(1, 2))


def test_keep_mask_is_bottom_right_aligned_and_inclusive() -> None:
    assert reference.keep_mask(2, 4, causal=True).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert reference.keep_mask(3, 2, causal=True).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert reference.keep_mask(2, 4, window_size=(1, 0)).tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert reference.keep_mask(2, 3, window_size=(-1, 0)).tolist() == reference.keep_mask(2, 3, causal=True).tolist()
    assert reference.far_mask(2, 4, 2).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_gradients_equal_finite_differences(softcap: float) -> None:
    leaves = [randn(1, 4, 2, 3), randn(1, 3, 1, 3, seed=1), randn(1, 3, 1, 2, seed=2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def with_finite_lse(outputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = outputs
        return out, lse.masked_fill(lse.isneginf(), 0.0)

    assert torch.autograd.gradcheck(
        lambda q, k, v: with_finite_lse(reference.attention(q, k, v, causal=True, softcap=softcap)), leaves
    )
    q, k, v = leaves
    far = [t.detach().flip(1).requires_grad_() for t in (q, k)]
    assert torch.autograd.gradcheck(
        lambda q1, k1, q2, k2, v: with_finite_lse(
            reference.piecewise_attention(q1, k1, q2, k2, v, 1, causal=True, softcap=softcap)
        ),
        (q, k, *far, v),
    )


def test_empty_rows_and_missing_keys() -> None:
    out, lse = reference.attention(randn(1, 3, 2, 4), randn(1, 1, 1, 4), randn(1, 1, 1, 5), causal=True)
    assert (out[:, :2] == 0).all() and torch.isneginf(lse[..., :2]).all() and lse[..., 2].isfinite().all()
    out, lse = reference.attention(randn(1, 3, 2, 4), randn(1, 0, 1, 4), randn(1, 0, 1, 5))
    assert out.shape == (1, 3, 2, 5) and (out == 0).all() and torch.isneginf(lse).all()


def test_varlen_equals_sequence_by_sequence() -> None:
    q, k = randn(9, 2, 4), randn(7, 1, 4, seed=1)
    cu_q, cu_k = torch.tensor([0, 4, 4, 8]), torch.tensor([0, 3, 7, 7])
    out, lse = reference.attention_varlen(q, k, k, cu_q, cu_k, causal=True)
    first, first_lse = reference.attention(q[None, :4], k[None, :3], k[None, :3], causal=True)
    assert torch.equal(out[:4], first[0]) and torch.equal(lse[:, :4], first_lse[0])
    assert (out[4:] == 0).all() and torch.isneginf(lse[:, 4:]).all()


def test_piecewise_equals_two_masked_softmaxes_merged() -> None:
    q1, k1, q2, k2, v = (randn(1, 8, 2, 4, seed=seed) for seed in range(5))
    near = reference.attention(q1, k1, v, causal=True, window_size=(2, 0))
    far = reference.attention(q2, k2[:, :5], v[:, :5], causal=True)
    out, lse = reference.merge_attention_states(*zip(near, far))
    expected, expected_lse = reference.piecewise_attention(q1, k1, q2, k2, v, 3, causal=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_half_precision_runs_in_its_dtype_with_an_fp32_softmax() -> None:
    q = randn(1, 5, 2, 8).bfloat16()
    out, lse = reference.attention(q, q, q)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32


def test_fused_ops_equal_torchs() -> None:
    x, weight = randn(3, 16), randn(16, seed=1)
    for rounding in ("llama", "gemma", "none"):
        torch.testing.assert_close(
            reference.rms_norm(x, weight, 1e-6, rounding=rounding), F.rms_norm(x, (16,), weight, 1e-6)
        )
    y, summed = reference.rms_norm(x, weight, residual=x)
    torch.testing.assert_close(y, F.rms_norm(2 * x, (16,), weight, 1e-5))
    assert torch.equal(summed, 2 * x)
    with pytest.raises(ValueError, match="rounding must be"):
        reference.rms_norm(x, weight, rounding="up")
    torch.testing.assert_close(reference.swiglu(x, summed), x * torch.sigmoid(x) * summed)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_a_complex_product(interleaved: bool) -> None:
    x, angles = randn(2, 5, 3, 12), randn(9, 4, seed=1)
    positions = torch.tensor([[0, 1, 2, 3, 4], [8, 3, 3, 0, 1]])
    y = reference.apply_rotary(x, angles.cos(), angles.sin(), interleaved=interleaved, positions=positions)
    pairs = x[..., :8].unflatten(-1, (4, 2)) if interleaved else x[..., :8].unflatten(-1, (2, 4)).transpose(-1, -2)
    turned = (
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[positions][:, :, None]
    )
    parts = (turned.real, turned.imag)
    expected = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    torch.testing.assert_close(y[..., :8], expected)
    assert torch.equal(y[..., 8:], x[..., 8:])
