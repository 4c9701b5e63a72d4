"""The sm_80 kernels for attention over caches, executed on the CPU, against the oracle over the cases of the CPU's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from flagattn import reference
from flagattn.testing import Cache
from flagattn.testing.tolerance import assert_close_to_oracle
from tests.attention import test_varlen_pages as paged
from tests.attention.test_kvcache import CASES as ALL_CASES
from tests.attention.test_kvcache import Decode, Problem, make
from tests.host_exec import kernels
from tests.host_exec.kernels_decode import Call, call_on_cache, decoded_by_sm80

OWN_CASES = (
    Decode("dim_96", (700, 20), head_dim=96, page_size=16),
    Decode("dim_192_tokens", (530,), head_dim=192, seqlen_q=3, leftpads=(9,)),
    Decode("dim_256_splits", (1100, 300), head_dim=256, page_size=24, alibi="h", sinks=True),
    Decode("many_columns_long", (700,), seqlen_q=40, heads_q=4, window_size=(600, 0)),
    Decode("piecewise_long", (1100,), seqlen_q=2, dist_threshold=517, page_size=64),
    Decode("forty_splits", (20_200, 600), heads_q=2, heads_k=1, head_dim=16),
)
CASES = [case for case in (*ALL_CASES, *OWN_CASES) if decoded_by_sm80(case.head_dim, case.head_dim_v or case.head_dim)]
PACKED_CASES = [case for case in paged.CASES if decoded_by_sm80(case.head_dim, case.head_dim_v or case.head_dim)]
DTYPES = [torch.bfloat16, torch.float16]
SCHEDULES = [{"seed": seed, "copies": copies} for seed, copies in product((0, 1, 2), ("eager", "lazy", "random"))]


def call_of(problem: Problem) -> Call:
    case = problem.case
    return call_on_cache(
        problem.queries, problem.cache, **case.options, **problem.joined, dist_threshold=case.dist_threshold
    )


def by_reference(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    case, cache = problem.case, problem.cache
    q, *q2 = (query.to(dtype) for query in problem.queries)
    return reference.attention_with_kvcache(
        q,
        [tensor.to(dtype) for tensor in cache.tensors],
        cache.seqlens.tolist(),
        q2=q2[0] if q2 else None,
        dist_threshold=case.dist_threshold or 0,
        leftpad=cache.leftpad,
        batch_idx=cache.batch_idx,
        block_table=cache.block_table,
        **case.options,
        **problem.joined,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_matches_the_oracle(index: int, dtype: torch.dtype) -> None:
    """Every case under a schedule of its own; rows and pages that no sequence uses hold NaN."""
    kernels.set_schedule(**SCHEDULES[(index + DTYPES.index(dtype)) % len(SCHEDULES)])
    problem = make(CASES[index], dtype)
    results = (call_of(problem).run(), by_reference(problem, dtype), by_reference(problem, torch.float64))
    for name, ours, plain, ref64 in zip(("out", "lse"), *results, strict=True):
        assert_close_to_oracle(ours, plain, ref64, name)


def packed_call(problem: paged.Problem, **more: Any) -> Call:
    cache = Cache(problem.pages, problem.packing[1].diff(), block_table=problem.table)
    return call_on_cache((problem.q,), cache, cu_seqlens=problem.packing, **problem.options, **more)


@pytest.mark.parametrize("index", range(len(PACKED_CASES)), ids=[case.name for case in PACKED_CASES])
def test_packed_queries_match_the_oracle(index: int) -> None:
    """With rows behind the last sequence, which give 0 and -inf."""
    kernels.set_schedule(**SCHEDULES[index % len(SCHEDULES)])
    dtype = DTYPES[index % 2]
    problem = paged.make(PACKED_CASES[index], dtype, tail=3 if index % 2 == 0 else 0)

    def plain(wide: torch.dtype) -> tuple[Tensor, Tensor]:
        operands = (tensor.to(wide) for tensor in (problem.q, problem.k, problem.v))
        return reference.attention_varlen(*operands, *problem.packing[:2], **problem.options)

    for name, ours, narrow, ref64 in zip(
        ("out", "lse"), packed_call(problem).run(), plain(dtype), plain(torch.float64), strict=True
    ):
        assert_close_to_oracle(ours, narrow, ref64, name)


# ---- Bits


def alone(cache: Cache, index: int) -> Cache:
    tensors: dict[str, Any] = {}
    for name in ("seqlens", "leftpad", "batch_idx", "block_table"):
        tensor = getattr(cache, name)
        tensors[name] = tensor if tensor is None else tensor[index : index + 1]
    return replace(cache, **tensors)


@pytest.mark.parametrize("page_size", [0, 64, 24])
def test_bits_do_not_depend_on_the_batch_the_pages_or_the_schedule(page_size: int) -> None:
    case = Decode("bits", (1300, 70, 513), seqlen_q=2, heads_q=8, heads_k=2, page_size=page_size)
    expected = call_of(make(replace(case, page_size=0), torch.bfloat16)).run()
    same = make(case, torch.bfloat16, room=900)
    for schedule in SCHEDULES[:: 4 if page_size else 1]:
        kernels.set_schedule(**schedule)
        for ours, theirs in zip(call_of(same).run(), expected, strict=True):
            assert torch.equal(ours, theirs)
    first = make(case, torch.bfloat16)
    first.queries, first.cache = tuple(query[:1] for query in first.queries), alone(first.cache, 0)
    for ours, theirs in zip(call_of(first).run(), expected, strict=True):
        assert torch.equal(ours, theirs[:1])


def test_packed_sequences_have_the_bits_of_their_own() -> None:
    """A row that is decoded beside a prefill is cut like one alone."""
    problem = paged.make(paged.Paged("bits", (1, 90, 3), (1300, 100, 600)), torch.bfloat16)
    kernels.set_schedule()
    out, lse = packed_call(problem).run()
    lengths = problem.packing[1].diff()
    for index, (begin, end) in enumerate(zip(problem.packing[0].tolist(), problem.packing[0].tolist()[1:])):
        own = Cache(problem.pages, lengths[index : index + 1], block_table=problem.table[index : index + 1])
        one = call_on_cache((problem.q[None, begin:end],), own, **problem.options)
        for ours, expected in zip(one.run(), (out[None, begin:end], lse[None, :, begin:end]), strict=True):
            assert torch.equal(ours, expected)


def test_launches_share_a_workspace() -> None:
    """Sequences whose splits need more memory than a launch gets go in several launches, with the same bits."""
    case = Decode("rounds", (1030, 520, 60, 700, 600), seqlen_q=4, heads_q=16, heads_k=1, head_dim=256)
    problem = make(case, torch.bfloat16)
    kernels.set_schedule()
    expected = call_of(problem).run()
    call = call_of(problem)
    call.params.seqlen_k = 450_000  # of a much larger cache: more splits, of which few have keys
    assert kernels.host_exec_module().attention_decode_sm80_schedule(call.params)[0] == 4
    for ours, theirs in zip(call.run(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_wrong_values_reach_no_memory_outside() -> None:
    """Lengths, places and pages outside the caches give wrong numbers at most."""
    kernels.set_schedule()
    for case in (Decode("wild_pages", (100, 60), page_size=16, leftpads=(3, 0)), Decode("wild", (100, 60))):
        problem = make(case, torch.bfloat16)
        cache = problem.cache
        before = [tensor.clone() for tensor in cache.tensors]
        for wrong in (-5, 10_000, 2**31 - 1, -(2**31)):
            values = torch.full_like(cache.seqlens, wrong)
            changes = [{"seqlens": values}, {"leftpad": values}]
            if cache.block_table is None:
                changes.append({"batch_idx": values})
            else:
                changes.append({"block_table": torch.full_like(cache.block_table, wrong)})
            for change in changes:
                call_of(replace(problem, cache=replace(cache, **change))).run()
                assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(cache.tensors, before))


# ---- Counters and schedule


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize(("tokens", "window"), [(1, (-1, 0)), (3, (-1, 0)), (2, (300, 0)), (60, (-1, -1))])
def test_work_is_what_the_mask_leaves(head_dim: int, tokens: int, window: tuple[int, int]) -> None:
    """Keys and values are read once for a group's heads, tiles without a visible key are left out, banks never met."""
    heads_q, heads_k, length = 8, 2, 1300
    case = Decode("counted", (length,), tokens, heads_q, heads_k, head_dim, causal=False, window_size=window)
    problem = make(case, torch.bfloat16)
    kernels.set_schedule()
    call = call_of(problem)
    module = kernels.host_exec_module()
    block_m, block_n, _ = module.attention_decode_sm80_tile(head_dim)
    group, split = heads_q // heads_k, 512
    columns = tokens * group
    in_one = columns > block_m
    # By brute force: the tiles of each block, and the warps that have columns there.
    row = torch.arange(tokens)[:, None] + length - tokens - torch.arange(length)
    seen = (row >= 0) if window[1] == 0 else torch.ones_like(row, dtype=torch.bool)
    if window[0] >= 0:
        seen &= row <= window[0]
    tile_keys, products, query_rows = 0, 0, 0
    for first in range(0, columns, block_m):
        end = min(first + block_m, columns)
        rows = seen[first // group : (end - 1) // group + 1]
        ranges = [(0, length)] if in_one else [(s, min(s + split, length)) for s in range(0, length, split)]
        for begin, stop in ranges:
            tiles = [n for n in range(begin, stop, block_n) if rows[:, n : min(n + block_n, stop)].any()]
            tile_keys += sum(min(n + block_n, length) - n for n in tiles)
            products += len(tiles) * -(-(end - first) // 16) * 2 * (16 * block_n * head_dim) // (16 * 8 * 16)
            query_rows += (end - first) * bool(tiles)
    splits = 0 if in_one else 3
    workspace = torch.full((module.attention_decode_sm80_workspace(call.params),), torch.nan)
    assert workspace.numel() == splits * heads_q * tokens * (head_dim + 1)
    module.attention_decode_sm80_splits(call.params, workspace.data_ptr())
    done = kernels.counters()
    assert done["instructions"]["matrix_product"] == heads_k * products
    assert done["bank_conflicts"] == 0
    assert done["global_bytes_read"] == heads_k * (query_rows + 2 * tile_keys) * head_dim * 2
    assert done["global_sectors_read"] == done["global_bytes_read"] // 32
    if in_one:
        assert done["global_bytes_written"] == heads_q * tokens * (head_dim * 2 + 4)
    else:  # of a window's splits without keys the LSE only
        assert done["global_bytes_written"] == 4 * heads_k * (query_rows * head_dim + splits * columns)


def test_schedule_visits_every_split_and_tile_once() -> None:
    module = kernels.host_exec_module()
    for packed, seqlen_q, seqlen_k, tiles, splits in (
        (False, 1, 2000, 1, 4),
        (False, 40, 2000, 3, 1),
        (True, 40, 2000, 3, 4),
        (True, 16, 512, 1, 1),
    ):
        params = module.AttentionParams()
        params.batch, params.heads_q, params.heads_k, params.head_dim_v = 3, 8, 2, 64
        params.seqlen_q, params.seqlen_k = seqlen_q, seqlen_k
        offsets = torch.zeros(4, dtype=torch.int32)
        if packed:
            params.cu_seqlens_q = offsets.data_ptr()
        sequences, column_tiles, most_splits, _, works = module.attention_decode_sm80_schedule(params)
        assert (sequences, column_tiles, most_splits) == (3 + packed, tiles, splits)
        units = [(0, split) for split in range(splits)] + [(tile, 0) for tile in range(1, tiles)]
        expected = [(b, h, *unit) for b, h, unit in product(range(sequences), range(2), units)]
        assert sorted(works) == sorted(expected)
