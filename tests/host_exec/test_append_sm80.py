"""New rows of caches by the sm_80 kernel, executed on the CPU: where they go, and their rotation against the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flagattn import reference
from flagattn.testing import Cache
from flagattn.testing.tolerance import assert_close_to_oracle
from tests.attention.test_kvcache_append import HEADS_Q, KINDS, LENGTHS, NEW, caches, check_stretches, new_operands
from tests.host_exec import kernels
from tests.host_exec.kernels_decode import append_rows, call_on_cache

DTYPES = [torch.bfloat16, torch.float16]


def tables(half_dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    angles = torch.randn(max(LENGTHS) + 20, half_dim)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_appended_and_seen(kind: str, dtype: torch.dtype) -> None:
    kernels.set_schedule(seed=1)
    cache = caches(2, dtype, **KINDS[kind])
    q, k, v = new_operands(dtype)
    before = [tensor.clone() for tensor in cache.tensors]
    call = call_on_cache((q,), cache, causal=True, appended=NEW)
    for operand, new in enumerate((k, v)):
        append_rows(call.params, new, cache.tensors[operand])
        check_stretches(cache, before, operand, new)
    out, lse = call.run()
    cache.seqlens += NEW
    for ours, again in zip((out, lse), call_on_cache((q,), cache, causal=True).run(), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half_dim", [20, 12, 16, 5])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation(interleaved: bool, half_dim: int, table_dtype: torch.dtype) -> None:
    """Into the cache, and of queries, whose rows take positions of their own or all the first one's."""
    cache = caches(2, torch.bfloat16, page_size=8)
    q, k, _ = new_operands(torch.bfloat16)
    cos, sin = tables(half_dim, table_dtype)
    params = call_on_cache((q,), cache, appended=NEW).params
    places = cache.seqlens[:, None] + torch.arange(NEW, dtype=torch.int32)
    into = k.new_full((len(LENGTHS), NEW, *k.shape[2:]), torch.nan)
    rotations = (
        (k, into, places, {}),
        (q, torch.full_like(q, torch.nan), places, {}),
        (q, torch.full_like(q, torch.nan), places[:, :1].expand(-1, NEW), {"own_positions": False}),
    )
    for x, y, positions, options in rotations:
        append_rows(params, x, y, to_cache=False, tables=(cos, sin), interleaved=interleaved, **options)

        def rotated(dtype: torch.dtype, x: Tensor = x, positions: Tensor = positions) -> Tensor:
            wide = (cos.to(dtype), sin.to(dtype)) if dtype == torch.float64 else (cos, sin)
            return reference.apply_rotary(x.to(dtype), *wide, positions=positions, interleaved=interleaved)

        assert_close_to_oracle(y, rotated(x.dtype), rotated(torch.float64), "rotated")
    before = [tensor.clone() for tensor in cache.tensors]
    append_rows(params, k, cache.tensors[0], tables=(cos, sin), interleaved=interleaved)
    check_stretches(cache, before, 0, into)


def test_wrong_places_write_nothing_outside() -> None:
    """Rows that would lie outside the cache are not written; positions outside the tables count as the nearest."""
    for kind in ({}, {"page_size": 8}):
        cache = caches(2, torch.bfloat16, **kind)
        q, k, _ = new_operands(torch.bfloat16)
        before = cache.tensors[0].clone()
        for wrong in (-1000, 10_000, 2**31 - 1, -(2**31)):
            seqlens = torch.full_like(cache.seqlens, wrong)
            changed = [Cache(cache.tensors, seqlens, cache.leftpad, cache.batch_idx, cache.block_table)]
            if cache.block_table is None:
                changed.append(Cache(cache.tensors, cache.seqlens, None, seqlens))
            else:
                changed.append(
                    Cache(cache.tensors, cache.seqlens, None, None, torch.full_like(cache.block_table, wrong))
                )
            for other in changed:
                params = call_on_cache((q,), other, appended=NEW).params
                append_rows(params, k, cache.tensors[0], tables=tables(8))
                assert torch.equal(cache.tensors[0].nan_to_num(7), before.nan_to_num(7))


def test_refusals() -> None:
    cache = caches(2, torch.bfloat16)
    q, k, _ = new_operands(torch.bfloat16)
    params = call_on_cache((q,), cache, appended=NEW).params
    shifted = torch.zeros(k.numel() + 1, dtype=k.dtype)[1:].view(k.shape)
    with pytest.raises(RuntimeError, match="k or its cache does not start at, or step in, multiples of 16 bytes"):
        append_rows(params, shifted, cache.tensors[0])
    with pytest.raises(RuntimeError, match="rotary_cos has no positions"):
        append_rows(params, k, cache.tensors[0], tables=(torch.zeros(0, 4), torch.zeros(0, 4)))


def test_bytes() -> None:
    """Each row is read and written once, 16 bytes at a time; angles are read by every head that they turn."""
    cache = caches(2, torch.bfloat16)
    q, k, _ = new_operands(torch.bfloat16)
    params = call_on_cache((q,), cache, appended=NEW).params
    kernels.set_schedule()
    append_rows(params, k, cache.tensors[0])
    done, size = kernels.counters(), k.numel() * 2
    assert (done["global_bytes_read"], done["global_bytes_written"]) == (size, size)
    append_rows(params, q, torch.empty_like(q), to_cache=False, tables=tables(16), interleaved=True)
    done, size = kernels.counters(), q.numel() * 2
    angles = len(LENGTHS) * NEW * HEADS_Q * 16 * 2 * 4
    assert (done["global_bytes_read"], done["global_bytes_written"]) == (size + angles, size)
