"""Runs a kernel for the microscope (flagattn/testing/microscope) and returns what one block of each launch did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flagattn.testing import (
    DENSE_CASES,
    PIECEWISE_CASES,
    SCORE_CASES,
    VARLEN_CASES,
    AttentionCase,
    attention_by_reference,
    make_inputs,
)
from tests.host_exec import kernels_backward, kernels_fused
from tests.host_exec.builds import host_exec_module
from tests.host_exec.kernels import attention_forward_sm80, set_schedule, supported_by_sm80

Unavailable = pytest.skip.Exception  # what builds.py raises where the runner cannot be built


def _attention_cases() -> dict[str, AttentionCase]:
    """By name; where plain and piecewise cases share one, a piecewise case is called piecewise_NAME."""
    cases: dict[str, AttentionCase] = {}
    for case in (*DENSE_CASES, *VARLEN_CASES, *SCORE_CASES, *PIECEWISE_CASES):
        if supported_by_sm80(case):
            cases[f"piecewise_{case.name}" if case.name in cases else case.name] = case
    return cases


def _attention(case_name: str, dtype: torch.dtype, *, backward: bool) -> Callable[[], object]:
    cases = _attention_cases()
    if case_name not in cases:
        raise ValueError(f"attention has no case {case_name!r}; --list names them")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"attention takes bfloat16 and float16, not {dtype}")
    case = cases[case_name]
    inputs = make_inputs(case, dtype)
    if not backward:
        return lambda: attention_forward_sm80(case, inputs)
    if not kernels_backward.supported_by_sm80(case):
        raise ValueError(f"the layouts of {case_name} are not the backward's")
    results = attention_by_reference(case, inputs, torch.float32, gradients=False)
    out, lse = results["out"].detach().to(dtype), results["lse"].detach().float()
    return lambda: kernels_backward.attention_backward_sm80(case, inputs, out, lse)


def _fused(op: str, case_name: str, dtype: torch.dtype) -> Callable[[], object]:
    try:
        rows, cols = (int(number) for number in case_name.split("x"))
    except ValueError:
        raise ValueError(f"a case of {op} is written ROWSxCOLS, such as 3x2312, not {case_name!r}") from None
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, y, gradient = (random(rows, cols) for _ in range(3))
    if op == "rms_norm":
        return lambda: kernels_fused.rms_norm_forward(x, None, random(cols), 1e-5, 0.0, True)
    if op == "rms_norm_backward":
        weight, rstd = random(cols), x.float().square().mean(-1).rsqrt()
        return lambda: kernels_fused.rms_norm_backward(gradient, None, x, weight, rstd, 0.0, True)
    if op == "swiglu":
        return lambda: kernels_fused.swiglu_forward(x, y)
    return lambda: kernels_fused.swiglu_backward(gradient, x, y)


ATTENTION = ("attention_forward", "attention_backward")
FUSED = ("rms_norm", "rms_norm_backward", "swiglu", "swiglu_backward")


def names() -> list[str]:
    """Kernels and the names of their cases, a line each."""
    return [
        f"{' | '.join(ATTENTION)}: {' '.join(_attention_cases())}",
        f"{' | '.join(FUSED)}: ROWSxCOLS, such as 3x2312",
    ]


def record(
    kernel: str,
    case: str,
    *,
    dtype: str = "bfloat16",
    block: int = 0,
    seed: int = 0,
    copies: str = "lazy",
    fault: str = "",
) -> list[dict[str, Any]]:
    """The recordings of `block` in every launch; where the runner stops the kernel, up to there."""
    if kernel in ATTENTION:
        run = _attention(case, getattr(torch, dtype), backward=kernel == "attention_backward")
    elif kernel in FUSED:
        run = _fused(kernel, case, getattr(torch, dtype))
    else:
        raise ValueError(f"there is no kernel {kernel!r}; --list names them")
    module = host_exec_module()
    module.plant(fault)
    set_schedule(seed=seed, copies=copies, workers=1)
    module.record(block)
    try:
        run()
    except RuntimeError as error:
        if not str(error).startswith(("block ", "deadlock between blocks: ")):
            raise
    finally:
        recordings = module.recordings()
        module.record(-1)
        module.plant("")
        set_schedule()
    return recordings
