"""Attention on a GPU, forward and backward, against torch's backends; piecewise against our plain attention.

gpu_attention.py OUT.json: 16k tokens in all, 2048 / D heads, bf16, deterministic; medians over events, beside the same
run's copy bandwidth and matmul rate; rewritten after every row.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import flagattn
from bench.gpu_timing import BUFFERS, Call, compared_ms, machine_rates

TOKENS, WIDTH = 16_384, 2048
BACKENDS = {
    "torch_flash": SDPBackend.FLASH_ATTENTION,
    "torch_cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch_efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# The bars' shapes come first: a run that is cut off has those.
SEQLENS = (2048, 16_384, 8192, 4096, 1024, 512)


def forward_calls(function: Callable[..., Tensor], buffers: list[list[Tensor]]) -> Call:
    def call(i: int) -> Tensor:
        with torch.no_grad():
            return function(*buffers[i % BUFFERS])

    return call


def backward_calls(function: Callable[..., Tensor], buffers: list[list[Tensor]]) -> Call:
    """The gradients of every operand alone: the forward runs once, at the first call."""
    graphs: dict[int, tuple[Tensor, list[Tensor], Tensor]] = {}

    def call(i: int) -> object:
        if i % BUFFERS not in graphs:
            leaves = [operand.detach().requires_grad_() for operand in buffers[i % BUFFERS]]
            out = function(*leaves)
            graphs[i % BUFFERS] = out, leaves, torch.randn_like(out)
        out, leaves, dout = graphs[i % BUFFERS]
        return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return call


def torch_backend(backend: SDPBackend, causal: bool) -> Callable[..., Tensor]:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return function


def rated(times: dict[str, float | str], flops: float, ours: str, peer: str) -> dict[str, Any]:
    row: dict[str, Any] = {"ms": times}
    row["tflops"] = {name: flops / ms / 1e9 for name, ms in times.items() if isinstance(ms, float)}
    mine, theirs = times[ours], times[peer]
    row["ratio"] = theirs / mine if isinstance(mine, float) and isinstance(theirs, float) else None
    return row


def attention_rows(head_dim: int, seqlen: int, causal: bool, backward: bool) -> dict[str, Any]:
    """Ours and each of torch's backends; "ratio" is torch's flash backend's time to ours."""
    batch, heads = TOKENS // seqlen, WIDTH // head_dim
    shape = (batch, seqlen, heads, head_dim)
    buffers = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)] for _ in range(BUFFERS)]
    transposed = [[t.transpose(1, 2) for t in operands] for operands in buffers]
    made = backward_calls if backward else forward_calls
    calls = {"ours": made(lambda q, k, v: cast(Tensor, flagattn.flash_attn_func(q, k, v, causal=causal)), buffers)}
    calls |= {name: made(torch_backend(backend, causal), transposed) for name, backend in BACKENDS.items()}
    # Five products backward, two forward; a causal mask hides half.
    flops = (10 if backward else 4) * batch * heads * seqlen * seqlen * head_dim * (0.5 if causal else 1.0)
    row = {"op": "backward" if backward else "forward", "head_dim": head_dim, "seqlen": seqlen, "causal": causal}
    return row | {"batch": batch, "heads": heads} | rated(compared_ms(calls), flops, "ours", "torch_flash")


def piecewise_row(head_dim: int, seqlen: int, backward: bool) -> dict[str, Any]:
    """Piecewise beside our plain attention of the same shape; "ratio" is plain's time to piecewise's."""
    batch, heads = TOKENS // seqlen, WIDTH // head_dim
    shape = (batch, seqlen, heads, head_dim)
    buffers = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(5)] for _ in range(BUFFERS)]
    made = backward_calls if backward else forward_calls

    def piecewise(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, flagattn.piecewise_attn_func(q1, k1, q2, k2, v, seqlen // 2, causal=True))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, flagattn.flash_attn_func(q, k, v, causal=True))

    calls = {"piecewise": made(piecewise, buffers), "plain": made(plain, [five[:3] for five in buffers])}
    flops = (10 if backward else 4) * batch * heads * seqlen * seqlen * head_dim * 0.5
    row = {"op": "piecewise " + ("backward" if backward else "forward"), "head_dim": head_dim, "seqlen": seqlen}
    return row | {"causal": True} | rated(compared_ms(calls), flops, "piecewise", "plain")


def main(out: Path) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "flagattn": str(flagattn.build_info()),
    }
    result |= machine_rates()
    rows: list[dict[str, Any]] = []
    result["rows"] = rows

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        out.write_text(json.dumps(result, indent=1))
        print(json.dumps(row), flush=True)
        torch.cuda.empty_cache()

    for seqlen in SEQLENS:
        for head_dim in (128, 64):
            for backward in (False, True):
                for causal in (True, False):
                    add(attention_rows(head_dim, seqlen, causal, backward))
                if seqlen in (2048, 8192):
                    add(piecewise_row(head_dim, seqlen, backward))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
