"""Sizes at the ends: a million heads, a million keys, products beyond 2^31, nothing at all."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import flagattn
from flagattn import reference
from flagattn.testing import assert_close_to_oracle
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
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 4, 8, generator=generator).to(dtype)
    k, v = (torch.randn(1, 1_000_003, 1, 8, generator=generator).to(dtype) for _ in range(2))
    ours = flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True)
    plain = reference.attention(q, k, v, causal=True)
    ref64 = reference.attention(q.double(), k.double(), v.double(), causal=True)
    for name, *results in zip(("out", "lse"), ours, plain, ref64, strict=True):
        assert_close_to_oracle(*results, name)


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
    """One page of 16 rows, 65536 times over, as a table's entries: an equal share of each is what comes out."""
    pages = 1 << 16
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 4, 64, generator=generator).to(dtype)
    page = torch.randn(2, 1, 16, 2, 64, generator=generator).to(dtype)
    table = torch.zeros(1, pages, dtype=torch.int32)
    out, lse = flagattn.flash_attn_with_kvcache(q, *page, block_table=table, return_lse=True)
    ref64, one_page_lse = reference.attention(q.double(), *page.double())
    for head in range(2):  # one after the other, so that the plain rows are not there all at once
        group = slice(2 * head, 2 * head + 2)
        rows = (tensor[:, :, head : head + 1].repeat(1, pages, 1, 1) for tensor in page)
        plain, plain_lse = reference.attention(q[:, :, group], *rows)
        assert_close_to_oracle(out[:, :, group], plain, ref64[:, :, group], "out")
        assert_close_to_oracle(lse[:, group], plain_lse, one_page_lse[:, group] + math.log(pages), "lse")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_of_2_to_the_34_elements(dtype: torch.dtype) -> None:
    """A page that is repeated in place; the table names the last three."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 4, 64, generator=generator).to(dtype)
    page = torch.randn(2, 1, 16, 2, 64, generator=generator).to(dtype)
    count = 1 << 23
    table = torch.arange(count - 3, count, dtype=torch.int32)[None]
    many = [rows.expand(count, 16, 2, 64) for rows in page]
    assert many[0].numel() == 1 << 34
    out = flagattn.flash_attn_with_kvcache(q, *many, block_table=table)
    expected = flagattn.flash_attn_with_kvcache(q, *page, block_table=torch.zeros_like(table))
    assert torch.equal(out, expected)


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
