"""Attention gives a sequence the same bits in any batch, both ways, and a cached row those of a prefill."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flagattn
from flagattn.testing import available_cpu_levels, set_cpu_level

THREADS = (1, 2, 3, 8)
same_bits = settings(max_examples=25, deadline=None, derandomize=True)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
levels = st.sampled_from(available_cpu_levels())
# Tiles hold 128 keys and chunks 1024.
lengths = st.one_of(st.integers(0, 9), st.integers(100, 300), st.integers(1000, 1100))
heads = st.sampled_from([(1, 1), (4, 2), (6, 1)])
masks = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window_size": st.sampled_from([(-1, -1), (70, 0), (5, 9)]),
        "softcap": st.sampled_from([0.0, 4.0]),
    }
)


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(sequences: list[list[Tensor]], piecewise: bool, options: dict[str, Any]) -> list[list[Tensor]]:
    """Results and gradients of every sequence (q, k, v, dout) of one packed batch."""
    q, k, v, dout = (torch.cat(parts).requires_grad_(i < 3) for i, parts in enumerate(zip(*sequences, strict=True)))
    lengths_q, lengths_k = ([sequence[i].shape[0] for sequence in sequences] for i in (0, 1))
    bounds = [torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32) for n in (lengths_q, lengths_k)]
    packing = (*bounds, max(lengths_q), max(lengths_k))
    if piecewise:
        q2 = q.flip(-1)
        out, lse = flagattn.piecewise_attn_varlen_func(q, k, q2, k, v, *packing, 50, **options, return_lse=True)
    else:
        out, lse = flagattn.flash_attn_varlen_func(q, k, v, *packing, **options, return_lse=True)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    dq, dk, dv = torch.autograd.grad([out, finite], [q, k, v], [dout, finite.detach().sin()])
    by_q = [t.detach().split(lengths_q) for t in (out, lse.t(), dq)]
    by_k = [t.split(lengths_k) for t in (dk, dv)]
    return [list(parts) for parts in zip(*by_q, *by_k, strict=True)]


@same_bits
@given(
    st.data(),
    levels,
    dtypes,
    st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4),
    heads,
    masks,
    st.booleans(),
)
def test_packed_sequences(data, level, dtype, sizes, heads, options, piecewise: bool) -> None:
    shapes = [((n, heads[0], 16), (m, heads[1], 16), (m, heads[1], 24), (n, heads[0], 24)) for n, m in sizes]
    sequences = [
        [random(*shape, dtype=dtype, seed=7 * i + j) for j, shape in enumerate(of)] for i, of in enumerate(shapes)
    ]
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=3), label="another batch")
    before = torch.get_num_threads()
    try:
        with set_cpu_level(level):
            torch.set_num_threads(1)
            expected = [packed([sequence], piecewise, options)[0] for sequence in sequences]
            for threads in THREADS:
                torch.set_num_threads(threads)
                for batch in (list(range(len(sizes))), chosen):
                    results = packed([sequences[i] for i in batch], piecewise, options)
                    for i, ours in zip(batch, results, strict=True):
                        assert all(torch.equal(a, b) for a, b in zip(ours, expected[i], strict=True))
    finally:
        torch.set_num_threads(before)


@same_bits
@given(st.data(), levels, dtypes, st.lists(lengths, min_size=1, max_size=4), st.integers(1, 3), heads, masks)
def test_cached_sequences(data, level, dtype, sizes, queries, heads, options) -> None:
    """Alone and contiguous against any batch, in pages, on any number of threads, with any number of splits."""
    capacity, page = max(sizes) + 1, data.draw(st.sampled_from([1, 16, 100]))
    q = random(len(sizes), queries, heads[0], 16, dtype=dtype, seed=1)
    k, v = (random(len(sizes), -(-capacity // page) * page, heads[1], 16, dtype=dtype, seed=seed) for seed in (2, 3))
    seqlens = torch.tensor(sizes, dtype=torch.int32)
    rows = data.draw(st.permutations(range(len(sizes))))[: data.draw(st.integers(1, len(sizes)))]
    index = torch.tensor(rows, dtype=torch.int32)
    pages = [cache.view(-1, page, *cache.shape[2:]) for cache in (k, v)]
    table = torch.arange(pages[0].shape[0], dtype=torch.int32).view(len(sizes), -1)
    before = torch.get_num_threads()
    more: dict[str, Any] = {**options, "return_lse": True}
    try:
        with set_cpu_level(level):
            torch.set_num_threads(1)
            alone = [
                flagattn.flash_attn_func(q[b : b + 1], k[b : b + 1, :n], v[b : b + 1, :n], **more)
                for b, n in enumerate(sizes)
            ]
            for threads in THREADS:
                torch.set_num_threads(threads)
                splits = data.draw(st.integers(0, 4))
                for caches, where in (((k, v), {"cache_batch_idx": index}), (pages, {"block_table": table[rows]})):
                    out, lse = flagattn.flash_attn_with_kvcache(
                        q[rows], *caches, cache_seqlens=seqlens[rows], num_splits=splits, **where, **more
                    )
                    for i, b in enumerate(rows):
                        assert torch.equal(out[i], alone[b][0][0]) and torch.equal(lse[i], alone[b][1][0])
    finally:
        torch.set_num_threads(before)


@same_bits
@given(levels, dtypes, lengths, lengths, heads, st.booleans())
def test_masks_sums_and_heads(level, dtype, seqlen_q, seqlen_k, heads, causal: bool) -> None:
    """Masked attention with dropout, column sums and the linear head's loss, on every number of threads."""
    q = random(1, seqlen_q, heads[0], 16, dtype=dtype, seed=1)
    k, v = (random(1, seqlen_k, heads[1], 16, dtype=dtype, seed=seed) for seed in (2, 3))
    bias = random(1, 1, seqlen_q, seqlen_k, dtype=torch.float32, seed=4)
    weight = random(300, 16, dtype=dtype, seed=5)
    targets = torch.arange(seqlen_q * heads[0]).view(1, seqlen_q, heads[0]) % 300

    def everything() -> list[Tensor]:
        torch.manual_seed(0)
        leaves = [t.detach().transpose(1, 2).requires_grad_() for t in (q, k, v)] + [bias.clone().requires_grad_()]
        out = flagattn.scaled_dot_product_attention(*leaves[:3], attn_mask=leaves[3], dropout_p=0.2, enable_gqa=True)
        loss = flagattn.linear_cross_entropy(out.transpose(1, 2), weight, targets)
        lse = flagattn.flash_attn_func(q, k, v, causal=causal, return_lse=True)[1]
        sums = flagattn.attention_column_sums(q, k, lse, causal=causal)
        return [out.detach(), sums, *torch.autograd.grad(loss, leaves)]

    before = torch.get_num_threads()
    try:
        with set_cpu_level(level):
            runs = []
            for threads in (*THREADS, THREADS[0]):
                torch.set_num_threads(threads)
                runs.append(everything())
        for run in runs[1:]:
            assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))
    finally:
        torch.set_num_threads(before)


@same_bits
@given(levels, dtypes, lengths, lengths, heads, st.sampled_from(["boolean", "additive"]), st.permutations(range(3)))
def test_masked_attention_in_any_batch(level, dtype, seqlen_q, seqlen_k, heads, kind: str, order: list[int]) -> None:
    """An entry with a mask of its own has the bits that it has alone, both ways, the additive mask's gradient too."""
    q, dout = (random(3, heads[0], seqlen_q, 16, dtype=dtype, seed=seed) for seed in (1, 2))
    k, v = (random(3, heads[1], seqlen_k, 16, dtype=dtype, seed=seed) for seed in (3, 4))
    bias = random(3, heads[0], seqlen_q, seqlen_k, dtype=torch.float32, seed=5)
    mask = bias > -1.0 if kind == "boolean" else bias

    def results(rows: list[int]) -> list[Tensor]:
        leaves = [t[rows].requires_grad_(t.is_floating_point()) for t in (q, k, v, mask)]
        out = flagattn.scaled_dot_product_attention(*leaves[:3], attn_mask=leaves[3], enable_gqa=True)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, wanted, dout[rows])]

    with set_cpu_level(level):
        together = results(order)
        for place, row in enumerate(order):
            for ours, alone in zip(together, results([row]), strict=True):
                assert torch.equal(ours[place], alone[0])
