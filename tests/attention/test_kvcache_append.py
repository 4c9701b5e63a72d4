"""New rows for caches: where they go, how they are rotated, and what is refused before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn.testing import Cache, make_cache

KINDS: dict[str, dict[str, Any]] = {
    "rows": {},
    "permuted": {"permuted": True, "leftpads": (3, 0, 1)},
    "pages_of_8": {"page_size": 8},
    "pages_of_3_leftpad": {"page_size": 3, "leftpads": (0, 4, 2)},
}
LENGTHS = (37, 0, 130)
HEADS_Q, HEADS_K, DIM, NEW = 6, 2, 40, 5


def rows(count: int, dim: int = DIM, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, HEADS_K, dim).to(dtype)


def caches(operands: int, dtype: torch.dtype = torch.float32, dim: int = DIM, **kind: Any) -> Cache:
    torch.manual_seed(0)
    return make_cache([[rows(n, dim, dtype) for n in LENGTHS] for _ in range(operands)], room=NEW, **kind)


def new_operands(dtype: torch.dtype = torch.float32, dim: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(len(LENGTHS), NEW, heads, dim).to(dtype) for heads in (HEADS_Q, HEADS_K, HEADS_K))
    return q, k, v


def check_stretches(cache: Cache, before: list[Tensor], operand: int, new: Tensor) -> None:
    """Behind its seqlen every sequence has its new rows, and no other element has changed."""
    expected = before[operand].clone()
    other = Cache((expected,), cache.seqlens, cache.leftpad, cache.batch_idx, cache.block_table)
    for b, seqlen in enumerate(cache.seqlens.tolist()):
        for i in range(NEW):
            row = seqlen + i
            if other.block_table is not None:
                size = expected.shape[1]
                expected[int(other.block_table[b, row // size]), row % size] = new[b, i]
            else:
                expected[b if other.batch_idx is None else int(other.batch_idx[b]), row] = new[b, i]
    assert torch.equal(cache.tensors[operand].nan_to_num(77.0), expected.nan_to_num(77.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_appended_and_seen(kind: str, dtype: torch.dtype) -> None:
    cache = caches(2, dtype, **KINDS[kind])
    q, k, v = new_operands(dtype)
    before = [tensor.clone() for tensor in cache.tensors]
    versions = [tensor._version for tensor in cache.tensors]
    out, lse = flagattn.flash_attn_with_kvcache(
        q, *cache.tensors, k, v, **cache.arguments, causal=True, return_lse=True
    )
    for operand, new in enumerate((k, v)):
        check_stretches(cache, before, operand, new)
        assert cache.tensors[operand]._version > versions[operand]
    cache.seqlens += NEW
    again = flagattn.flash_attn_with_kvcache(q, *cache.tensors, **cache.arguments, causal=True, return_softmax_lse=True)
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("mask", [{"causal": True}, {"window_size": (20, -1)}, {}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rotation(kind: str, mask: dict[str, Any], interleaved: bool) -> None:
    cache = caches(2, torch.bfloat16, **KINDS[kind])
    q, k, v = new_operands(torch.bfloat16)
    cos, sin = torch.randn(2, max(cache.seqlens.tolist()) + NEW, 12)
    before = [tensor.clone() for tensor in cache.tensors]
    kept = q.clone()
    out = flagattn.flash_attn_with_kvcache(
        q, *cache.tensors, k, v, cos, sin, **cache.arguments, **mask, rotary_interleaved=interleaved
    )
    places = cache.seqlens[:, None] + torch.arange(NEW, dtype=torch.int32)
    rotated_k = flagattn.apply_rotary(k, cos, sin, positions=places, interleaved=interleaved)
    check_stretches(cache, before, 0, rotated_k)
    check_stretches(cache, before, 1, v)
    places = places if mask else cache.seqlens[:, None].expand(-1, NEW).contiguous()
    rotated_q = flagattn.apply_rotary(q, cos, sin, positions=places, interleaved=interleaved)
    cache.seqlens += NEW
    assert torch.equal(out, flagattn.flash_attn_with_kvcache(rotated_q, *cache.tensors, **cache.arguments, **mask))
    assert torch.equal(q, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_piecewise(kind: str) -> None:
    cache = caches(3, **KINDS[kind])
    q, k, v = new_operands()
    q2, k2, _ = new_operands()
    before = [tensor.clone() for tensor in cache.tensors]
    out = flagattn.piecewise_attn_with_kvcache(q, q2, *cache.tensors, 17, k, k2, v, **cache.arguments)
    for operand, new in enumerate((k, k2, v)):
        check_stretches(cache, before, operand, new)
    cache.seqlens += NEW
    again = flagattn.piecewise_attn_with_kvcache(q, q2, *cache.tensors, 17, **cache.arguments)
    assert torch.equal(out, again)


@pytest.mark.parametrize("kind", KINDS)
def test_head_dims_that_are_padded(kind: str) -> None:
    cache = caches(2, dim=59, **KINDS[kind])
    q, k, v = new_operands(dim=59)
    before = [tensor.clone() for tensor in cache.tensors]
    out = flagattn.flash_attn_with_kvcache(q, *cache.tensors, k, v, **cache.arguments, causal=True)
    assert out.shape == q.shape
    check_stretches(cache, before, 0, k)
    check_stretches(cache, before, 1, v)


def test_step_by_step_is_a_prefill() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 40, heads, 32) for heads in (4, 2, 2))
    caches_ = [torch.full((2, 64, 2, 32), torch.nan) for _ in range(2)]
    steps, done = [], 0
    for count in (17, 1, 1, 5, 1, 15):
        part = slice(done, done + count)
        arguments = (q[:, part], *caches_, k[:, part], v[:, part])
        steps.append(flagattn.flash_attn_with_kvcache(*arguments, cache_seqlens=done, causal=True))
        done += count
    assert torch.equal(torch.cat(steps, 1), flagattn.flash_attn_func(q, k, v, causal=True))


def test_under_compile_and_inference_mode() -> None:
    q, k, v = new_operands()
    cos, sin = torch.randn(2, 200, 10)

    def step(cache: Cache) -> Tensor:
        return flagattn.flash_attn_with_kvcache(q, *cache.tensors, k, v, cos, sin, **cache.arguments, causal=True) * 2

    eager_cache, compiled_cache, inferred_cache = (caches(2, page_size=8) for _ in range(3))
    eager = step(eager_cache)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled_cache)
    with torch.inference_mode():
        inferred = step(inferred_cache)
    for other, cache in ((compiled, compiled_cache), (inferred, inferred_cache)):
        assert torch.equal(eager, other)
        for ours, theirs in zip(eager_cache.tensors, cache.tensors):
            assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


def test_opcheck() -> None:
    cache = caches(3, page_size=8)
    cache.tensors = tuple(tensor.nan_to_num(0.0) for tensor in cache.tensors)
    q, k, v = new_operands()
    k1_cache, k2_cache, v_cache = cache.tensors
    cos, sin = torch.randn(2, 200, 10)
    index = (cache.seqlens, None, cache.leftpad, cache.block_table)
    numbers = (0.1, -1, 0, 0.0)
    slopes, sinks = torch.rand(2, HEADS_Q)
    ops = torch.ops.flagattn
    for op, arguments in (
        (ops.attention_kvcache, (q, k1_cache, v_cache, *index, *numbers)),
        (ops.attention_kvcache, (q, k1_cache, v_cache, *index, *numbers, slopes, sinks)),
        (ops.attention_kvcache_append, (q, k1_cache, v_cache, k, v, cos, sin, True, *index, *numbers, slopes, sinks)),
        (ops.piecewise_kvcache, (q, k1_cache, q, k2_cache, v_cache, *index, 9, *numbers, sinks)),
        (ops.piecewise_kvcache_append, (q, k1_cache, q, k2_cache, v_cache, k, k, v, *index, 9, *numbers, sinks)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_under_autocast() -> None:
    cache = caches(2, torch.bfloat16)
    q, k, v = new_operands()
    with torch.autocast("cpu", torch.bfloat16):
        out = flagattn.flash_attn_with_kvcache(q, *cache.tensors, k, v, **cache.arguments)
    assert out.dtype == torch.bfloat16


# ---- what is refused ----


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


WRONG_VALUES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "seqlen beyond": ({}, {"cache_seqlens": i32(5, 0, 131)}, "cache_seqlens.2. is 131"),
    "seqlen beyond, one for all": ({}, {"cache_seqlens": 131}, "cache_seqlens.0. is 131"),
    "seqlen negative": ({}, {"cache_seqlens": i32(5, -1, 0)}, "cache_seqlens.1. is -1"),
    "seqlen huge": ({}, {"cache_seqlens": i32(5, 2**31 - 1, 0)}, "cache_seqlens.1. is 2147483647"),
    "leftpad behind seqlen": ({}, {"cache_leftpad": i32(0, 1, 0)}, "cache_leftpad.1. is 1"),
    "leftpad negative": ({}, {"cache_leftpad": i32(-1, 0, 0)}, "cache_leftpad.0. is -1"),
    "batch row beyond": ({}, {"cache_batch_idx": i32(0, 3, 1)}, "cache_batch_idx.1. is 3"),
    "batch row negative": ({}, {"cache_batch_idx": i32(0, 1, -1)}, "cache_batch_idx.2. is -1"),
    "batch row twice": ({}, {"cache_batch_idx": i32(2, 1, 2)}, "another sequence has too"),
    "positions beyond the tables": ({}, {"rotary_cos": torch.zeros(134, 4), "rotary_sin": torch.zeros(134, 4)}, "134"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values_write_nothing(name: str) -> None:
    kind, wrong, message = WRONG_VALUES[name]
    cache = caches(2, **kind)
    refused_unchanged(cache, wrong, message)


def refused_unchanged(cache: Cache, wrong: dict[str, Any], message: str) -> None:
    before = [tensor.clone() for tensor in cache.tensors]
    q, k, v = new_operands()
    with pytest.raises(RuntimeError, match=message):
        flagattn.flash_attn_with_kvcache(q, *cache.tensors, k, v, **{**cache.arguments, **wrong})
    for tensor, kept in zip(cache.tensors, before):
        assert torch.equal(tensor.nan_to_num(7.0), kept.nan_to_num(7.0))


@pytest.mark.parametrize("page", [-1, 10_000])
def test_wrong_pages(page: int) -> None:
    cache = caches(2, page_size=8)
    assert cache.block_table is not None
    cache.block_table[0, 2] = page
    refused_unchanged(cache, {}, f"block_table.0..2. is {page}")
    q, _, _ = new_operands()
    with pytest.raises(RuntimeError, match="block_table"):
        flagattn.flash_attn_with_kvcache(q, *cache.tensors, **cache.arguments)


@pytest.mark.parametrize(("reader", "entry"), [(2, 3), (2, 16), (0, 1), (1, 0)])
def test_a_page_that_takes_rows_is_used_once(reader: int, entry: int) -> None:
    cache = caches(2, page_size=8)
    assert cache.block_table is not None
    cache.block_table[reader, entry] = cache.block_table[0, 4]  # rows 32 to 39 of sequence 0, whose seqlen is 37
    refused_unchanged(cache, {}, "used twice")


def test_pages_may_be_shared_where_they_are_only_read() -> None:
    cache = caches(2, page_size=8)
    assert cache.block_table is not None
    cache.block_table[2, :3] = cache.block_table[0, :3]
    q, k, v = new_operands()
    assert torch.isfinite(flagattn.flash_attn_with_kvcache(q, *cache.tensors, k, v, **cache.arguments)).all()


def test_wrong_arguments() -> None:
    cache = caches(2)
    q, k, v = new_operands()
    k_cache, v_cache = cache.tensors
    call = flagattn.flash_attn_with_kvcache
    seqlens = cache.seqlens
    for error, message, arguments, options in (
        (ValueError, "k and v must be given together", (q, k_cache, v_cache, k), {"cache_seqlens": 1}),
        (ValueError, "cache_seqlens is not", (q, k_cache, v_cache, k, v), {}),
        (ValueError, "without k", (q, k_cache, v_cache), {"rotary_cos": torch.zeros(9, 4)}),
        (ValueError, "k has shape", (q, k_cache, v_cache, k[:, :, :1], v), {"cache_seqlens": seqlens}),
        (ValueError, "v has shape", (q, k_cache, v_cache, k, v[:, 1:]), {"cache_seqlens": seqlens}),
        (TypeError, "k is torch.float64", (q, k_cache, v_cache, k.double(), v), {"cache_seqlens": seqlens}),
        (TypeError, "k_cache is torch.bfloat16", (q, k_cache.bfloat16(), v_cache), {}),
        (TypeError, "cache_seqlens is torch.int64", (q, k_cache, v_cache), {"cache_seqlens": seqlens.long()}),
        (ValueError, "cache_seqlens has shape", (q, k_cache, v_cache), {"cache_seqlens": seqlens[:2]}),
        (ValueError, "k_cache has 2 rows", (q, k_cache[:2], v_cache[:2]), {}),
        (ValueError, "block_table has shape", (q, k_cache, v_cache), {"block_table": i32(1, 2, 3)}),
        (
            ValueError,
            "both given",
            (q, k_cache, v_cache),
            {"block_table": i32(0, 1, 2)[:, None], "cache_batch_idx": seqlens},
        ),
        (ValueError, "same head_dim", (q[..., :32], k_cache, v_cache), {}),
        (ValueError, "multiple", (q[:, :, :5], k_cache, v_cache), {}),
        (ValueError, "softcap", (q, k_cache, v_cache), {"softcap": -1.0}),
        (TypeError, "num_splits", (q, k_cache, v_cache), {"num_splits": 1.5}),
        (ValueError, "num_splits is -1; it must be >= 0", (q, k_cache, v_cache), {"num_splits": -1}),
        (TypeError, "cache_seqlens is of type bool; it must be an", (q, k_cache, v_cache), {"cache_seqlens": True}),
        (RuntimeError, "not differentiable", (q.clone().requires_grad_(), k_cache, v_cache), {}),
        (RuntimeError, "expanded", (q, k_cache[:1].expand(3, -1, -1, -1), v_cache, k, v), {"cache_seqlens": seqlens}),
        (RuntimeError, "begin at the same element", (q, k_cache, k_cache, k, v), {"cache_seqlens": seqlens}),
    ):
        with pytest.raises(error, match=message):
            call(*arguments, **options)
    with torch.no_grad():
        call(q.clone().requires_grad_(), k_cache, v_cache, cache_seqlens=seqlens)


def test_new_rows_that_lie_in_a_cache_are_refused_and_neighbours_are_not() -> None:
    buffer = torch.randn(2, 12, 2, 16)
    k_cache, v_cache, q = buffer[:, :8], torch.randn(2, 8, 2, 16), torch.randn(2, 4, 4, 16)
    fresh = torch.randn(2, 4, 2, 16)
    lengths = torch.full((2,), 2, dtype=torch.int32)
    before = k_cache.clone()
    for k, v, words in (
        (k_cache[:, 0:4], fresh, "k shares memory with the cache that k is appended to"),
        (fresh, v_cache[:, 4:8], "v shares memory with the cache that v is appended to"),
        (fresh, k_cache[:, 1:5], "v shares memory with the cache that k is appended to"),
        (torch.from_numpy(k_cache.numpy()[:, 2:6]), fresh, "k shares memory"),
    ):
        with pytest.raises(ValueError, match=words):
            flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths)
    with pytest.raises(ValueError, match="k2 shares memory with the cache that k1 is appended to"):
        flagattn.piecewise_attn_with_kvcache(
            q, q, k_cache, v_cache, torch.randn(2, 8, 2, 16), 3, fresh, k_cache[:, 0:4], fresh, lengths
        )
    assert torch.equal(k_cache, before)
    # Operands and caches cut from one buffer without a common element between first and last.
    arena = torch.zeros(4 * 2 * 8 * 2 * 16)
    k_cache, v_cache, k, v = arena.view(4, 2, 8, 2, 16).unbind()
    k[:, :4], v[:, :4] = fresh, fresh
    flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, k[:, :4], v[:, :4], cache_seqlens=lengths)
    assert torch.equal(k_cache[:, 2:6], fresh)
