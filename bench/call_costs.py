"""What a call of each public op costs on a few elements: Python, the checks and the dispatcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

CALLS, RUNS = 500, 9
Calls = dict[str, Callable[[], Any]]


def call_costs() -> dict[str, dict[str, float]]:
    """Microseconds of processor time of a call, the best of several runs; torch's attention beside ours.

    Attention over caches and column sums have no gradient.
    """
    return {
        "without gradient": _costs({**_calls(gradient=False), **_calls_without_gradient()}),
        "with gradient": _costs(_calls(gradient=True)),
    }


def _costs(calls: Calls) -> dict[str, float]:
    return {name: round(min(_once(call) for _ in range(RUNS)), 1) for name, call in calls.items()}


def _once(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS * 1e6


def _calls(*, gradient: bool) -> Calls:
    import torch
    import torch.nn.functional as F

    import flagattn

    ops: Any = flagattn  # its results depend on flags

    x, residual = (torch.randn(2, 16).requires_grad_(gradient) for _ in range(2))
    heads = torch.randn(1, 4, 2, 8).requires_grad_(gradient)
    stacked = torch.randn(1, 4, 3, 2, 8).requires_grad_(gradient)
    weight, table = torch.ones(16).requires_grad_(gradient), torch.ones(4, 4)
    matrix, targets = torch.randn(32, 16).requires_grad_(gradient), torch.tensor([1, 2])
    logits = torch.randn(2, 32).requires_grad_(gradient)
    packed, packing = heads[0], (torch.tensor([0, 4], dtype=torch.int32),) * 2 + (4, 4)
    seen = torch.ones(4, 4, dtype=torch.bool)
    part = ops.flash_attn_func(heads, heads, heads, return_lse=True)
    return {
        "rms_norm": lambda: ops.rms_norm(x, weight),
        "rms_norm with residual": lambda: ops.rms_norm(x, weight, residual=residual),
        "swiglu": lambda: ops.swiglu(x, residual),
        "apply_rotary": lambda: ops.apply_rotary(heads, table, table),
        "flash_attn_func": lambda: ops.flash_attn_func(heads, heads, heads, causal=True),
        "flash_attn_func with dropout": lambda: ops.flash_attn_func(heads, heads, heads, 0.1),
        "flash_attn_qkvpacked_func": lambda: ops.flash_attn_qkvpacked_func(stacked),
        "flash_attn_varlen_func": lambda: ops.flash_attn_varlen_func(packed, packed, packed, *packing),
        "piecewise_attn_func": lambda: ops.piecewise_attn_func(heads, heads, heads, heads, heads, 2),
        "piecewise_attn_varlen_func": lambda: ops.piecewise_attn_varlen_func(*(packed,) * 5, *packing, 2),
        "scaled_dot_product_attention": lambda: ops.scaled_dot_product_attention(heads, heads, heads),
        "scaled_dot_product_attention with a mask": lambda: ops.scaled_dot_product_attention(
            heads.transpose(1, 2), heads.transpose(1, 2), heads.transpose(1, 2), attn_mask=seen
        ),
        "torch's scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
        "merge_attention_states": lambda: ops.merge_attention_states([part[0]] * 2, [part[1]] * 2),
        "cross_entropy": lambda: ops.cross_entropy(logits, targets),
        "linear_cross_entropy": lambda: ops.linear_cross_entropy(x, matrix, targets),
        "batch_invariant_linear": lambda: ops.batch_invariant_linear(x, matrix),
    }


def _calls_without_gradient() -> Calls:
    import torch

    import flagattn

    ops: Any = flagattn  # its results depend on flags

    caches = [torch.randn(1, 16, 2, 8) for _ in range(3)]
    row, heads, used = torch.randn(1, 1, 2, 8), torch.randn(1, 4, 2, 8), torch.tensor([4], dtype=torch.int32)
    lse = torch.zeros(1, 2, 4)
    told: dict[str, Any] = {"cache_seqlens": used, "causal": True}
    return {
        "attention_column_sums": lambda: ops.attention_column_sums(heads, heads, lse),
        "flash_attn_with_kvcache": lambda: ops.flash_attn_with_kvcache(row, *caches[:2], **told),
        "flash_attn_with_kvcache, appending": lambda: ops.flash_attn_with_kvcache(row, *caches[:2], row, row, **told),
        "piecewise_attn_with_kvcache, appending": lambda: ops.piecewise_attn_with_kvcache(
            row, row, *caches, 2, row, row, row, **told
        ),
    }
