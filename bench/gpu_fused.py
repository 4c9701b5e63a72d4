"""The fused ops on a GPU, both ways, against eager and compiled PyTorch and the copy bandwidth of the same run.

gpu_fused.py OUT.json: 16k rows of 4096, bf16; medians over events; rewritten after every row. A share is the bytes that
the op must read and write, by its time, of what a copy moves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flagattn
from bench.gpu_attention import backward_calls, forward_calls
from bench.gpu_timing import BUFFERS, compared_ms, machine_rates
from flagattn import reference

ROWS, COLS, HEAD_DIM = 16_384, 4096, 128
Function = Callable[..., Tensor]


def ops(cos: Tensor, sin: Tensor) -> dict[str, tuple[Function, Function, int, int, int]]:
    """Name -> ours, eager, operands of (ROWS, COLS), and how many of those move forward and backward."""

    def heads(x: Tensor) -> Tensor:
        return x.view(1, ROWS, COLS // HEAD_DIM, HEAD_DIM)

    weight = torch.randn(COLS, device="cuda", dtype=torch.bfloat16)
    return {
        "rms_norm": (
            lambda x: flagattn.rms_norm(x, weight),
            lambda x: torch.nn.functional.rms_norm(x, (COLS,), weight, 1e-5),
            1,
            2,
            3,
        ),
        "swiglu": (flagattn.swiglu, lambda gate, up: torch.nn.functional.silu(gate) * up, 2, 3, 5),
        "apply_rotary": (
            lambda x: flagattn.apply_rotary(heads(x), cos, sin),
            lambda x: reference.apply_rotary(heads(x), cos, sin),
            1,
            2,
            2,
        ),
    }


def main(out: Path) -> None:
    rates = machine_rates()
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "flagattn": str(flagattn.build_info()),
    }
    rows: list[dict[str, Any]] = []
    result |= rates
    result["rows"] = rows
    cos, sin = (torch.randn(ROWS, HEAD_DIM // 2, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for name, (ours, eager, count, moved_forward, moved_backward) in ops(cos, sin).items():
        buffers = [
            [torch.randn(ROWS, COLS, device="cuda", dtype=torch.bfloat16) for _ in range(count)] for _ in range(BUFFERS)
        ]
        functions = {"ours": ours, "eager": eager, "compiled": torch.compile(eager)}
        for backward, moved in ((False, moved_forward), (True, moved_backward)):
            made = backward_calls if backward else forward_calls
            times = compared_ms({peer: made(function, buffers) for peer, function in functions.items()})
            gigabytes = moved * ROWS * COLS * 2 / 1e9
            share = {
                peer: gigabytes / (ms / 1e3) / rates["copy_GBps"] for peer, ms in times.items() if isinstance(ms, float)
            }
            row = {"op": name, "backward": backward, "ms": times, "share_of_copy": share}
            rows.append(row)
            out.write_text(json.dumps(result, indent=1))
            print(json.dumps(row), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
