"""A short comparison of flagattn's ops with torch's, for the demonstration; `make bench` is the thorough one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from aquila2.config import Aquila2Config
from aquila2.rope import rope_tables

ROUNDS = 7
WARM_UP = 2

Case = tuple[str, Callable[[], object], Callable[[], object]]


def kernel_report() -> Iterator[str]:
    """Lines with the median time of our op and of torch's, forward and backward together, run alternately."""
    yield f"{'op, forward + backward, fp32':<46}{'ours':>10}{'torch':>10}   ratio"
    torch.manual_seed(0)
    for name, ours, theirs in _cases():
        times: tuple[list[float], list[float]] = ([], [])
        for round_number in range(WARM_UP + ROUNDS):
            for call, kept in zip((ours, theirs), times, strict=True):
                started = time.perf_counter()
                call()
                if round_number >= WARM_UP:
                    kept.append(time.perf_counter() - started)
        mine, other = (statistics.median(kept) * 1e3 for kept in times)
        yield f"{name:<46}{mine:8.1f}ms{other:8.1f}ms{other / mine:7.2f}x"


def _cases() -> Iterator[Case]:
    for seqlen, head_dim in ((512, 64), (2048, 128)):
        q = torch.randn(1, seqlen, 12, head_dim, requires_grad=True)
        k = torch.randn(1, seqlen, 2, head_dim, requires_grad=True)
        v = torch.randn(1, seqlen, 2, head_dim, requires_grad=True)
        yield (
            f"causal attention, S {seqlen}, 12:2 heads, D {head_dim}",
            _both_ways(partial(_our_attention, q, k, v), q, k, v),
            _both_ways(partial(_torch_attention, q, k, v), q, k, v),
        )
    x, y = (torch.randn(2048, 1024, requires_grad=True) for _ in range(2))
    weight = torch.ones(1024, requires_grad=True)
    yield (
        "rms_norm with residual, 2048 x 1024",
        _both_ways(lambda: flagattn.rms_norm(x, weight, 1e-5, residual=y)[0], x, y, weight),
        _both_ways(lambda: F.rms_norm(x + y, (1024,), weight, 1e-5), x, y, weight),
    )
    gate, up = (torch.randn(2048, 2816, requires_grad=True) for _ in range(2))
    yield (
        "swiglu, 2048 x 2816",
        _both_ways(lambda: flagattn.swiglu(gate, up), gate, up),
        _both_ways(lambda: F.silu(gate) * up, gate, up),
    )
    heads = torch.randn(1, 2048, 12, 128, requires_grad=True)
    cos, sin = rope_tables(Aquila2Config(), 2048, "cpu")
    yield (
        "apply_rotary, S 2048, 12 heads, D 128",
        _both_ways(lambda: flagattn.apply_rotary(heads, cos, sin), heads),
        _both_ways(lambda: _torch_rotary(heads, cos, sin), heads),
    )


def _both_ways(forward: Callable[[], Tensor], *inputs: Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(forward().detach())
    return lambda: torch.autograd.grad(forward(), inputs, gradient)


def _our_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return cast(Tensor, flagattn.flash_attn_func(q, k, v, causal=True))


def _torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _torch_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1)
