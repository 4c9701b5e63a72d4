"""Packed batches in which decoded sequences stand beside prefilled ones: two kernels share them, and no bit tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn

LENGTHS_Q = (1, 0, 70, 1, 4, 3, 150, 1)
LENGTHS_K = (1100, 40, 700, 0, 900, 2100, 150, 33)


def cumulative(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)


CU_Q, CU_K = cumulative(LENGTHS_Q), cumulative(LENGTHS_K)


def operands(dtype: torch.dtype, count: int, heads_q: int = 4, heads_k: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [(int(CU_Q[-1]), heads_q), *[(int(CU_K[-1]), heads_k)] * (count - 1)]
    return [torch.randn(total, heads, 24, generator=generator).to(dtype) for total, heads in rows]


def alone(call: Callable[..., Any], index: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Sequence `index` by itself; queries come first and are as long as LENGTHS_Q says."""
    parts = []
    for tensor in tensors:
        cu = CU_Q if tensor.shape[0] == CU_Q[-1] else CU_K
        parts.append(tensor[cu[index] : cu[index + 1]])
    ends = [torch.tensor([0, lengths[index]], dtype=torch.int32) for lengths in (LENGTHS_Q, LENGTHS_K)]
    return call(*parts, *ends, LENGTHS_Q[index], LENGTHS_K[index])


def check(call: Callable[..., Any], *tensors: Tensor) -> None:
    out, lse = call(*tensors, CU_Q, CU_K, max(LENGTHS_Q), max(LENGTHS_K))
    for index in range(len(LENGTHS_Q)):
        wanted_out, wanted_lse = alone(call, index, *tensors)
        rows = slice(int(CU_Q[index]), int(CU_Q[index + 1]))
        assert torch.equal(out[rows], wanted_out)
        assert torch.equal(lse[:, rows], wanted_lse)


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"causal": True, "window_size": (64, 0), "softcap": 5.0},
    {"sinks": torch.linspace(-1, 1, 4)},
    {"alibi_slopes": torch.linspace(0.1, 0.4, 4)},
    {"dropout_p": 1.0},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sequences_have_the_bits_they_have_alone(
    cpu_level: str, set_threads: Callable[[int], None], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, *packing: Any) -> Any:
        return flagattn.flash_attn_varlen_func(q, k, v, *packing, return_lse=True, **options)

    for threads in (1, 3):
        set_threads(threads)
        check(call, *operands(dtype, 3))


def test_piecewise(cpu_level: str) -> None:
    def call(q1: Tensor, k1: Tensor, v: Tensor, *packing: Any) -> Any:
        return flagattn.piecewise_attn_varlen_func(q1, k1, -q1, k1 * 2, v, *packing, 50, causal=True, return_lse=True)

    check(call, *operands(torch.float32, 3))


def test_pages(cpu_level: str) -> None:
    """Of the same keys, in pages of 16 in any order."""
    q, k, v = operands(torch.float32, 3)
    pages = [-(-length // 16) for length in LENGTHS_K]
    order = torch.randperm(sum(pages), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    table = torch.full((len(pages), max(pages)), -1, dtype=torch.int32)
    caches = [torch.full((sum(pages), 16, 2, 24), torch.nan) for _ in range(2)]
    used = 0
    for b, count in enumerate(pages):
        table[b, :count] = order[used : used + count]
        used += count
        for row in range(LENGTHS_K[b]):
            for cache, packed in zip(caches, (k, v)):
                cache[table[b, row // 16], row % 16] = packed[CU_K[b] + row]
    packing = (CU_Q, CU_K, max(LENGTHS_Q), max(LENGTHS_K))
    wanted = flagattn.flash_attn_varlen_func(q, k, v, *packing, causal=True, return_lse=True)
    ours = flagattn.flash_attn_varlen_func(q, *caches, *packing, causal=True, return_lse=True, block_table=table)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted))


def test_gradients_are_those_of_each_alone() -> None:
    leaves = [tensor.requires_grad_() for tensor in operands(torch.float32, 3)]
    upstream = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(2))
    out = flagattn.flash_attn_varlen_func(*leaves, CU_Q, CU_K, max(LENGTHS_Q), max(LENGTHS_K), causal=True)
    together = torch.autograd.grad(out, leaves, upstream)

    def call(q: Tensor, k: Tensor, v: Tensor, *packing: Any) -> Any:
        return flagattn.flash_attn_varlen_func(q, k, v, *packing, causal=True)

    for index in range(len(LENGTHS_Q)):
        rows = slice(int(CU_Q[index]), int(CU_Q[index + 1]))
        one = torch.autograd.grad(alone(call, index, *leaves), leaves, upstream[rows], allow_unused=True)
        for whole, part, cu in zip(together, one, (CU_Q, CU_K, CU_K)):
            here = slice(int(cu[index]), int(cu[index + 1]))
            assert torch.equal(whole[here], part[here])


def test_explained(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    q, k, v = operands(torch.float32, 3)
    packing = (CU_Q, CU_K, max(LENGTHS_Q), max(LENGTHS_K))
    mixed = flagattn.explain("flash_attn_varlen_func", q, k, v, *packing)
    assert mixed.details["few rows"].startswith("sequences of up to ")
    assert "the decode kernel" in mixed.details["few rows"] and "side by side" in mixed.details["forward"]
    assert "decode kernel" not in mixed.others
    dropped = flagattn.explain("flash_attn_varlen_func", q, k, v, *packing, dropout_p=0.5)
    assert "few rows" not in dropped.details and dropped.others["decode kernel"] == "it takes no dropout_p"
    long = torch.tensor([0, 70], dtype=torch.int32)
    only = flagattn.explain("flash_attn_varlen_func", q[:70], k[:70], v[:70], long, long, 70, 70)
    assert "few rows" not in only.details and "query rows" in only.others["decode kernel"]
    one = torch.tensor([0, 1], dtype=torch.int32)
    loose = flagattn.explain("flash_attn_varlen_func", q[:1], k[:70], v[:70], one, long, 500, 70)
    assert loose.details["forward"].startswith("the decode kernel")  # whatever bound is given
