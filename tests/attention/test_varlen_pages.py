"""flash_attn_varlen_func over pages: the bits of the same keys packed, wrong values, gradients, tracing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn.testing import available_cpu_levels, make_cache, set_cpu_level

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Paged:
    """Sequences of `rows` queries each and `keys` keys each."""

    name: str
    rows: tuple[int, ...]
    keys: tuple[int, ...]
    page_size: int = 16
    heads_q: int = 4
    heads_k: int = 2
    head_dim: int = 32
    head_dim_v: int = 0
    causal: bool = True
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: str = ""  # "h" or "bh"
    sinks: bool = False

    def __str__(self) -> str:
        return self.name


CASES = (
    Paged("prefills", (70, 1, 130), (70, 300, 200)),
    Paged("decodes", (1, 1, 1, 1), (1500, 7, 0, 129), heads_q=8),
    Paged("decodes_and_prefills", (1, 90, 0, 1, 5), (1100, 90, 30, 0, 40), page_size=7),
    Paged("few_rows", (2, 3, 0), (140, 3, 9), page_size=256),
    Paged("pages_of_1", (3, 40), (33, 150), page_size=1, heads_q=3, heads_k=1, head_dim=64),
    Paged("full", (33, 2), (20, 140), causal=False),
    Paged("window", (60, 1), (300, 1200), window_size=(50, 0), page_size=24),
    Paged("window_both", (60, 4), (90, 200), causal=False, window_size=(20, 3)),
    Paged("softcap", (30, 1), (90, 70), softcap=3.0),
    Paged("alibi", (30, 1, 2), (90, 70, 5), alibi="h"),
    Paged("alibi_sequences", (40, 1), (90, 1070), alibi="bh", heads_q=6),
    Paged("sinks", (30, 1, 2), (90, 70, 0), sinks=True),
    Paged("dims_differ", (30, 1), (90, 70), head_dim=72, head_dim_v=40),
    Paged("dim_59", (30, 1), (90, 70), head_dim=59, head_dim_v=61),
    Paged("dim_256", (9, 1), (90, 70), head_dim=256),
    Paged("no_sequences", (), ()),
    Paged("nothing_but_empty", (0, 0), (0, 3)),
)


def cumulative(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@dataclass
class Problem:
    q: Tensor
    k: Tensor  # packed
    v: Tensor
    pages: tuple[Tensor, Tensor]
    table: Tensor
    packing: tuple[Tensor, Tensor, int, int]
    options: dict[str, Any]

    def packed(self) -> tuple[Tensor, Tensor]:
        return self._run(self.k, self.v)

    def paged(self, **more: Any) -> tuple[Tensor, Tensor]:
        return self._run(*self.pages, **{"block_table": self.table} | more)

    def _run(self, k: Tensor, v: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = flagattn.flash_attn_varlen_func(
            self.q, k, v, *self.packing, return_lse=True, **self.options | more
        )
        return result


def make(case: Paged, dtype: torch.dtype = torch.float32, tail: int = 0) -> Problem:
    """With `tail` query rows that belong to no sequence, which are NaN, as are all rows of pages that are not keys."""
    generator = torch.Generator().manual_seed(len(case.name))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    dims = (case.head_dim, case.head_dim_v or case.head_dim)
    rows = [[randn(length, case.heads_k, dim) for length in case.keys] for dim in dims]
    if case.keys:
        cache = make_cache(rows, page_size=case.page_size)
        pages, table = cache.tensors, cache.block_table
        k, v = (torch.cat(parts) for parts in rows)
    else:
        pages, table = tuple(randn(2, case.page_size, case.heads_k, dim) for dim in dims), torch.zeros(0, 1).int()
        k, v = (randn(0, case.heads_k, dim) for dim in dims)
    assert table is not None
    q = torch.cat([randn(sum(case.rows), case.heads_q, dims[0]), torch.full((tail, case.heads_q, dims[0]), math.nan)])
    names = ("causal", "window_size", "softcap")
    options: dict[str, Any] = {name: getattr(case, name) for name in names}
    if case.alibi:
        slopes = torch.rand(len(case.rows), case.heads_q, generator=generator)
        options["alibi_slopes"] = slopes if case.alibi == "bh" else slopes[0]
    if case.sinks:
        options["sinks"] = torch.randn(case.heads_q, generator=generator)
    packing = (cumulative(*case.rows), cumulative(*case.keys), max(case.rows, default=0), max(case.keys, default=0))
    return Problem(q.to(dtype), k, v, (pages[0], pages[1]), table, packing, options)


def some(**changes: Any) -> Problem:
    return make(Paged("some", **{"rows": (3, 1, 20), "keys": (40, 7, 90)} | changes))


# ---- Results ----


@pytest.mark.parametrize("level", available_cpu_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pages_give_the_bits_of_packed_keys(case: Paged, dtype: torch.dtype, level: str) -> None:
    problem = make(case, dtype)
    with set_cpu_level(level):
        (out, lse), (expected, expected_lse) = problem.paged(), problem.packed()
    assert out.dtype == dtype and not out.isnan().any()
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


def test_rows_behind_the_last_sequence_are_zero() -> None:
    problem = make(Paged("tail", (3, 20), (40, 90)), tail=4)
    out, lse = problem.paged()
    assert torch.equal(out[23:], torch.zeros(4, 4, 32)) and bool(torch.isneginf(lse[:, 23:]).all())
    assert torch.equal(out[:23], problem.packed()[0][:23])


def test_threads_and_other_sequences_change_no_bits() -> None:
    problem = some()
    expected, lse = problem.paged()
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 8):
            torch.set_num_threads(count)
            assert torch.equal(problem.paged()[0], expected)
    finally:
        torch.set_num_threads(threads)
    begin, end = problem.packing[0][1:3].tolist()
    alone, alone_lse = flagattn.flash_attn_varlen_func(
        problem.q[begin:end],
        *problem.pages,
        cumulative(1),
        cumulative(7),
        1,
        7,
        block_table=problem.table[1:2],
        causal=True,
        return_lse=True,
    )
    assert torch.equal(alone, expected[begin:end]) and torch.equal(alone_lse, lse[:, begin:end])


def test_pages_may_be_strided_and_shared() -> None:
    problem = some()
    expected, _ = problem.paged()
    both = torch.stack(problem.pages, dim=2)  # (pages, page size, 2, heads, head_dim), as vLLM keeps them
    problem.pages = (both[:, :, 0], both[:, :, 1])
    problem.table = torch.stack([problem.table, -problem.table], dim=1)[:, 0]  # rows of a wider table
    assert torch.equal(problem.paged()[0], expected)
    first = problem.table[:1].repeat(2, 1)
    q = problem.q[:3].repeat(2, 1, 1)
    packing = (cumulative(3, 3), cumulative(40, 40), 3, 40)
    twice = flagattn.flash_attn_varlen_func(q, *problem.pages, *packing, block_table=first, causal=True)
    assert torch.equal(twice[:3], expected[:3]) and torch.equal(twice[3:], expected[:3])


def test_a_result_has_the_three_forms() -> None:
    problem = some()
    out, lse = problem.paged()
    arguments = (problem.q, *problem.pages, *problem.packing)
    assert torch.equal(flagattn.flash_attn_varlen_func(*arguments, causal=True, block_table=problem.table), out)
    triple = flagattn.flash_attn_varlen_func(*arguments, causal=True, return_attn_probs=True, block_table=problem.table)
    assert torch.equal(triple[0], out) and torch.equal(triple[1], lse) and triple[2] is None


# ---- What is refused ----


def with_lengths(problem: Problem, *keys: int, longest: int = 100) -> Problem:
    problem.packing = (problem.packing[0], torch.tensor(keys, dtype=torch.int32), 20, longest)
    return problem


def with_entry(problem: Problem, page: int, place: tuple[int, int] = (0, 1)) -> Problem:
    problem.table[place] = page
    return problem


WRONG_VALUES = {
    "keys beyond the pages": (
        lambda p: with_lengths(p, 0, 40, 47, 47 + 97),
        "cu_seqlens_k gives sequence 2 the length 97; with 0 rows to append and the 6 pages of 16 rows that "
        "block_table has for a sequence it must lie between 0 and 96",
    ),
    "falling": (lambda p: with_lengths(p, 0, 40, 39, 100), "cu_seqlens_k falls from 40 to 39 at index 2"),
    "start": (lambda p: with_lengths(p, 1, 40, 47, 90), "cu_seqlens_k starts with 1; it must start with 0"),
    "longest": (
        lambda p: with_lengths(p, 0, 40, 47, 137, longest=89),
        "cu_seqlens_k gives sequence 2 the length 90, but its max_seqlen is 89",
    ),
    "no page": (lambda p: with_entry(p, -1), "block_table[0][1] is -1; the cache has "),
    "page too high": (lambda p: with_entry(p, 999, (2, 5)), "block_table[2][5] is 999; the cache has "),
}


@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_wrong_values_are_named(wrong: str) -> None:
    spoil, message = WRONG_VALUES[wrong]
    problem = spoil(some())
    problem.packing = (*problem.packing[:3], 97 if "beyond" in wrong else problem.packing[3])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        problem.paged()


def test_wrong_queries_are_named() -> None:
    problem = some()
    problem.packing = (cumulative(3, 1, 21), *problem.packing[1:2], 21, 90)
    with pytest.raises(RuntimeError, match="cu_seqlens_q ends with 25, but the tensor has 24 rows"):
        problem.paged()


def test_unused_entries_may_be_anything() -> None:
    problem = some()
    expected, _ = problem.paged()
    for page in (-(2**31), -1, 10**9):
        problem.table[1, 1:] = page  # 7 keys lie on one page
        assert torch.equal(problem.paged()[0], expected)


BAD_ARGUMENTS = {
    "rank of k": (lambda p: {"k": p.k}, ValueError, r"k has shape \(137, 2, 32\); it must be \(pages, page_size"),
    "rank of q": (lambda p: {"q": p.q[None]}, ValueError, r"q has shape .*; it must be \(total, heads, head_dim\)"),
    "dtype": (lambda p: {"q": p.q.half()}, TypeError, "k is .*float32, but q is .*float16"),
    "int64 table": (lambda p: {"block_table": p.table.long()}, TypeError, "block_table is .*int64; it must be int32"),
    "rows of table": (
        lambda p: {"block_table": p.table[:2]},
        ValueError,
        r"block_table has shape .*; it must be \(batch, pages\) of 3 rows",
    ),
    "no cu_seqlens_k": (lambda p: {"cu_seqlens_k": None}, TypeError, "cu_seqlens_k is None; it must be a tensor"),
    "cu_seqlens differ": (lambda p: {"cu_seqlens_k": p.packing[1][:2]}, ValueError, "their shapes must be equal"),
    "empty pages": (
        lambda p: {"k": p.pages[0][:, :0], "v": p.pages[1][:, :0]},
        ValueError,
        r"k has shape .*; with block_table its pages need at least a row",
    ),
    "dropout": (lambda p: {"dropout_p": 0.5}, NotImplementedError, "dropout_p is 0.5; .* it must be 0"),
    "softcap": (lambda p: {"softcap": -1.0}, ValueError, "softcap is -1.0"),
    "sinks": (lambda p: {"sinks": torch.zeros(3)}, ValueError, r"sinks has shape \(3,\)"),
}


@pytest.mark.parametrize("bad", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(bad: str) -> None:
    change, kind, message = BAD_ARGUMENTS[bad]
    problem = some()
    names = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "block_table")
    given = dict(zip(names, (problem.q, *problem.pages, *problem.packing, problem.table), strict=True))
    with pytest.raises(kind, match=message):
        flagattn.flash_attn_varlen_func(**given | change(problem))


def test_the_op_refuses_two_lengths() -> None:
    problem = some()
    lengths = torch.tensor([40, 7, 90], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="cu_seqlens_k and cache_seqlens are both given"):
        torch.ops.flagattn.attention_kvcache_varlen(
            problem.q, *problem.pages, *problem.packing, lengths, None, None, problem.table, 0.2, -1, 0, 0.0
        )


# ---- In torch ----


def test_a_backward_says_that_pages_have_no_gradient() -> None:
    problem = some()
    expected, _ = problem.paged()
    problem.q.requires_grad_()
    out, _ = problem.paged()
    assert torch.equal(out, expected) and out.requires_grad
    with pytest.raises(RuntimeError, match="no gradient: gather the keys and values of the pages"):
        out.sum().backward()
    with torch.no_grad():
        assert not problem.paged()[0].requires_grad


@pytest.mark.parametrize("lengths", ["cu_seqlens_k", "cache_seqlens", "none"])
def test_opcheck(lengths: str) -> None:
    problem = some(sinks=True, alibi="h")
    q, (cu_q, cu_k, longest_q, longest_k) = problem.q, problem.packing
    used = torch.tensor([40, 7, 90], dtype=torch.int32)
    given = {"cu_seqlens_k": (cu_k, None), "cache_seqlens": (None, used), "none": (None, None)}[lengths]
    cache, table = problem.pages, problem.table
    if lengths == "none":  # every sequence has its batch row of the cache, whole
        cache, table = (torch.randn(3, 50, 2, 32), torch.randn(3, 50, 2, 32)), None
    joined = (problem.options["alibi_slopes"], problem.options["sinks"])
    numbers = (0.2, -1, 0, 0.0)
    torch.library.opcheck(
        torch.ops.flagattn.attention_kvcache_varlen.default,
        (q, *cache, cu_q, given[0], longest_q, longest_k, given[1], None, None, table, *numbers, *joined),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_calls_give_the_same_bits(dynamic: bool) -> None:
    problem = some(sinks=True)
    compiled = torch.compile(
        lambda *arguments: flagattn.flash_attn_varlen_func(
            *arguments[:-1], block_table=arguments[-1], return_lse=True, **problem.options
        ),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for other in (problem, make(Paged("other", (1, 9), (30, 64)))):
        with torch.no_grad():
            out, lse = compiled(other.q, *other.pages, *other.packing, other.table)
        other.options = problem.options
        expected, expected_lse = other.paged()
        assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


def test_under_autocast_the_queries_take_the_dtype_of_the_pages() -> None:
    problem = make(Paged("autocast", (3, 1), (40, 7)), torch.bfloat16)
    expected, _ = problem.paged()
    problem.q = problem.q.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = problem.paged()
    assert out.dtype is torch.bfloat16 and torch.equal(out, expected)


def test_explain_tells_that_pages_have_no_backward() -> None:
    problem = some()
    told = flagattn.explain(
        "flash_attn_varlen_func", problem.q, *problem.pages, *problem.packing, causal=True, block_table=problem.table
    )
    assert told.details["backward"] == "none: pages are read only"
