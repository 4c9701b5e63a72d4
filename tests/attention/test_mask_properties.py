"""Block-sparse masks of every broadcastable shape and layout: hypothesis draws them, the float64 reference judges."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flagattn
from flagattn import reference

# Tiles hold 128 keys and chunks 1024; panels some rows.
BATCH, HEADS_Q, HEADS_K, HEAD_DIM = 2, 4, 2, 16
LOWEST = (-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min)
seqlens_q = st.one_of(st.integers(1, 20), st.integers(60, 140))
seqlens_k = st.one_of(st.integers(1, 20), st.integers(120, 400), st.integers(1000, 1200))
shapes = st.tuples(*[st.booleans()] * 4, st.integers(2, 4))  # which dimensions are repeated, and how many there are
blocks = st.tuples(st.sampled_from([1, 8, 40, 256]), st.sampled_from([8, 50, 128, 256]))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def block_sparse(sizes: list[int], block: tuple[int, int], seed: int) -> torch.Tensor:
    """Blocks that are wholly hidden, wholly seen, or mixed, and now and then a row without a key."""
    generator = torch.Generator().manual_seed(seed)
    rows, keys = sizes[-2:]
    coarse = [*sizes[:-2], -(-rows // block[0]), -(-keys // block[1])]
    kinds = torch.randint(4, coarse, generator=generator)
    kinds = kinds.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)[..., :rows, :keys]
    keep = (kinds == 0) | (kinds == 1) | ((kinds == 2) & (torch.rand(sizes, generator=generator) < 0.5))
    return keep & (torch.rand([*sizes[:-1], 1], generator=generator) < 0.9)


def laid_out(mask: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "inside":  # at an odd offset of a larger buffer
        buffer = torch.ones([*mask.shape[:-2], mask.shape[-2] + 1, mask.shape[-1] + 7], dtype=mask.dtype)
        inner = buffer[..., 1:, 3 : 3 + mask.shape[-1]]
        inner.copy_(mask)
        return inner
    return mask.mT.contiguous().mT if layout == "transposed" else mask


def operands(seqlen_q: int, seqlen_k: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(HEADS_Q, seqlen_q), (HEADS_K, seqlen_k), (HEADS_K, seqlen_k)]
    return [torch.randn(BATCH, heads, rows, HEAD_DIM, generator=generator) for heads, rows in sizes]


def drawn_mask(shape: tuple, seqlen_q: int, seqlen_k: int, block: tuple[int, int], seed: int) -> torch.Tensor:
    full = [BATCH, HEADS_Q, seqlen_q, seqlen_k]
    sizes = [1 if repeated else size for repeated, size in zip(shape[:4], full, strict=True)][4 - shape[4] :]
    return block_sparse(sizes, block, seed)


def judged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, **mask: torch.Tensor) -> list:
    leaves = [t.double().transpose(1, 2).requires_grad_() for t in (q, k, v)]
    out, _ = reference.attention(*leaves, **mask)
    gradients = torch.autograd.grad(out, leaves, dout.double().transpose(1, 2))
    return [t.transpose(1, 2) for t in (out.detach(), *gradients)]


def attended(operands: list[torch.Tensor], mask: torch.Tensor, dout: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in operands]
    out = flagattn.scaled_dot_product_attention(*leaves, attn_mask=mask, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@quick
@given(shapes, seqlens_q, seqlens_k, blocks, st.sampled_from(["plain", "inside", "transposed"]), st.integers(0, 99))
def test_boolean_masks(shape: tuple, seqlen_q: int, seqlen_k: int, block: tuple, layout: str, seed: int) -> None:
    q, k, v = operands(seqlen_q, seqlen_k, seed)
    keep = drawn_mask(shape, seqlen_q, seqlen_k, block, seed)
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed + 1))
    full = keep.expand(BATCH, HEADS_Q, seqlen_q, seqlen_k)
    expected = judged(q, k, v, dout, keep=full)
    # Keys that no row of their head group sees may hold anything.
    unseen = ~full.reshape(BATCH, HEADS_K, -1, seqlen_k).any(2)
    k, v = (torch.where(unseen[..., None], torch.nan, operand) for operand in (k, v))
    results = attended([q, k, v], laid_out(keep, layout), dout)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5)
    assert (results[0][~full.any(-1)] == 0).all() and (results[1][~full.any(-1)] == 0).all()
    assert (results[2][unseen] == 0).all() and (results[3][unseen] == 0).all()


@quick
@given(
    shapes,
    seqlens_q,
    seqlens_k,
    blocks,
    st.sampled_from(["plain", "inside", "transposed"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(LOWEST),
    st.integers(0, 99),
)
def test_additive_masks(
    shape: tuple,
    seqlen_q: int,
    seqlen_k: int,
    block: tuple,
    layout: str,
    dtype: torch.dtype,
    lowest: float,
    seed: int,
) -> None:
    q, k, v = operands(seqlen_q, seqlen_k, seed)
    keep = drawn_mask(shape, seqlen_q, seqlen_k, block, seed)
    if dtype == torch.float16:  # its lowest number is no hidden key
        lowest = -math.inf
    elif math.isfinite(lowest):
        lowest = max(lowest, torch.finfo(dtype).min)
    bias = torch.randn(keep.shape, generator=torch.Generator().manual_seed(seed + 2)).to(dtype)
    bias = bias.masked_fill(~keep, lowest)
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed + 1))
    full = bias.double().masked_fill(~keep, -math.inf).expand(BATCH, HEADS_Q, seqlen_q, seqlen_k)
    expected = judged(q, k, v, dout, bias=full)
    for ours, theirs in zip(attended([q, k, v], laid_out(bias, layout), dout), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-5)


@quick
@given(shapes, seqlens_q, seqlens_k, blocks, st.integers(0, 99))
def test_a_boolean_mask_and_its_additive_twin_agree(
    shape: tuple, seqlen_q: int, seqlen_k: int, block: tuple, seed: int
) -> None:
    q, k, v = operands(seqlen_q, seqlen_k, seed)
    keep = drawn_mask(shape, seqlen_q, seqlen_k, block, seed)
    hidden = torch.zeros(keep.shape).masked_fill(~keep, -math.inf)
    one, other = (
        flagattn.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True) for mask in (keep, hidden)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
