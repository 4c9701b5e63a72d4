"""`python -m bench.study_numerics [file]`: how far every op's results lie from float64, beside plain PyTorch's.

One problem of ordinary size per op, random normal operands. Errors are |ours - ref64| over max|ref64|, the largest and
the mean; `plain` is flagattn.reference in the dtype of the operands. The table in docs/numerics.md is made from the
JSON this writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flagattn
from bench import machine
from flagattn import reference
from flagattn.testing.op_runs import run_with_gradients

COMMAND = "python -m bench.study_numerics"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEQLEN, HEADS, HEADS_K, HEAD_DIM, SIZE = 1024, 6, 2, 128, 4096

Problem = tuple[Callable[..., Any], Callable[..., Any], Callable[[], Mapping[str, Tensor]]]


def _operands(**shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    def draw() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return draw


def problems() -> dict[str, Problem]:
    """By op: ours, the reference, and what draws the operands in fp32."""
    q, k = (1, SEQLEN, HEADS, HEAD_DIM), (1, SEQLEN, HEADS_K, HEAD_DIM)
    angles = torch.outer(torch.arange(SEQLEN), 1e4 ** -torch.linspace(0, 1, HEAD_DIM // 2))
    cos, sin = angles.cos(), angles.sin()
    rows = (64, SIZE)
    return {
        "attention, full": (
            lambda q, k, v: flagattn.flash_attn_func(q, k, v, return_lse=True),
            lambda q, k, v: reference.attention(q, k, v),
            _operands(q=q, k=k, v=k),
        ),
        "attention, causal": (
            lambda q, k, v: flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True),
            lambda q, k, v: reference.attention(q, k, v, causal=True),
            _operands(q=q, k=k, v=k),
        ),
        "piecewise attention, causal": (
            lambda q1, k1, q2, k2, v: flagattn.piecewise_attn_func(
                q1, k1, q2, k2, v, SEQLEN // 2, causal=True, return_lse=True
            ),
            lambda q1, k1, q2, k2, v: reference.piecewise_attention(q1, k1, q2, k2, v, SEQLEN // 2, causal=True),
            _operands(q1=q, k1=k, q2=q, k2=k, v=k),
        ),
        "rms_norm": (flagattn.rms_norm, reference.rms_norm, _operands(x=rows, weight=(SIZE,))),
        "swiglu": (flagattn.swiglu, reference.swiglu, _operands(gate=rows, up=rows)),
        "batch_invariant_linear": (
            flagattn.batch_invariant_linear,
            reference.batch_invariant_linear,
            _operands(x=rows, weight=(256, SIZE), bias=(256,)),
        ),
        "apply_rotary": (
            lambda x: flagattn.apply_rotary(x, cos, sin),
            lambda x: reference.apply_rotary(x, *(t.to(torch.promote_types(x.dtype, cos.dtype)) for t in (cos, sin))),
            _operands(x=q),
        ),
    }


def errors(result: Tensor, ref64: Tensor) -> tuple[float, float]:
    """Largest and mean absolute error over the largest absolute value."""
    error = (result.double() - ref64).abs() / ref64.abs().max()
    return float(error.max()), float(error.mean())


def measure(problem: Problem, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    ours, plain, draw = problem
    operands = {name: operand.to(dtype) for name, operand in draw().items()}
    names = [*(f"d{name}" for name in operands)]
    by_us = run_with_gradients(ours, operands)
    by_plain = run_with_gradients(plain, operands)
    oracle = run_with_gradients(plain, {name: operand.double() for name, operand in operands.items()})
    outputs = [name for name in oracle if name not in names]
    labels = dict(zip(outputs, ("out", "lse")))
    rows = {}
    for name, ref64 in oracle.items():
        our_max, our_mean = errors(by_us[name], ref64)
        plain_max, plain_mean = errors(by_plain[name], ref64)
        row = {"ours max": our_max, "plain max": plain_max, "ours mean": our_mean, "plain mean": plain_mean}
        rows[labels.get(name, name)] = {key: float(f"{value:.3g}") for key, value in row.items()}
    return rows


def main(arguments: list[str]) -> int:
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "numerics.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {}
    for name, problem in problems().items():
        table[name] = {str(dtype).removeprefix("torch."): measure(problem, dtype) for dtype in DTYPES}
        print(name, json.dumps(table[name]), flush=True)
    facts = {"command": COMMAND, "torch": torch.__version__, "cpu_level": str(flagattn.cpu_level()), "ops": table}
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
