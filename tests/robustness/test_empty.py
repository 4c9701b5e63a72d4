"""No sequences, no rows, no keys: results of the right shape, zeros and -inf, and gradients of zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn

# (batch, seqlen_q, seqlen_k)
NOTHING = [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0), (0, 0, 0)]
EMPTY = pytest.mark.parametrize("sizes", NOTHING, ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def operands(sizes: tuple[int, int, int], dtype: torch.dtype, *, grad: bool = True) -> list[Tensor]:
    batch, seqlen_q, seqlen_k = sizes
    shapes = [(batch, seqlen_q, 4, 16), (batch, seqlen_k, 2, 16), (batch, seqlen_k, 2, 24)]
    return [torch.randn(shape).to(dtype).requires_grad_(grad) for shape in shapes]


def check(out: Tensor, lse: Tensor, leaves: list[Tensor], lowest: float = -torch.inf) -> None:
    """The results of rows without keys and their gradients."""
    batch, seqlen_q, heads, _ = leaves[0].shape
    assert out.shape == (batch, seqlen_q, heads, leaves[-1].shape[-1]) and lse.shape == (batch, heads, seqlen_q)
    assert (out == 0).all() and (lse == lowest).all()
    for leaf, gradient in zip(leaves, torch.autograd.grad((out.float().sum() + lse.sum()), leaves), strict=True):
        assert gradient.shape == leaf.shape and (gradient == 0).all()


@EMPTY
@DTYPES
@pytest.mark.parametrize("causal", [False, True])
def test_attention(sizes: tuple[int, int, int], dtype: torch.dtype, causal: bool) -> None:
    leaves = operands(sizes, dtype)
    for options in ({}, {"dropout_p": 0.3, "alibi_slopes": torch.ones(4), "softcap": 3.0, "window_size": (3, 3)}):
        check(*flagattn.flash_attn_func(*leaves, causal=causal, return_lse=True, **options), leaves)
    q, k, v = leaves
    check(*flagattn.piecewise_attn_func(q, k, q, k, v, 3, causal=causal, return_lse=True), leaves)
    sinks = torch.zeros(4, requires_grad=True)
    out, lse = flagattn.flash_attn_func(*leaves, causal=causal, return_lse=True, sinks=sinks)
    check(out, lse, leaves, lowest=0.0)
    (dsinks,) = torch.autograd.grad(flagattn.flash_attn_func(q, k, v, sinks=sinks).float().sum(), sinks)
    assert (dsinks == 0).all()


@EMPTY
def test_masks_and_column_sums(sizes: tuple[int, int, int]) -> None:
    batch, seqlen_q, seqlen_k = sizes
    q, k, v = (t.transpose(1, 2) for t in operands(sizes, torch.float32))
    keep = torch.ones(batch, 1, seqlen_q, seqlen_k, dtype=torch.bool)
    bias = torch.zeros(1, 4, seqlen_q, seqlen_k, requires_grad=True)
    for mask in (keep, bias):
        out = flagattn.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        assert out.shape == (batch, 4, seqlen_q, 24) and (out == 0).all()
    (dbias,) = torch.autograd.grad(out.sum(), bias)
    assert dbias.shape == bias.shape and (dbias == 0).all()
    lse = torch.full((batch, 4, seqlen_q), -torch.inf)
    sums = flagattn.attention_column_sums(q.transpose(1, 2), k.transpose(1, 2), lse)
    assert sums.shape == (batch, 4, seqlen_k) and (sums == 0).all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [0, 3, 0, 0, 4, 0]], ids=str)
@pytest.mark.parametrize("keys", [0, 5])
def test_packed(lengths: list[int], keys: int) -> None:
    """Sequences without rows, without keys, and no sequence at all; `keys` belong to the last sequence."""
    lengths_k = [0 if i < len(lengths) - 1 else keys for i in range(len(lengths))]
    cu_q, cu_k = (torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32) for n in (lengths, lengths_k))
    q = torch.randn(sum(lengths), 4, 16, requires_grad=True)
    k, v = (torch.randn(sum(lengths_k), 2, 16, requires_grad=True) for _ in range(2))
    packing = (cu_q, cu_k, max(lengths, default=0), max(lengths_k, default=0))
    for out, lse in (
        flagattn.flash_attn_varlen_func(q, k, v, *packing, causal=True, return_lse=True),
        flagattn.piecewise_attn_varlen_func(q, k, q, k, v, *packing, 2, return_lse=True),
    ):
        assert out.shape == q.shape and (out == 0).all()  # whoever has keys here has no rows
        assert lse.shape == (4, q.shape[0]) and (lse == -torch.inf).all()
        assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(
    ("batch", "seqlen_q", "capacity", "new"),
    [(0, 1, 8, 0), (0, 1, 8, 1), (2, 0, 8, 0), (2, 0, 8, 3), (2, 1, 0, 0), (2, 3, 8, 0), (2, 0, 0, 0)],
)
def test_caches(batch: int, seqlen_q: int, capacity: int, new: int, paged: bool) -> None:
    q = torch.randn(batch, seqlen_q, 4, 16)
    k, v = torch.full((2, 2, capacity, 2, 16), torch.nan)
    given: dict[str, Any] = {"cache_seqlens": torch.zeros(batch, dtype=torch.int32)}
    if paged:
        if capacity == 0:
            pytest.skip("a page has at least one row")
        given["block_table"] = torch.arange(batch, dtype=torch.int32)[:, None]
    fresh = torch.randn(3, batch, new, 2, 16)
    out, lse = flagattn.flash_attn_with_kvcache(q, k, v, *fresh[:2], **given, return_lse=True)
    far = flagattn.piecewise_attn_with_kvcache(q, q, k.clone(), k.clone(), v.clone(), 2, *fresh, **given)
    assert out.shape == far.shape == q.shape and lse.shape == (batch, 4, seqlen_q)
    if new == 0:
        assert (out == 0).all() and (far == 0).all() and (lse == -torch.inf).all()
    for cache, rows in zip((k, v), fresh):
        assert torch.equal(cache[:batch, :new], rows) and cache[:batch, new:].isnan().all()


def test_pages_of_no_sequence() -> None:
    q, pages = torch.randn(0, 4, 16), torch.randn(3, 8, 2, 16)
    none = torch.zeros(1, dtype=torch.int32)
    table = torch.zeros(0, 2, dtype=torch.int32)
    out = flagattn.flash_attn_varlen_func(q, pages, pages, none, none, 0, 0, block_table=table)
    assert out.shape == q.shape
