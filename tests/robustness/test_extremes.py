"""Sizes at the ends: a million heads, a million keys, products beyond 2^31, nothing at all."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import flagattn
from tests.robustness.reserved import reserved


def test_a_million_heads_of_tiny_sequences() -> None:
    heads = 1_000_000
    q, k, v = (torch.randn(1, 2, heads, 8) for _ in range(3))
    out = flagattn.flash_attn_func(q, k, v, causal=True)
    sample = torch.arange(0, heads, 9973)
    bhsd = [t[:, :, sample].transpose(1, 2) for t in (q, k, v)]
    expected = F.scaled_dot_product_attention(*bhsd, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(out[:, :, sample], expected, rtol=1e-5, atol=1e-6)


def test_a_million_sequences_in_a_batch() -> None:
    batch = 1_000_000
    cu_seqlens = torch.arange(0, batch + 1, dtype=torch.int32)
    q, k, v = (torch.randn(batch, 1, 8, requires_grad=True) for _ in range(3))
    out = flagattn.flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, 1, 1)
    assert torch.equal(out, v)  # a lone key has weight 1
    out.sum().backward()
    assert v.grad is not None
    torch.testing.assert_close(v.grad, torch.ones_like(v), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_over_a_million_keys(dtype: torch.dtype) -> None:
    length = 1_000_003
    q = torch.randn(1, 1, 4, 8, dtype=dtype)
    k, v = (torch.randn(1, length, 1, 8, dtype=dtype) for _ in range(2))
    out, lse = flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True)
    scores = torch.einsum("bqhd,bkgd->bhqk", q.double(), k.double()) / 8**0.5
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-5)
    expected = torch.einsum("bhqk,bkgd->bqhd", scores.softmax(-1), v.double())
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance * 0.01)


def test_a_mean_over_a_million_keys_keeps_its_digits() -> None:
    """Equal weights over 2^20 keys: sums by tiles and chunks lose little of what one chain of additions would."""
    length = 1 << 20
    q, k = torch.zeros(1, 1, 1, 8), torch.zeros(1, length, 1, 8)
    v = torch.full((1, length, 1, 8), 0.1)
    out, lse = flagattn.flash_attn_func(q, k, v, return_lse=True)
    torch.testing.assert_close(out, torch.full_like(out, 0.1), rtol=2e-5, atol=0)
    torch.testing.assert_close(lse.double(), torch.full_like(lse, length).double().log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_over_a_cache_of_a_million_rows(dtype: torch.dtype) -> None:
    """One page of 16 rows, a million times over: as a table's entries, and as a cache that repeats it.

    Seen as a cache, it has 2^34 elements; an equal share of every row of the page is what comes out.
    """
    pages = 1 << 16
    q, page = torch.randn(1, 1, 4, 64).to(dtype), torch.randn(2, 1, 16, 2, 64).to(dtype)
    expected, lse = flagattn.flash_attn_with_kvcache(q, *page, return_lse=True)
    table = torch.zeros(1, pages, dtype=torch.int32)
    out, paged_lse = flagattn.flash_attn_with_kvcache(q, *page, block_table=table, return_lse=True)
    # A result is rounded at every one of the 1024 merges of 1024 keys each, always the same way where all are equal.
    tolerance, merged = (1e-5, 1024 * 2.0**-24) if dtype == torch.float32 else (1e-2, 1e-2)
    torch.testing.assert_close(out, expected, rtol=merged, atol=merged)
    torch.testing.assert_close(paged_lse, lse + torch.tensor(float(pages)).log(), rtol=1e-6, atol=1e-5)
    last = torch.full((1, 3), 127 * pages, dtype=torch.int32)  # the last page of so many that lie on each other
    many = [rows.expand(127 * pages + 1, 16, 2, 64) for rows in page]
    assert many[0].numel() > 1 << 33
    thrice = flagattn.flash_attn_with_kvcache(q, *many, block_table=last)
    torch.testing.assert_close(thrice, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_whose_rows_lie_beyond_2_to_the_32(dtype: torch.dtype) -> None:
    """Batch rows and pages so far apart that an element's number passes 2^32; only the touched ones take memory."""
    stride = (1 << 31) + 64
    storages = [reserved(2 * stride + 6 * 2 * 16, dtype) for _ in range(2)]
    far = [storage.as_strided((3, 6, 2, 16), (stride, 32, 16, 1)) for storage in storages]
    for cache in far:
        cache.normal_()
    near = [cache.clone(memory_format=torch.contiguous_format) for cache in far]
    q, k, v = (torch.randn(2, 2, heads, 16).to(dtype) for heads in (4, 2, 2))
    for given in (
        {"cache_batch_idx": torch.tensor([2, 0], dtype=torch.int32)},
        {"block_table": torch.tensor([[2], [1]], dtype=torch.int32)},
    ):
        seqlens = torch.tensor([3, 1], dtype=torch.int32)
        ours, wanted = (
            flagattn.flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=seqlens, causal=True, **given)
            for caches in (far, near)
        )
        assert torch.equal(ours, wanted)
        assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))


def test_more_than_2_to_the_31_logits() -> None:
    """One row of logits, repeated: every row's loss is the first one's."""
    rows, classes = 17_000, 131_072
    logits = torch.randn(1, classes, dtype=torch.bfloat16).expand(rows, classes)
    assert logits.numel() > 1 << 31
    targets = torch.zeros(rows, dtype=torch.int64)
    targets[1:-1] = -100  # the work is that of two rows
    loss = flagattn.cross_entropy(logits, targets, reduction="none")
    expected = F.cross_entropy(logits[:1].float(), targets[:1])
    torch.testing.assert_close(loss[[0, -1]], expected.expand(2), rtol=1e-5, atol=0)
    assert (loss[1:-1] == 0).all()


def test_a_mask_of_more_than_2_to_the_31_elements() -> None:
    """Rows that all see one key, the row's head's; the mask's heads and rows lie on each other."""
    heads, length = 4096, 1024
    q, k, v = (torch.randn(1, heads, rows, 8) for rows in (1, length, length))
    keep = torch.zeros(1, 1, 1, length, dtype=torch.bool)
    keep[..., 700] = True
    out = flagattn.scaled_dot_product_attention(
        q.expand(1, heads, 600, 8), k, v, attn_mask=keep.expand(1, heads, 600, length)
    )
    assert heads * 600 * length > 1 << 31
    assert torch.equal(out, v[:, :, 700:701].expand_as(out))


@pytest.mark.parametrize("causal", [False, True])
def test_scores_whose_count_passes_2_to_the_31(causal: bool) -> None:
    """49 000 squared is beyond int32; a window keeps the work small."""
    length = 49_000
    q, k, v = (torch.randn(1, length, 1, 8) for _ in range(3))
    out = flagattn.flash_attn_func(q, k, v, causal=causal, window_size=(5, 0))
    last = slice(length - 300, length)
    tail = flagattn.flash_attn_func(
        q[:, last], k[:, length - 305 :], v[:, length - 305 :], causal=causal, window_size=(5, 0)
    )
    torch.testing.assert_close(out[:, last], tail, rtol=1e-5, atol=1e-6)


def test_fused_ops_of_a_million_rows() -> None:
    rows = 1_000_000
    x = torch.randn(rows, 4)
    torch.testing.assert_close(flagattn.rms_norm(x, torch.ones(4)), F.rms_norm(x, (4,), eps=1e-5), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flagattn.swiglu(x, x), F.silu(x) * x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5, 2, 8), (2, 0, 2, 8)])
def test_nothing_at_all(shape: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    out, lse = flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True)
    assert out.shape == shape and lse.shape == (shape[0], shape[2], shape[1])
    (out.sum() + lse.sum()).backward()
    assert all(t.grad is not None and t.grad.shape == shape for t in (q, k, v))
    assert flagattn.rms_norm(torch.randn(0, 7), torch.ones(7)).shape == (0, 7)
    assert flagattn.swiglu(torch.randn(3, 0), torch.randn(3, 0)).shape == (3, 0)
