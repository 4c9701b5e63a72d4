"""Attention over caches against the float64 reference and, bit for bit, against a prefill of the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn import reference
from flagattn.build_info import CPU_LEVELS
from flagattn.testing import available_cpu_levels, make_cache, set_cpu_level
from flagattn.testing.tolerance import assert_close_to_oracle

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Decode:
    """seqlen_q query rows for each of the sequences of `lengths` keys."""

    name: str
    lengths: tuple[int, ...]
    seqlen_q: int = 1
    heads_q: int = 8
    heads_k: int = 2
    head_dim: int = 64
    head_dim_v: int = 0
    causal: bool = True
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    softmax_scale: float | None = None
    page_size: int = 0
    leftpads: tuple[int, ...] | None = None
    permuted: bool = False
    dist_threshold: int | None = None
    alibi: str = ""  # "h" or "bh"
    sinks: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def options(self) -> dict[str, Any]:
        names = ("causal", "window_size", "softcap", "softmax_scale")
        return {name: getattr(self, name) for name in names}


CASES = (
    Decode("one_token", (300, 1, 129)),
    Decode("empty_among_others", (0, 40, 0)),
    Decode("two_chunks", (1500,), head_dim=32),
    Decode("three_chunks_mha", (2100, 1024, 1025), heads_q=2, heads_k=2, head_dim=16),
    Decode("gqa_3", (260, 70), heads_q=6, heads_k=2, head_dim=40),
    Decode("gqa_8", (333,), heads_q=8, heads_k=1, head_dim=128),
    Decode("gqa_16", (140,), heads_q=16, heads_k=1),
    Decode("gqa_5_dims_differ", (200, 131), heads_q=5, heads_k=1, head_dim=72, head_dim_v=40),
    Decode("dim_256", (150,), head_dim=256),
    Decode("dim_8", (150, 5), head_dim=8),
    Decode("dim_59", (70, 130), head_dim=59, head_dim_v=61),
    Decode("five_tokens", (300, 128, 7), seqlen_q=5),
    Decode("three_tokens_mqa", (1030, 2), seqlen_q=3, heads_q=5, heads_k=1, head_dim=24),
    Decode("more_queries_than_keys", (3, 0, 9), seqlen_q=7, heads_q=2),
    Decode("many_tokens", (400, 150), seqlen_q=90),
    Decode("full", (140, 20), seqlen_q=3, causal=False),
    Decode("window_left", (700, 90), window_size=(100, 0)),
    Decode("window_left_tokens", (1500, 90), seqlen_q=4, window_size=(1100, 0), head_dim=32),
    Decode("window_both", (200, 30), seqlen_q=6, causal=False, window_size=(20, 3)),
    Decode("window_itself", (200, 30), seqlen_q=2, window_size=(0, 0)),
    Decode("softcap", (200, 30), seqlen_q=2, softcap=3.0),
    Decode("negative_scale", (130,), softmax_scale=-0.3),
    Decode("zero_scale", (130,), softmax_scale=0.0),
    Decode("pages_of_16", (300, 1, 0, 129), page_size=16),
    Decode("pages_of_256", (700, 90), page_size=256, seqlen_q=2),
    Decode("pages_of_1", (150, 7), page_size=1),
    Decode("pages_of_7_tokens", (1100, 20), page_size=7, seqlen_q=40, head_dim=32),
    Decode("leftpad", (300, 33, 0), leftpads=(5, 131, 2)),
    Decode("leftpad_pages", (1100, 33), leftpads=(13, 100), page_size=24, head_dim=32),
    Decode("rows_permuted", (30, 140, 7), permuted=True, leftpads=(0, 3, 1)),
    Decode("alibi", (300, 1, 0, 129), alibi="h"),
    Decode("alibi_sequences", (1500, 40), alibi="bh", heads_q=6, heads_k=2, head_dim=32),
    Decode("alibi_tokens_pages", (1300, 2), seqlen_q=4, alibi="bh", page_size=24, leftpads=(7, 0), head_dim=32),
    Decode("alibi_full_softcap", (140, 20), seqlen_q=3, causal=False, alibi="h", softcap=4.0),
    Decode("alibi_many_tokens", (300, 150), seqlen_q=50, alibi="bh", window_size=(140, 0)),
    Decode("sinks", (300, 1, 0, 1100), sinks=True, head_dim=32),
    Decode("sinks_alibi_tokens", (200, 9), seqlen_q=3, sinks=True, alibi="bh", heads_q=6),
    Decode("piecewise_sinks", (300, 50), seqlen_q=2, dist_threshold=40, sinks=True, page_size=20),
    Decode("piecewise", (300, 1, 0, 140), dist_threshold=64),
    Decode("piecewise_tokens", (1300, 90), seqlen_q=4, dist_threshold=130, head_dim=32, heads_q=6),
    Decode("piecewise_all_far", (140,), dist_threshold=-3),
    Decode("piecewise_all_near", (140,), dist_threshold=4000),
    Decode("piecewise_pages", (300, 50), seqlen_q=33, dist_threshold=40, page_size=20, leftpads=(1, 0), softcap=5.0),
)


@dataclass
class Problem:
    case: Decode
    queries: tuple[Tensor, ...]
    rows: tuple[list[Tensor], ...]  # keys (and far keys), values of every sequence
    cache: Any
    joined: dict[str, Tensor]  # alibi_slopes, sinks

    def run(self, queries: tuple[Tensor, ...] | None = None, **more: Any) -> tuple[Tensor, Tensor]:
        case, queries = self.case, queries or self.queries
        given = {**self.cache.arguments, **case.options, **self.joined, "return_lse": True, **more}
        function: Any = flagattn.flash_attn_with_kvcache
        threshold: tuple[int, ...] = ()
        if case.dist_threshold is not None:
            function, threshold = flagattn.piecewise_attn_with_kvcache, (case.dist_threshold,)
        result: tuple[Tensor, Tensor] = function(*queries, *self.cache.tensors, *threshold, **given)
        return result


def make(case: Decode, dtype: torch.dtype, seed: int = 0, room: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed + len(case.name))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    pairs = 1 if case.dist_threshold is None else 2
    queries = tuple(random(len(case.lengths), case.seqlen_q, case.heads_q, case.head_dim) for _ in range(pairs))
    dims = [case.head_dim] * pairs + [case.head_dim_v or case.head_dim]
    rows = tuple([random(n, case.heads_k, dim) for n in case.lengths] for dim in dims)
    cache = make_cache(
        rows, leftpads=case.leftpads, page_size=case.page_size, permuted=case.permuted, room=room, seed=seed
    )
    joined = {}
    if case.alibi:
        shape = (case.heads_q,) if case.alibi == "h" else (len(case.lengths), case.heads_q)
        joined["alibi_slopes"] = torch.randn(shape, generator=generator).abs().mul(0.1)
    if case.sinks:
        joined["sinks"] = torch.randn(case.heads_q, generator=generator)
    return Problem(case, queries, rows, cache, joined)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_reference(case: Decode, dtype: torch.dtype) -> None:
    problem = make(case, dtype)

    def by_reference(wide: torch.dtype) -> tuple[Tensor, Tensor]:
        q, *q2 = (query.to(wide) for query in problem.queries)
        cache = problem.cache
        return reference.attention_with_kvcache(
            q,
            [tensor.to(wide) for tensor in cache.tensors],
            cache.seqlens.tolist(),
            q2=q2[0] if q2 else None,
            dist_threshold=case.dist_threshold or 0,
            leftpad=cache.leftpad,
            batch_idx=cache.batch_idx,
            block_table=cache.block_table,
            **case.options,
            **problem.joined,
        )

    plain, ref64 = by_reference(dtype), by_reference(torch.float64)
    for level in available_cpu_levels():
        with set_cpu_level(level):
            for name, ours, theirs, oracle in zip(("out", "lse"), problem.run(), plain, ref64):
                assert_close_to_oracle(ours, theirs, oracle, f"{name} at {level}")


def prefill(problem: Problem, index: int) -> tuple[Tensor, Tensor]:
    """The sequence's rows behind so many others that the prefill kernel computes them."""
    case = problem.case
    length = case.lengths[index]
    queries = []
    for query in problem.queries:
        before = torch.randn(max(17, length - case.seqlen_q), case.heads_q, case.head_dim).to(query.dtype)
        queries.append(torch.cat([before, query[index]])[None])
    rows = [operand[index][None] for operand in problem.rows]
    options = {**case.options, **problem.joined, "return_lse": True}
    if case.alibi == "bh":
        options["alibi_slopes"] = options["alibi_slopes"][index : index + 1]
    if case.dist_threshold is None:
        out, lse = flagattn.flash_attn_func(queries[0], *rows, **options)
    else:
        out, lse = flagattn.piecewise_attn_func(
            queries[0], rows[0], queries[1], rows[1], rows[2], case.dist_threshold, **options
        )
    return out[:, -case.seqlen_q :], lse[:, :, -case.seqlen_q :]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_decoded_row_has_the_bits_of_a_prefill(case: Decode, dtype: torch.dtype) -> None:
    problem = make(case, dtype)
    out, lse = problem.run()
    for index in range(len(case.lengths)):
        expected_out, expected_lse = prefill(problem, index)
        assert torch.equal(out[index : index + 1], expected_out)
        assert torch.equal(lse[index : index + 1], expected_lse)


@pytest.mark.parametrize("level", CPU_LEVELS)
@pytest.mark.parametrize(
    "name",
    ["three_chunks_mha", "gqa_8", "gqa_5_dims_differ", "three_tokens_mqa", "piecewise_pages", "alibi_tokens_pages"],
)
def test_the_same_at_every_level(name: str, level: str) -> None:
    if level not in available_cpu_levels():
        pytest.skip(f"this machine does not run {level}")
    case = next(case for case in CASES if case.name == name)
    with set_cpu_level(level):
        test_a_decoded_row_has_the_bits_of_a_prefill(case, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", CPU_LEVELS)
def test_values_that_are_not_finite_reach_the_rows_that_see_them(level: str, dtype: torch.dtype) -> None:
    if level not in available_cpu_levels():
        pytest.skip(f"this machine does not run {level}")
    q = torch.randn(1, 64, 8, 40).to(dtype)
    k, v = (torch.randn(1, 300, 2, 40).to(dtype) for _ in range(2))
    v[0, 299, 0, 3], v[0, 298, 0, 5], v[0, 297, 1, 39] = torch.inf, torch.nan, -torch.inf
    k[0, 299, 1, 0] = torch.nan
    with set_cpu_level(level):
        few = flagattn.flash_attn_with_kvcache(q[:, -4:], k, v, causal=True)
        many = flagattn.flash_attn_func(q, k, v, causal=True)[:, -4:]
    assert few[:, 0].isfinite().all() and not few[:, 2:].isfinite().all()
    torch.testing.assert_close(few, many, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "three_chunks_mha",
        "five_tokens",
        "window_left_tokens",
        "pages_of_7_tokens",
        "leftpad_pages",
        "piecewise_tokens",
        "alibi_sequences",
    ],
)
def test_bits_do_not_depend_on_threads_splits_or_batch(name: str, dtype: torch.dtype, set_threads: Callable) -> None:
    case = next(case for case in CASES if case.name == name)
    problem = make(case, dtype)
    expected = problem.run()
    for threads in (2, 3, 8, 1):
        set_threads(threads)
        for splits in (0, 1, 3):
            assert all(torch.equal(a, b) for a, b in zip(problem.run(num_splits=splits), expected))
    for index in range(len(case.lengths)):
        alone = slice(index, index + 1)
        arguments = {key: value if value is None else value[alone] for key, value in problem.cache.arguments.items()}
        if case.alibi == "bh":
            arguments["alibi_slopes"] = problem.joined["alibi_slopes"][alone]
        if problem.cache.block_table is None and problem.cache.batch_idx is None:
            arguments["cache_batch_idx"] = torch.tensor([index], dtype=torch.int32)
        results = problem.run(tuple(query[alone] for query in problem.queries), **arguments)
        assert all(torch.equal(a, b[alone]) for a, b in zip(results, expected))


def test_a_length_for_all_and_none_for_the_whole_cache() -> None:
    problem = make(Decode("whole", (130, 130)), torch.float32)
    k_cache, v_cache = problem.cache.tensors
    (q,) = problem.queries
    expected = flagattn.flash_attn_func(q, k_cache, v_cache, causal=True)
    assert torch.equal(flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, causal=True), expected)
    out = flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=77)
    assert torch.equal(out, flagattn.flash_attn_func(q, k_cache[:, :77], v_cache[:, :77]))


def test_operands_of_any_layout() -> None:
    torch.manual_seed(0)
    problem = make(Decode("layouts", (130, 45), seqlen_q=2), torch.bfloat16)
    out, lse = problem.run()
    (q,) = problem.queries
    problem.queries = (torch.stack([q, q], -1)[..., 0],)
    k, v = problem.cache.tensors
    problem.cache.tensors = (k.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([v, v], 2)[:, :, 2:])
    for ours, expected in zip(problem.run(), (out, lse)):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "options", [{}, {"sinks": True}, {"alibi_slopes": True}, {"softcap": 4.0}, {"window_size": (1100, 0)}], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_rows_without_a_cache(dtype: torch.dtype, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, heads, 40).to(dtype) for n, heads in ((40, 6), (1300, 2), (1300, 2)))
    more = dict(options, causal=True, return_lse=True)
    if "sinks" in more:
        more["sinks"] = torch.randn(6)
    if "alibi_slopes" in more:
        more["alibi_slopes"] = torch.rand(2, 6)
    out, lse = flagattn.flash_attn_func(q, k, v, **more)
    few, few_lse = flagattn.flash_attn_func(q[:, -2:], k, v, **more)
    assert torch.equal(few, out[:, -2:]) and torch.equal(few_lse, lse[:, :, -2:])
    packed = (q[:, -2:].flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    offsets = (torch.tensor([0, 2, 4], dtype=torch.int32), torch.tensor([0, 1300, 2600], dtype=torch.int32))
    assert torch.equal(flagattn.flash_attn_varlen_func(*packed, *offsets, 2, 1300, **more)[0], few.flatten(0, 1))


# ---- a long way ----


def test_a_cache_of_many_chunks() -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 1, 4, 16), torch.randn(1, 70_001, 2, 16), torch.randn(1, 70_001, 2, 16)
    out, lse = flagattn.flash_attn_with_kvcache(q, k, v, return_lse=True)
    expected, expected_lse = reference.attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-6)
