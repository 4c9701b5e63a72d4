"""Decoding: one query row per sequence against its cache, contiguous and paged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from bench import onnx_decode
from bench.cases import DECODE, DECODE_PAGED, DTYPES, TOLERANCE, DecodeShape
from bench.roofline import read_probe
from bench.timing import Case, Peer, agree, race, sets_for

Operands = tuple[Tensor, Tensor, Tensor]

SECONDS = 6.0  # of rounds per case: torch's own grouped attention takes 20 times ours


def operands(shape: DecodeShape) -> Operands:
    """q (batch, 1, heads_q, head_dim) and contiguous caches."""
    dtype = DTYPES[shape.dtype]
    q = torch.randn(shape.batch, 1, shape.heads_q, shape.head_dim).to(dtype)
    k, v = (torch.randn(shape.batch, shape.context, shape.heads_k, shape.head_dim).to(dtype) for _ in range(2))
    return q, k, v


def paged(shape: DecodeShape, cache: Tensor, block_table: Tensor) -> Tensor:
    """The cache's rows in pages: (pages, page_size, heads_k, head_dim)."""
    pages = cache.unflatten(1, (-1, shape.page_size)).flatten(0, 1)
    target = torch.empty_like(pages)
    target[block_table.flatten().long()] = pages
    return target


def in_torch_layout(q: Tensor, k: Tensor, v: Tensor) -> Operands:
    """Copies of the caches as (batch, heads_k, context, head_dim)."""
    return q, k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()


def torch_sdpa(shape: DecodeShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own grouped attention; k and v in its layout."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, enable_gqa=True).transpose(1, 2)


def rows_as_queries(shape: DecodeShape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention with a group's heads passed as query rows, which saves it from reading keys per head."""
    rows = q.view(shape.batch, shape.heads_k, shape.group, shape.head_dim)
    return F.scaled_dot_product_attention(rows, k, v).view_as(q)


def thunks(attend: Callable[..., Any], shape: DecodeShape, sets: Sequence[Sequence[Tensor]]) -> list[Callable[[], Any]]:
    return [partial(attend, shape, *qkv) for qkv in sets]


def onnxruntimes(shape: DecodeShape, sets: Sequence[Operands]) -> dict[str, Peer]:
    """onnxruntime's own op, in fp16 where ours has bf16; nothing, with a warning, where it is not installed."""
    reason = onnx_decode.missing()
    if reason is not None:
        warnings.warn(reason, stacklevel=2)
        return {}
    dtype = onnx_decode.CACHE_DTYPES[DTYPES[shape.dtype]]
    session = onnx_decode.session(dtype, shape.heads_q, shape.heads_k, shape.head_dim)
    buffers = [onnx_decode.thunk(session, *operands) for operands in sets]
    return {"onnxruntime": Peer(buffers, agrees=agree(TOLERANCE[shape.dtype]))}


@pytest.mark.parametrize("shape", DECODE, ids=lambda shape: shape.name)
def bench_decode(benchmark: Any, sized: Any, shape: DecodeShape) -> None:
    shape = sized(shape)
    sets = [operands(shape) for _ in range(sets_for(benchmark, shape.bytes()))]
    # Two copies: what one peer has just read would be in the caches for the other.
    theirs, others = ([in_torch_layout(*operands) for operands in sets] for _ in range(2))
    near = agree(TOLERANCE[shape.dtype])
    peers = {
        "torch SDPA": Peer(thunks(torch_sdpa, shape, theirs), agrees=near),
        "rows as queries": Peer(thunks(rows_as_queries, shape, others), agrees=near),
        **onnxruntimes(shape, sets),
        "read": read_probe(shape.bytes()),
    }
    ours = [partial(flagattn.flash_attn_with_kvcache, *qkv) for qkv in sets]
    case = Case("decode", shape.dtype, shape.label, shape.flops(), shape.bytes())
    with torch.no_grad():
        race(benchmark, case, ours, peers, budget=SECONDS)


@pytest.mark.parametrize("shape", DECODE_PAGED, ids=lambda shape: shape.name)
def bench_decode_paged(benchmark: Any, sized: Any, shape: DecodeShape) -> None:
    shape = sized(shape)
    if shape.context % shape.page_size:
        shape = type(shape)(shape.page_size * 3, shape.dtype, shape.group, shape.batch, shape.page_size)
    sets = [operands(shape) for _ in range(sets_for(benchmark, shape.bytes()))]
    pages = shape.batch * shape.context // shape.page_size
    table = torch.randperm(pages).to(torch.int32).view(shape.batch, -1)
    with_pages = [(q, paged(shape, k, table), paged(shape, v, table)) for q, k, v in sets]
    ours = [partial(flagattn.flash_attn_with_kvcache, *qkv, block_table=table) for qkv in with_pages]
    contiguous = [partial(flagattn.flash_attn_with_kvcache, *qkv) for qkv in sets]
    case = Case("decode, paged", shape.dtype, shape.label, shape.flops(), shape.bytes())
    with torch.no_grad():
        race(benchmark, case, ours, {"contiguous": Peer(contiguous, agrees=agree(0.0))}, budget=SECONDS)
