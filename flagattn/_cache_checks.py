"""Argument checks of the functions that work on caches of keys and values; the ops look at values inside tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagattn._checks import (
    DTYPES,
    MAX_HEAD_DIM,
    check_floating,
    check_integer,
    check_ranks,
    check_same_as,
    fail_on_types,
    heads_are_wrong,
    rows_contiguous,
)

_DENSE = "(batch, seqlen, heads, head_dim)"
_PACKED = "(total, heads, head_dim)"
_CACHE = "(rows, capacity, heads, head_dim)"
_PAGES = "(pages, page_size, heads, head_dim)"
_DEVICES = ("cpu", "cuda", "meta")


def refuse_gradients(function: str, *operands: Any) -> None:
    """Caches are written in place, so that nothing here has a gradient."""
    if not torch.is_grad_enabled():
        return
    for operand in operands:
        if isinstance(operand, Tensor) and operand.requires_grad:
            raise RuntimeError(
                f"{function} got an operand of shape {tuple(operand.shape)} that requires gradient; it works on caches "
                "in place and is not differentiable, so call it under torch.no_grad()"
            )


def check_cached_operands(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, paged: bool, names: tuple[str, str, str], packed: bool = False
) -> tuple[int, int]:
    """q and the caches fit together; returns head_dim and head_dim_v."""
    if isinstance(q, Tensor) and isinstance(k_cache, Tensor) and isinstance(v_cache, Tensor):
        shape_q, shape_k, shape_v, dtype, device = q.shape, k_cache.shape, v_cache.shape, q.dtype, q.device
        if (
            len(shape_q) == (3 if packed else 4)
            and len(shape_k) == len(shape_v) == 4
            and dtype in DTYPES
            and k_cache.dtype == v_cache.dtype == dtype
            and k_cache.device == v_cache.device == device
            and k_cache.stride(-1) == v_cache.stride(-1) == 1
            and device.type in _DEVICES
            and shape_k[:-1] == shape_v[:-1]
            and shape_k[-1] == shape_q[-1]
            and not heads_are_wrong(shape_q[-2], shape_k[-2])
            and 1 <= shape_q[-1] <= MAX_HEAD_DIM
            and 1 <= shape_v[-1] <= MAX_HEAD_DIM
        ):
            return shape_q[-1], shape_v[-1]
    return _looked_at_one_by_one(q, k_cache, v_cache, paged, names, packed)


def _looked_at_one_by_one(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, paged: bool, names: tuple[str, str, str], packed: bool
) -> tuple[int, int]:
    """The same, with a sentence for what is wrong; a dimension of one element may have any stride."""
    layout = _PAGES if paged else _CACHE
    check_ranks((q,), names[:1], _PACKED if packed else _DENSE)
    check_ranks((k_cache, v_cache), names[1:], layout)
    check_floating(q, names[0])
    for name, cache in zip(names[1:], (k_cache, v_cache)):
        if cache.dtype != q.dtype:
            raise TypeError(f"{name} is {cache.dtype}, but {names[0]} is {q.dtype}; their dtypes must be equal")
        if cache.device != q.device:
            raise ValueError(
                f"{name} is on {cache.device}, but {names[0]} is on {q.device}; their devices must be equal"
            )
        if cache.stride(-1) != 1 and cache.shape[-1] > 1:
            raise ValueError(f"{name} has strides {cache.stride()}; its last dimension must be contiguous")
    if q.device.type not in _DEVICES:
        raise NotImplementedError(f"{names[0]} is on {q.device}; attention over caches runs on CPU and CUDA")
    head_dim, head_dim_v = q.shape[-1], v_cache.shape[-1]
    came = (
        f"{names[0]} has shape {tuple(q.shape)}, {names[1]} {tuple(k_cache.shape)}, {names[2]} {tuple(v_cache.shape)}"
    )
    if k_cache.shape[:-1] != v_cache.shape[:-1]:
        raise ValueError(f"{came}; {names[1]} and {names[2]} may differ in the last dimension only")
    if k_cache.shape[-1] != head_dim:
        raise ValueError(f"{came}; {names[0]} and {names[1]} must have the same head_dim")
    if heads_are_wrong(q.shape[-2], k_cache.shape[-2]):
        raise ValueError(f"{came}; the number of heads of {names[0]} must be a positive multiple of that of {names[1]}")
    for name, dim in ((names[0], head_dim), (names[2], head_dim_v)):
        if not 1 <= dim <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has head_dim {dim}; it must be from 1 to {MAX_HEAD_DIM}")
    return head_dim, head_dim_v


def check_cache_indices(
    q: Tensor,
    batch: int,
    k_cache: Tensor,
    cache_seqlens: int | Tensor | None,
    cache_batch_idx: Tensor | None,
    cache_leftpad: Tensor | None,
    block_table: Tensor | None,
    name: str = "k_cache",
) -> Tensor | None:
    """The index tensors are int32 of the right shapes on q's device; returns cache_seqlens as a tensor."""
    if block_table is not None:
        _check_int32(block_table, "block_table", q)
        if block_table.dim() != 2 or block_table.shape[0] != batch:
            raise ValueError(
                f"block_table has shape {tuple(block_table.shape)}; it must be (batch, pages) of {batch} rows"
            )
        if block_table.stride(-1) != 1 and block_table.shape[-1] > 1:
            raise ValueError(f"block_table has strides {block_table.stride()}; its last dimension must be contiguous")
        if cache_batch_idx is not None:
            raise ValueError("block_table and cache_batch_idx are both given; pages say where a sequence lies already")
        if k_cache.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(k_cache.shape)}; with block_table its pages need at least a row")
    elif cache_batch_idx is None and k_cache.shape[0] < batch:
        raise ValueError(
            f"{name} has {k_cache.shape[0]} rows, but there are {batch} sequences; without cache_batch_idx or "
            "block_table there must be one for each"
        )
    seqlens = None if cache_seqlens is None else _as_vector(cache_seqlens, q, batch)
    vectors = (("cache_seqlens", seqlens), ("cache_batch_idx", cache_batch_idx), ("cache_leftpad", cache_leftpad))
    for of, vector in vectors:
        if vector is None:
            continue
        _check_int32(vector, of, q)
        if vector.shape != (batch,):
            raise ValueError(f"{of} has shape {tuple(vector.shape)}; it must be (batch,) = ({batch},)")
        if vector.stride(0) != 1 and batch > 1:
            raise ValueError(f"{of} has the stride {vector.stride(0)}; it must be contiguous")
    return seqlens


def _as_vector(cache_seqlens: int | Tensor, q: Tensor, batch: int) -> Tensor:
    if isinstance(cache_seqlens, Tensor):
        return cache_seqlens
    check_integer(cache_seqlens, "cache_seqlens")
    if isinstance(cache_seqlens, int) and not 0 <= cache_seqlens <= torch.iinfo(torch.int32).max:
        raise RuntimeError(f"cache_seqlens is {cache_seqlens}; it must lie between 0 and the rows of the cache")
    return torch.full((batch,), cache_seqlens, dtype=torch.int32, device=q.device)


def check_new_rows(q: Tensor, rows: dict[str, tuple[Tensor, Tensor]], cache_seqlens: object) -> None:
    """Every tensor of new rows fits its cache and the others; `rows` maps a name to (new rows, cache)."""
    first = next(iter(rows))
    if cache_seqlens is None:
        raise ValueError(f"{first} is given, but cache_seqlens is not; it says where the new rows go")
    batch = q.shape[0]
    for name, (tensor, cache) in rows.items():
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            check_ranks((tensor,), (name,), _DENSE)
        shape = cache.shape
        wanted = (batch, rows[first][0].shape[1], shape[2], shape[3])
        if tensor.dtype != cache.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, but its cache is {cache.dtype}; their dtypes must be equal")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, but q is on {q.device}; their devices must be equal")
        if tensor.shape != wanted:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be (batch, seqlen_new, heads_k, head_dim) = {wanted}"
            )
    _refuse_rows_of_caches(rows)


def _refuse_rows_of_caches(rows: dict[str, tuple[Tensor, Tensor]]) -> None:
    """New rows that lie in a cache could be overwritten before they are read.

    Where they begin is compared with the caches' storages, which costs two microseconds; only what may lie in one is
    looked at closely. Tensors that torch traces have no addresses.
    """
    if torch.compiler.is_compiling():
        return
    spans = []
    for cache_of, (new, cache) in rows.items():
        if type(new) is not Tensor or type(cache) is not Tensor or not new.is_cpu:
            return
        storage = cache.untyped_storage()
        spans.append((storage.data_ptr(), storage.nbytes(), cache, cache_of))
    for name, (new, _) in rows.items():
        begin, size = new.data_ptr(), new.nbytes
        for storage_begin, storage_size, cache, cache_of in spans:
            if -size < begin - storage_begin < storage_size and _share_memory(new, cache):
                raise ValueError(
                    f"{name} shares memory with the cache that {cache_of} is appended to, so that its rows could be "
                    f"overwritten before they are read; give a copy ({name}.clone())"
                )


def _share_memory(first: Tensor, second: Tensor) -> bool:
    """Whether the stretches of memory from the first to the last element meet."""
    if first.numel() == 0 or second.numel() == 0:
        return False
    return all(
        a.data_ptr() <= b.data_ptr() + sum((n - 1) * s for n, s in zip(b.shape, b.stride())) * b.element_size()
        for a, b in ((first, second), (second, first))
    )


def check_splits(num_splits: Any) -> None:
    check_integer(num_splits, "num_splits")
    if num_splits < 0:
        raise ValueError(f"num_splits is {num_splits}; it must be >= 0")


def check_rotary_tables(q: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """cos and sin are both there and fit q, or neither is; returns them with contiguous last dimensions."""
    if cos is None and sin is None:
        return None, None
    if cos is None or sin is None:
        raise ValueError("rotary_cos and rotary_sin must be given together")
    check_ranks((cos, sin), ("rotary_cos", "rotary_sin"), "(positions, rotary_dim / 2)")
    check_floating(cos, "rotary_cos")
    check_same_as(sin, "rotary_sin", cos, "rotary_cos")
    if cos.device != q.device:
        raise ValueError(f"rotary_cos is on {cos.device}, but q is on {q.device}; their devices must be equal")
    if 2 * cos.shape[-1] > q.shape[-1]:
        raise ValueError(
            f"rotary_cos has shape {tuple(cos.shape)}, but q has head_dim {q.shape[-1]}; it has at most half of it"
        )
    return rows_contiguous(cos), rows_contiguous(sin)


def _check_int32(tensor: Any, name: str, q: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        fail_on_types((tensor,), (name,))
    if tensor.dtype is not torch.int32:
        raise TypeError(f"{name} is {tensor.dtype}; it must be int32")
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}, but q is on {q.device}; their devices must be equal")
