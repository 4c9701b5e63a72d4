"""Lengths, pages, positions and targets of any value: a call says what is wrong with them, or does what they say.

Under the sanitizers (test_sanitized.py) this also shows that no value reads or writes outside of memory.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flagattn
from flagattn import reference

wild = settings(max_examples=80, deadline=None, derandomize=True)
# Mostly what could be right, so that not every example ends at its first number.
numbers = st.one_of(
    *[st.integers(-1, 12)] * 4, st.sampled_from([2**31 - 1, -(2**31), 2**30, -(2**30), 1 << 16, 100, 13])
)
longs = st.one_of(numbers, st.sampled_from([2**63 - 1, -(2**63), 2**32, -(2**32), 2**32 + 3]))


def i32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rows(count: int, heads: int = 2, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, heads, dim, generator=torch.Generator().manual_seed(seed))


def is_packing(bounds: list[int], total: int, longest: int) -> bool:
    """Whether cu_seqlens begins with 0, never falls, and stays within the rows and the longest length told."""
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    return bounds[0] == 0 and all(0 <= n <= longest for n in lengths) and bounds[-1] <= total


bounds = st.one_of(
    st.lists(numbers, min_size=1, max_size=5),
    st.lists(st.integers(0, 12), max_size=4).map(lambda inner: [0, *sorted(inner)]),
)


@wild
@given(bounds, st.data(), numbers, numbers, st.booleans(), st.booleans())
def test_cu_seqlens(of_q: list[int], data, max_q: int, max_k: int, causal: bool, is_piecewise: bool) -> None:
    if data.draw(st.booleans()):
        max_q = max_k = 12
    of_k = data.draw(st.lists(numbers, min_size=len(of_q), max_size=len(of_q)) | st.just(of_q))
    q, k, v = (rows(12, seed=seed).requires_grad_() for seed in range(3))
    packing = (i32(of_q), i32(of_k), max_q, max_k)
    fits = is_packing(of_q, 12, max_q) and is_packing(of_k, 12, max_k)
    try:
        if is_piecewise:
            out = flagattn.piecewise_attn_varlen_func(q, k, q, k, v, *packing, 2, causal=causal)
        else:
            out = flagattn.flash_attn_varlen_func(q, k, v, *packing, causal=causal)
    except RuntimeError as error:
        assert not fits and any(name in str(error) for name in ("cu_seqlens", "max_seqlen")), error
        return
    assert fits, "wrong bounds were taken"
    for begin_q, end_q, begin_k, end_k in zip(of_q, of_q[1:], of_k, of_k[1:]):
        parts = (q[begin_q:end_q], k[begin_k:end_k], v[begin_k:end_k])
        expected, _ = reference.attention(*(part.detach()[None].double() for part in parts), causal=causal)
        torch.testing.assert_close(out[begin_q:end_q].double(), expected[0], rtol=1e-5, atol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


# ---- caches ----

PAGE, PAGES, BATCH = 4, 6, 2


@wild
@given(st.data(), st.booleans(), st.booleans(), st.integers(0, 3))
def test_caches(data, paged: bool, is_piecewise: bool, new: int) -> None:
    """What is refused changes nothing; what is not gives finite rows for the keys that the numbers name."""
    wholly = data.draw(st.booleans(), label="any number, or only those that fit")
    some = numbers if wholly else st.integers(0, PAGE)
    listed = {
        "cache_seqlens": data.draw(st.lists(some, min_size=BATCH, max_size=BATCH)),
        "cache_leftpad": data.draw(st.lists(some, min_size=BATCH, max_size=BATCH) | st.none()),
    }
    given_: dict[str, Tensor | None] = {name: None if row is None else i32(row) for name, row in listed.items()}
    shape = (PAGES, PAGE) if paged else (BATCH + 1, 3 * PAGE)
    if paged:
        table = data.draw(st.lists(numbers if wholly else st.integers(0, PAGES - 1), min_size=6, max_size=6))
        given_["block_table"] = i32(table).view(BATCH, 3)
    else:
        chosen = data.draw(st.lists(numbers if wholly else st.integers(0, BATCH), min_size=BATCH, max_size=BATCH))
        given_["cache_batch_idx"] = i32(chosen)
    generator = torch.Generator().manual_seed(1)
    caches = [torch.randn(*shape, 1, 8, generator=generator) for _ in range(3)]
    before = [cache.clone() for cache in caches]
    q = torch.randn(BATCH, 2, 2, 8, generator=generator)
    fresh = [torch.randn(BATCH, new, 1, 8, generator=generator) if new else None for _ in range(3)]
    try:
        if is_piecewise:
            out = flagattn.piecewise_attn_with_kvcache(q, q, *caches, 2, *fresh, **given_)
        else:
            out = flagattn.flash_attn_with_kvcache(q, *caches[:2], *fresh[:2], **given_, causal=True)
    except RuntimeError as error:
        assert any(name in str(error) for name in (*given_, "used twice", "another sequence")), error
        assert all(torch.equal(cache, kept) for cache, kept in zip(caches, before, strict=True))
        return
    assert out.isfinite().all()
    pads = listed["cache_leftpad"] or [0] * BATCH
    for pad, length in zip(pads, listed["cache_seqlens"], strict=True):
        assert 0 <= pad <= length <= 3 * PAGE - new
    written = sum(not torch.equal(cache, kept) for cache, kept in zip(caches, before, strict=True))
    assert written == (0 if new == 0 else 3 if is_piecewise else 2)


@wild
@given(bounds, st.data())
def test_packed_queries_of_pages(of_q: list[int], data) -> None:
    batch = len(of_q) - 1
    of_k = data.draw(st.lists(numbers, min_size=batch + 1, max_size=batch + 1) | st.just(of_q))
    width = data.draw(st.integers(0, 3))
    table = data.draw(st.lists(numbers, min_size=batch * width, max_size=batch * width))
    k, v = (torch.randn(PAGES, PAGE, 1, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    try:
        out = flagattn.flash_attn_varlen_func(
            rows(12), k, v, i32(of_q), i32(of_k), 12, 12, block_table=i32(table).view(batch, width)
        )
    except (RuntimeError, ValueError) as error:
        assert any(name in str(error) for name in ("cu_seqlens", "block_table", "max_seqlen")), error
        return
    assert is_packing(of_q, 12, 12) and out.isfinite().all()


# ---- positions and targets ----


@wild
@given(st.lists(longs, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_positions(values: list[int], inplace: bool, wide: bool) -> None:
    if not wide:
        values = [max(-(2**31), min(value, 2**31 - 1)) for value in values]
    positions = torch.tensor(values, dtype=torch.int64 if wide else torch.int32)
    x = rows(len(values))
    before, tables = x.clone(), rows(10, 2, 3)
    cos, sin = tables[:, 0], tables[:, 1]
    fits = all(0 <= value < 10 for value in values)
    try:
        y = flagattn.apply_rotary(x, cos, sin, positions=positions, inplace=inplace)
    except RuntimeError as error:
        assert not fits and "positions holds" in str(error) and torch.equal(x, before)
        return
    assert fits
    torch.testing.assert_close(y, reference.apply_rotary(before, cos, sin, positions=positions))


@wild
@given(st.lists(longs, min_size=1, max_size=6), st.sampled_from(["mean", "sum", "none"]), longs, st.booleans())
def test_targets(values: list[int], reduction: str, ignore_index: int, of_hidden: bool) -> None:
    classes, targets = 9, torch.tensor(values)
    leaves = [rows(len(values), 1, 7)[:, 0].contiguous().requires_grad_(), rows(classes, 1, 7, 1)[:, 0].contiguous()]
    fits = all(value == ignore_index or 0 <= value < classes for value in values)
    options = {"reduction": reduction, "ignore_index": ignore_index}
    try:
        if of_hidden:
            loss = flagattn.linear_cross_entropy(*leaves, targets, **options)
        else:
            loss = flagattn.cross_entropy(leaves[0] @ leaves[1].t(), targets, **options)
    except RuntimeError as error:
        assert not fits and "targets holds" in str(error)
        return
    assert fits and isinstance(loss, Tensor)
    expected, _ = reference.linear_cross_entropy(*leaves, targets, **options)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss.sum(), leaves[0])[0].isfinite().all()
