"""Attention forward on a GPU against torch's flash backend, beside the same run's copy bandwidth and matmul rate.

gpu_attention.py OUT.json: 16k tokens in all, 2048 / D heads, bf16; medians over events; rewritten after every row.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import flagattn

TOKENS, WIDTH = 16_384, 2048


def median_ms(call: Callable[[int], object], repeats: int = 20) -> float:
    """Median of `repeats` timed calls after a warm-up; call(i) takes buffer i % 3, so that inputs are not in L2."""
    for i in range(3):
        call(i)
    times = []
    for i in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call(i)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def attention_row(head_dim: int, seqlen: int, causal: bool) -> dict[str, object]:
    batch, heads = TOKENS // seqlen, WIDTH // head_dim
    shape = (batch, seqlen, heads, head_dim)
    buffers = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)] for _ in range(3)]
    transposed = [[t.transpose(1, 2) for t in operands] for operands in buffers]

    def ours(i: int) -> object:
        q, k, v = buffers[i % 3]
        return flagattn.flash_attn_func(q, k, v, causal=causal)

    def torch_flash(i: int) -> object:
        q, k, v = transposed[i % 3]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    # Alternating, so that a clock that drifts meets both.
    times: dict[str, list[float]] = {"ours_ms": [], "torch_flash_ms": []}
    for _ in range(3):
        times["ours_ms"].append(median_ms(ours))
        times["torch_flash_ms"].append(median_ms(torch_flash))
    medians = {name: statistics.median(values) for name, values in times.items()}
    flops = 4 * batch * heads * seqlen * seqlen * head_dim * (0.5 if causal else 1.0)
    return {
        "head_dim": head_dim,
        "seqlen": seqlen,
        "batch": batch,
        "heads": heads,
        "causal": causal,
        **medians,
        "ours_tflops": flops / medians["ours_ms"] / 1e9,
        "ratio": medians["torch_flash_ms"] / medians["ours_ms"],
    }


def machine_rates() -> dict[str, object]:
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return {
        "copy_GBps": 2 * source.numel() / median_ms(lambda _: target.copy_(source)) / 1e6,
        "matmul_tflops": 2 * 8192**3 / median_ms(lambda _: a @ a) / 1e9,
    }


def main(out: Path) -> None:
    result: dict[str, object] = {
        "command": " ".join(sys.argv),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "flagattn": str(flagattn.build_info()),
    }
    result |= machine_rates()
    rows: list[dict[str, object]] = []
    result["rows"] = rows
    for seqlen in (2048, 16_384, 8192, 4096, 1024, 512):
        for head_dim in (128, 64):
            for causal in (False, True):
                rows.append(attention_row(head_dim, seqlen, causal))
                out.write_text(json.dumps(result, indent=1))
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
