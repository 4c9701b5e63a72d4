"""Ops that write into views, compiled: what is written, and where."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn.compat import vllm
from flagattn.compat.flash_attn import flash_attn_with_kvcache as of_flash_attn
from flagattn.compat.flash_attn_3 import flash_attn_with_kvcache as of_flash_attn_3

pytestmark = pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="Python.h is missing, so torch.compile cannot compile its C++ (apt install python3-dev)",
)
DIM, CAPACITY = 16, 20


def appending(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def append(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Tensor:
        return function(q, kv[0], kv[1], k, v, cache_seqlens=seqlens, causal=True)

    return append


def stacked_by_row(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Any:
    rows = kv.permute(1, 2, 0, 3, 4).contiguous()
    out = flagattn.flash_attn_with_kvcache(q, rows[:, :, 1], rows[:, :, 0], k, v, cache_seqlens=seqlens, causal=True)
    kv.copy_(rows.permute(2, 0, 1, 3, 4))
    return out


def layers(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Any:
    """Two layers of a model, whose caches lie in one tensor."""
    for layer in range(2):
        pair = kv[2 * layer : 2 * layer + 2]
        q = flagattn.flash_attn_with_kvcache(q, pair[0], pair[1], k + layer, v - layer, cache_seqlens=seqlens)
    return q


def in_pages(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Any:
    table = torch.arange(q.shape[0], dtype=torch.int32).flip(0)[:, None]
    return flagattn.flash_attn_with_kvcache(q, kv[2], kv[1], k, v, cache_seqlens=seqlens, block_table=table)


def piecewise(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Any:
    return flagattn.piecewise_attn_with_kvcache(q, -q, kv[0], kv[1], kv[2], 3, k, -k, v, seqlens)


def rotated(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Any:
    turns = torch.outer(torch.arange(CAPACITY), torch.linspace(0.1, 1.0, DIM // 2))
    flagattn.apply_rotary(kv[1], turns.cos(), turns.sin(), inplace=True)
    flagattn.apply_rotary(kv[0], turns.cos(), turns.sin(), inplace=True, interleaved=True)
    return kv[0] + 1


def into_out(kv: Tensor, q: Tensor, k: Tensor, v: Tensor, seqlens: Tensor) -> Any:
    """vLLM's function writes its result into a view."""
    bounds = torch.arange(q.shape[0] + 1, dtype=torch.int32) * k.shape[1]
    rows = kv[1].flatten(0, 1)[: k.shape[0] * k.shape[1]]
    q, k, v = (t.flatten(0, 1) for t in (q[:, :, :2], k, v))
    options = {"max_seqlen_q": CAPACITY, "cu_seqlens_q": bounds, "max_seqlen_k": CAPACITY, "cu_seqlens_k": bounds}
    return vllm.flash_attn_varlen_func(q, k, v, out=rows, **options) * 2


FUNCTIONS = {
    "cache": appending(flagattn.flash_attn_with_kvcache),
    "flash_attn": appending(of_flash_attn),
    "flash_attn_3": appending(of_flash_attn_3),
    "stacked by row": stacked_by_row,
    "layers": layers,
    "pages": in_pages,
    "piecewise": piecewise,
    "rotary": rotated,
    "out": into_out,
}


def check(name: str, **how: Any) -> None:
    function = FUNCTIONS[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, **how)
    for batch, new in ((2, 4), (3, 5)):
        generator = torch.Generator().manual_seed(new)
        q, k, v = (torch.randn(batch, new, heads, DIM, generator=generator) for heads in (4, 2, 2))
        kv = torch.randn(4 if name == "layers" else 3, batch, CAPACITY, 2, DIM, generator=generator)
        if name == "stacked by row":
            kv = kv[:2].clone()
        seqlens = torch.arange(batch, dtype=torch.int32) + 2
        written = kv.clone()
        expected = function(kv, q, k, v, seqlens)
        ours = compiled(written, q, k, v, seqlens)
        torch.testing.assert_close(written, kv)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["cache", "layers", "pages"])
@torch.no_grad()
def test_graphs_of_fixed_sizes(name: str) -> None:
    check(name, dynamic=False)


@pytest.mark.parametrize("name", FUNCTIONS)
@torch.no_grad()
def test_traced_with_symbolic_sizes(name: str) -> None:
    check(name, dynamic=True, backend="aot_eager")


loses_offsets = pytest.mark.xfail(strict=True, reason="Inductor of torch 2.13 loses view offsets: docs/ops/caches.md")


@loses_offsets
@torch.no_grad()
def test_symbolic_sizes() -> None:
    check("cache", dynamic=True)


@loses_offsets
@torch.no_grad()
def test_views_that_come_from_outside() -> None:
    """Arguments that share memory are made from one; their sizes become symbolic where they change."""

    def step(k_cache: Tensor, v_cache: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=3, causal=True)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)
    for batch, new in ((2, 4), (3, 5), (2, 1)):
        q, k, v = (torch.randn(batch, new, heads, DIM) for heads in (4, 2, 2))
        kv = torch.randn(2, batch, CAPACITY, 2, DIM)
        written = kv.clone()
        expected = step(*kv, q, k, v)
        assert torch.equal(compiled(*written, q, k, v), expected) and torch.equal(written, kv)
