"""Attention over caches by the sm_80 kernels, on CPU tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flagattn.testing import Cache
from tests.host_exec.builds import host_exec_module
from tests.host_exec.kernels import heads_view, rows_view


def dtype_of(tensor: Tensor) -> Any:
    return getattr(host_exec_module().DType, str(tensor.dtype).removeprefix("torch."))


def cache_params(cache: Cache, appended: int = 0) -> Any:
    params, keys = host_exec_module().CacheParams(), cache.tensors[0]
    params.present, params.rows, params.capacity, params.appended = True, keys.shape[0], keys.shape[1], appended
    for name in ("seqlens", "batch_idx", "leftpad", "block_table"):
        tensor = getattr(cache, name)
        if tensor is not None:
            setattr(params, name, tensor.data_ptr())
    if cache.block_table is not None:
        params.page_size, params.block_table_stride = keys.shape[1], cache.block_table.stride(0)
        params.capacity = keys.shape[1] * cache.block_table.shape[1]
    return params


@dataclass
class Call:
    """AttentionParams as csrc/torch fills them, and the tensors they point to."""

    params: Any
    out: Tensor
    lse: Tensor
    kept: tuple[Any, ...]

    def run(self) -> tuple[Tensor, Tensor]:
        """out and lse, from outputs and a workspace that start as NaN."""
        module = host_exec_module()
        workspace = torch.full((module.attention_decode_sm80_workspace(self.params),), torch.nan)
        module.attention_decode_sm80(self.params, workspace.data_ptr())
        return self.out, self.lse


def call_on_cache(
    queries: tuple[Tensor, ...],
    cache: Cache,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    dist_threshold: int | None = None,
    cu_seqlens: tuple[Tensor, Tensor | None, int, int] | None = None,
    appended: int = 0,
) -> Call:
    """`cu_seqlens`: those of the queries and of the cache, and the longest of each."""
    module, q = host_exec_module(), queries[0]
    params = module.AttentionParams()
    *keys, values = cache.tensors
    out = q.new_full((*q.shape[:-1], values.shape[-1]), torch.nan)
    lse = torch.full((*q.shape[:-3], q.shape[-2], q.shape[-3]), torch.nan)
    given = cache_params(cache, appended)
    if cu_seqlens is not None and cu_seqlens[1] is not None:
        given.seqlens = 0  # cu_seqlens say it
    params.dtype, params.cache = dtype_of(q), given
    params.seqlen_k = params.cache.capacity
    if cu_seqlens is None:
        params.batch, params.seqlen_q = q.shape[:2]
    else:
        cu_q, cu_k, longest_q, longest_k = cu_seqlens
        params.batch, params.total_q, params.seqlen_q = len(cu_q) - 1, q.shape[0], min(longest_q, q.shape[0])
        params.cu_seqlens_q = cu_q.data_ptr()
        if cu_k is not None:
            params.cu_seqlens_k, params.seqlen_k = cu_k.data_ptr(), min(params.seqlen_k, longest_k)
    (params.heads_q, params.head_dim), (params.heads_k, params.head_dim_v) = q.shape[-2:], values.shape[-2:]
    params.q, params.k = heads_view(q), heads_view(keys[0])
    if dist_threshold is not None:
        params.q2, params.k2, params.dist_threshold = heads_view(queries[1]), heads_view(keys[1]), dist_threshold
    params.v, params.out, params.lse = heads_view(values), heads_view(out), rows_view(lse)
    params.softmax_scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    params.softcap = softcap
    params.mask = module.MaskParams(window_size[0], 0 if causal else window_size[1])
    if alibi_slopes is not None:
        params.alibi = module.AlibiParams(
            alibi_slopes.data_ptr(), alibi_slopes.stride(0) if alibi_slopes.dim() == 2 else 0
        )
    if sinks is not None:
        params.sinks = sinks.data_ptr()
    return Call(params, out, lse, (queries, cache, alibi_slopes, sinks, cu_seqlens))


def append_rows(
    params: Any,
    rows: Tensor,
    to: Tensor,
    *,
    to_cache: bool = True,
    tables: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = False,
    own_positions: bool = True,
) -> None:
    """Rows (batch, new, heads, head_dim) into the caches that `params` of a call tells of, or into `to` as it is."""
    append = host_exec_module().AppendParams()
    append.from_rows, append.to = heads_view(rows), heads_view(to)
    _, append.rows, append.heads, append.head_dim = rows.shape
    append.to_cache, append.interleaved, append.own_positions = to_cache, interleaved, own_positions
    if tables is not None:
        cos, sin = tables
        append.num_positions, append.half_dim = cos.shape
        append.table_dtype = dtype_of(cos)
        append.set_tables(cos.data_ptr(), sin.data_ptr(), cos.stride(0), sin.stride(0))
    host_exec_module().append_rows_sm80(params, append)


def decoded_by_sm80(*head_dims: int) -> bool:
    """Head dims in multiples of 8 up to 256; the op pads others."""
    return all(dim % 8 == 0 and dim <= 256 for dim in head_dims)
