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
from typing import Any, NamedTuple

import torch
from torch import Tensor

import flagattn
from bench import machine
from flagattn import reference
from flagattn.testing.op_runs import run_with_gradients

COMMAND = "python -m bench.study_numerics"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEQLEN, HEADS, HEADS_K, HEAD_DIM, SIZE = 1024, 6, 2, 128, 4096
TOKENS, CLASSES, FEATURES = 64, 8192, 512


class Problem(NamedTuple):
    """Ours, the reference, what draws the operands in fp32, and what their results are called."""

    ours: Callable[..., Any]
    plain: Callable[..., Any]
    draw: Callable[[], Mapping[str, Tensor]]
    outputs: tuple[str, ...] = ("out", "lse")
    differentiable: bool = True


def _operands(**shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    def draw() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return draw


def problems() -> dict[str, Problem]:
    """By op. Packed forms run the kernels of the dense ones and have no rows of their own."""
    return _attention() | _caches() | _fused() | _losses()


def _attention() -> dict[str, Problem]:
    q, k = (1, SEQLEN, HEADS, HEAD_DIM), (1, SEQLEN, HEADS_K, HEAD_DIM)

    def with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (operand.transpose(1, 2) for operand in (q, k, v))
        out = flagattn.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=True)
        return out.transpose(1, 2)

    return {
        "attention, full": Problem(
            lambda q, k, v: flagattn.flash_attn_func(q, k, v, return_lse=True),
            lambda q, k, v: reference.attention(q, k, v),
            _operands(q=q, k=k, v=k),
        ),
        "attention, causal": Problem(
            lambda q, k, v: flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True),
            lambda q, k, v: reference.attention(q, k, v, causal=True),
            _operands(q=q, k=k, v=k),
        ),
        "scaled_dot_product_attention, bias": Problem(
            with_bias,
            lambda q, k, v, bias: reference.attention(q, k, v, bias=bias)[0],
            _operands(q=q, k=k, v=k, bias=(1, HEADS, SEQLEN, SEQLEN)),
        ),
        "piecewise attention, causal": Problem(
            lambda q1, k1, q2, k2, v: flagattn.piecewise_attn_func(
                q1, k1, q2, k2, v, SEQLEN // 2, causal=True, return_lse=True
            ),
            lambda q1, k1, q2, k2, v: reference.piecewise_attention(q1, k1, q2, k2, v, SEQLEN // 2, causal=True),
            _operands(q1=q, k1=k, q2=q, k2=k, v=k),
        ),
        "attention_column_sums, causal": Problem(
            lambda q, k: flagattn.attention_column_sums(
                q, k, flagattn.flash_attn_func(q, k, k, causal=True, return_lse=True)[1], causal=True
            ),
            lambda q, k: reference.attention_column_sums(
                q, k, reference.attention(q, k, k, causal=True)[1], causal=True
            ),
            _operands(q=q, k=k),
            ("sums",),
            differentiable=False,
        ),
    }


def _caches() -> dict[str, Problem]:
    """One token of each of two sequences, of different lengths."""
    q, cache, lengths = (2, 1, HEADS, HEAD_DIM), (2, SEQLEN, HEADS_K, HEAD_DIM), [SEQLEN, SEQLEN // 2 + 1]
    seqlens, far = torch.tensor(lengths, dtype=torch.int32), SEQLEN // 4

    def piecewise(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v: Tensor) -> Any:
        return flagattn.piecewise_attn_with_kvcache(q1, q2, k1, k2, v, far, cache_seqlens=seqlens, return_lse=True)

    def plain_piecewise(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v: Tensor) -> Any:
        return reference.attention_with_kvcache(q1, (k1, k2, v), lengths, q2=q2, dist_threshold=far, causal=True)

    return {
        "flash_attn_with_kvcache": Problem(
            lambda q, k, v: flagattn.flash_attn_with_kvcache(q, k, v, cache_seqlens=seqlens, return_lse=True),
            lambda q, k, v: reference.attention_with_kvcache(q, (k, v), lengths),
            _operands(q=q, k=cache, v=cache),
            differentiable=False,
        ),
        "piecewise_attn_with_kvcache": Problem(
            piecewise,
            plain_piecewise,
            _operands(q1=q, q2=q, k1=cache, k2=cache, v=cache),
            differentiable=False,
        ),
    }


def _fused() -> dict[str, Problem]:
    angles = torch.outer(torch.arange(SEQLEN), 1e4 ** -torch.linspace(0, 1, HEAD_DIM // 2))
    cos, sin = angles.cos(), angles.sin()
    rows = (TOKENS, SIZE)
    return {
        "rms_norm": Problem(flagattn.rms_norm, reference.rms_norm, _operands(x=rows, weight=(SIZE,))),
        "swiglu": Problem(flagattn.swiglu, reference.swiglu, _operands(gate=rows, up=rows)),
        "batch_invariant_linear": Problem(
            flagattn.batch_invariant_linear,
            reference.batch_invariant_linear,
            _operands(x=rows, weight=(256, SIZE), bias=(256,)),
        ),
        "apply_rotary": Problem(
            lambda x: flagattn.apply_rotary(x, cos, sin),
            lambda x: reference.apply_rotary(x, *(t.to(torch.promote_types(x.dtype, cos.dtype)) for t in (cos, sin))),
            _operands(x=(1, SEQLEN, HEADS, HEAD_DIM)),
        ),
    }


def _losses() -> dict[str, Problem]:
    """Each row's loss of given logits, and the mean loss of a head whose logits have the variance 1."""
    targets = torch.randint(CLASSES, (TOKENS,), generator=torch.Generator().manual_seed(1))
    head = _operands(hidden=(TOKENS, FEATURES), weight=(CLASSES, FEATURES))

    def scaled_head() -> dict[str, Tensor]:
        drawn = head()
        return drawn | {"weight": drawn["weight"] * FEATURES**-0.5}

    return {
        "cross_entropy": Problem(
            lambda logits: flagattn.cross_entropy(logits, targets, reduction="none", return_lse=True),
            lambda logits: reference.cross_entropy(logits, targets, reduction="none"),
            _operands(logits=(TOKENS, CLASSES)),
            ("loss", "lse"),
        ),
        "linear_cross_entropy": Problem(
            lambda hidden, weight: flagattn.linear_cross_entropy(hidden, weight, targets),
            lambda hidden, weight: reference.linear_cross_entropy(hidden, weight, targets)[0],
            scaled_head,
            ("loss",),
        ),
    }


def errors(result: Tensor, ref64: Tensor) -> tuple[float, float]:
    """Largest and mean absolute error over the largest absolute value."""
    error = (result.double() - ref64).abs() / ref64.abs().max()
    return float(error.max()), float(error.mean())


def measure(problem: Problem, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    operands = {name: operand.to(dtype) for name, operand in problem.draw().items()}
    run = run_with_gradients if problem.differentiable else _run
    by_us = run(problem.ours, operands)
    by_plain = run(problem.plain, operands)
    oracle = run(problem.plain, {name: operand.double() for name, operand in operands.items()})
    labels = {f"output {index}": name for index, name in enumerate(problem.outputs)}
    rows = {}
    for name, ref64 in oracle.items():
        our_max, our_mean = errors(by_us[name], ref64)
        plain_max, plain_mean = errors(by_plain[name], ref64)
        row = {"ours max": our_max, "plain max": plain_max, "ours mean": our_mean, "plain mean": plain_mean}
        rows[labels.get(name, name)] = {key: float(f"{value:.3g}") for key, value in row.items()}
    return rows


def _run(op: Callable[..., Any], operands: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The results alone, named as `run_with_gradients` names them."""
    with torch.no_grad():
        result = op(**operands)
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    return {f"output {index}": output for index, output in enumerate(outputs)}


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
