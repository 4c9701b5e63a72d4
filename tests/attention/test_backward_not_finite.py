"""NaN and Inf in rows that are not seen: gradients are what they are without them, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import flagattn

SEQLEN = 200


def operands(dtype: torch.dtype, heads: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(2, SEQLEN, count, 40, generator=generator).to(dtype) for count in heads]


def gradients(attention, tensors: list[Tensor], dout: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    return list(torch.autograd.grad(attention(*leaves), leaves, dout))


def poisoned(tensor: Tensor, row: int, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[0, row, :, 3] = value
    return tensor


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [(-1, 0), (25, 30)])
def test_keys_that_a_row_does_not_see(
    cpu_level: str, window: tuple[int, int], dtype: torch.dtype, value: float
) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flagattn.flash_attn_func(q, k, v, window_size=window)

    q, k, v, dout = operands(dtype, (6, 2, 2, 6))
    clean = gradients(attention, [q, k, v], dout)
    dq, _, _ = gradients(attention, [q, poisoned(k, 150, value), poisoned(v, 150, value)], dout)
    first, last = 150 - window[1], SEQLEN if window[0] < 0 else 150 + window[0] + 1
    assert torch.equal(dq[0, :first], clean[0][0, :first]) and torch.equal(dq[0, last:], clean[0][0, last:])
    assert torch.equal(dq[1], clean[0][1])
    assert not dq[0, first:last].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [(-1, 0), (25, 30)])
def test_rows_that_do_not_see_a_key(cpu_level: str, window: tuple[int, int], dtype: torch.dtype, value: float) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flagattn.flash_attn_func(q, k, v, window_size=window)

    q, k, v, dout = operands(dtype, (6, 2, 2, 6))
    clean = gradients(attention, [q, k, v], dout)
    first, end = 0 if window[0] < 0 else 100 - window[0], 100 + window[1] + 1
    for tensors, grad in [([poisoned(q, 100, value), k, v], dout), ([q, k, v], poisoned(dout, 100, value))]:
        for ours, expected in zip(gradients(attention, tensors, grad)[1:], clean[1:], strict=True):
            assert torch.equal(ours[0, end:], expected[0, end:]) and torch.equal(ours[0, :first], expected[0, :first])
            assert torch.equal(ours[1], expected[1])
            assert not ours[0, first:end].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_the_other_side_of_piecewise_attention(cpu_level: str, causal: bool, dtype: torch.dtype) -> None:
    def attention(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Tensor:
        return flagattn.piecewise_attn_func(q1, k1, q2, k2, v, 30, causal=causal)

    q1, k1, q2, k2, v, dout = operands(dtype, (6, 2, 6, 2, 2, 6))
    clean = gradients(attention, [q1, k1, q2, k2, v], dout)
    far_key = gradients(attention, [q1, k1, q2, poisoned(k2, 100, torch.nan), v], dout)
    near_key = gradients(attention, [q1, poisoned(k1, 100, torch.nan), q2, k2, v], dout)
    far_query = gradients(attention, [q1, k1, poisoned(q2, 100, torch.nan), k2, v], dout)
    near_query = gradients(attention, [poisoned(q1, 100, torch.nan), k1, q2, k2, v], dout)
    for dq in (0, 2):
        assert torch.equal(far_key[dq][0, :130], clean[dq][0, :130])
        assert torch.equal(near_key[dq][0, 130:], clean[dq][0, 130:])
    assert torch.equal(far_query[3][0, 71:], clean[3][0, 71:])  # dk2
    assert torch.equal(near_query[1][0, :71], clean[1][0, :71])  # dk1
    if causal:
        for grads in (far_query, near_query):
            for dk in (1, 3, 4):
                assert torch.equal(grads[dk][0, 101:], clean[dk][0, 101:])


def test_keys_that_a_mask_hides(cpu_level: str) -> None:
    q, k, v, dout = (x.transpose(1, 2) for x in operands(torch.float32, (6, 2, 2, 6)))
    keep = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool)
    keep[:90, 150] = False

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flagattn.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=True)

    clean = gradients(attention, [q, k, v], dout)
    bad = k.clone()
    bad[0, :, 150] = torch.nan
    dq, _, _ = gradients(attention, [q, bad, v], dout)
    assert torch.equal(dq[0, :, :90], clean[0][0, :, :90]) and torch.equal(dq[1], clean[0][1])
    assert dq[0, :, 90:].isnan().all()
