"""What runs where, found by doing: every op is called on the CPU; the build's own list tells the CUDA kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flagattn

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEAD_DIMS = (1, 8, 59, 64, 96, 128, 192, 256)
BEYOND = 264


@dataclass(frozen=True)
class Support:
    """One row of the matrix; the CUDA cells name dtypes and head dims, or say "no"."""

    op: str
    dtypes: str
    head_dims: str
    cpu_forward: bool
    cpu_backward: bool
    cuda_forward: str
    cuda_backward: str


def _random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def _dense(dtype: torch.dtype, dim: int) -> Any:
    q, k, v = (_random(1, 5, heads, dim, dtype=dtype) for heads in (2, 1, 1))
    return flagattn.flash_attn_func(q, k, v, causal=True)


def _packed(dtype: torch.dtype, dim: int) -> Any:
    q, k, v = (_random(5, heads, dim, dtype=dtype) for heads in (2, 1, 1))
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    return flagattn.flash_attn_varlen_func(q, k, v, offsets, offsets, 3, 3, causal=True)


def _piecewise(dtype: torch.dtype, dim: int) -> Any:
    q1, q2, k1, k2, v = (_random(1, 5, heads, dim, dtype=dtype) for heads in (2, 2, 1, 1, 1))
    return flagattn.piecewise_attn_func(q1, k1, q2, k2, v, 2, causal=True)


def _piecewise_packed(dtype: torch.dtype, dim: int) -> Any:
    q1, q2, k1, k2, v = (_random(5, heads, dim, dtype=dtype) for heads in (2, 2, 1, 1, 1))
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    return flagattn.piecewise_attn_varlen_func(q1, k1, q2, k2, v, offsets, offsets, 3, 3, 2, causal=True)


def _sdpa(dtype: torch.dtype, dim: int) -> Any:
    q, k, v = (_random(1, 2, 5, dim, dtype=dtype) for _ in range(3))
    return flagattn.scaled_dot_product_attention(q, k, v, is_causal=True)


def _cached(dtype: torch.dtype, dim: int) -> Any:
    q, k_cache, v_cache = (torch.randn(1, 5, heads, dim).to(dtype) for heads in (2, 1, 1))
    return flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, causal=True)


def _piecewise_cached(dtype: torch.dtype, dim: int) -> Any:
    q1, q2, k1, k2, v = (torch.randn(1, 5, heads, dim).to(dtype) for heads in (2, 2, 1, 1, 1))
    return flagattn.piecewise_attn_with_kvcache(q1, q2, k1, k2, v, 2)


def _rms_norm(dtype: torch.dtype, dim: int) -> Any:
    return flagattn.rms_norm(_random(3, dim, dtype=dtype), _random(dim, dtype=dtype))


def _swiglu(dtype: torch.dtype, dim: int) -> Any:
    return flagattn.swiglu(_random(3, dim, dtype=dtype), _random(3, dim, dtype=dtype))


def _rotary(dtype: torch.dtype, dim: int) -> Any:
    angles = torch.randn(5, dim // 2)
    return flagattn.apply_rotary(_random(1, 5, 2, dim, dtype=dtype), angles.cos(), angles.sin())


def _linear(dtype: torch.dtype, dim: int) -> Any:
    return flagattn.batch_invariant_linear(_random(3, dim, dtype=dtype), _random(5, dim, dtype=dtype))


def _loss(dtype: torch.dtype, dim: int) -> Any:
    return flagattn.cross_entropy(_random(3, dim, dtype=dtype), torch.tensor([0, 3, 5]))


def _linear_loss(dtype: torch.dtype, dim: int) -> Any:
    return flagattn.linear_cross_entropy(
        _random(3, dim, dtype=dtype), _random(9, dim, dtype=dtype), torch.tensor([0, 3, 5])
    )


ATTENTION: dict[str, Callable[[torch.dtype, int], Any]] = {
    "flash_attn_func": _dense,
    "flash_attn_varlen_func": _packed,
    "scaled_dot_product_attention": _sdpa,
    "piecewise_attn_func": _piecewise,
    "piecewise_attn_varlen_func": _piecewise_packed,
    "flash_attn_with_kvcache": _cached,
    "piecewise_attn_with_kvcache": _piecewise_cached,
}
FUSED: dict[str, Callable[[torch.dtype, int], Any]] = {
    "rms_norm": _rms_norm,
    "swiglu": _swiglu,
    "apply_rotary": _rotary,
    "batch_invariant_linear": _linear,
    "cross_entropy": _loss,
    "linear_cross_entropy": _linear_loss,
}


def _runs(call: Callable[[torch.dtype, int], Any], dtype: torch.dtype, dim: int) -> tuple[bool, bool]:
    """Whether the op's forward and backward run; refusals are Python errors."""
    try:
        out = call(dtype, dim)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False, False
    try:
        out.float().sum().backward()
    except (RuntimeError, NotImplementedError):
        return bool(torch.isfinite(out).all()), False
    return bool(torch.isfinite(out).all()), True


def cuda_instances(direction: str) -> dict[int, list[str]]:
    """Head dim -> dtypes of the sm_80 attention kernels the build makes for one direction."""
    names = {"BFloat16": "bf16", "Float16": "fp16"}
    text = (ROOT / "csrc/attention/cuda/sm80/instances.cmake").read_text(encoding="utf-8")
    found: dict[int, list[str]] = {}
    for element, dim in re.findall(rf"{direction}_instance\.cu\.in ELEMENT=(\w+) HEAD_DIM=(\d+)", text):
        dtypes = found.setdefault(int(dim), [])
        if names[element] not in dtypes:
            dtypes.append(names[element])
    return found


def _cuda_cell(op: str, direction: str) -> str:
    """The kernels pad head dims up to their own, so the widest one is the limit."""
    over_cache = op.endswith("kvcache")
    instances = cuda_instances("decode" if over_cache and direction == "forward" else direction)
    if (over_cache and direction == "backward") or not instances:
        return "no"
    return f"{', '.join(instances[max(instances)])}; 1..{max(instances)}"


# The folders of the fused ops that have CUDA kernels; each has a forward and a backward, and takes any sizes.
CUDA_FUSED = {
    "rms_norm": "norm",
    "swiglu": "activation",
    "apply_rotary": "rotary",
    "cross_entropy": "loss",
    "linear_cross_entropy": "loss",
}


def _cuda_fused_cell(op: str) -> str:
    if op not in CUDA_FUSED:
        return "no"
    names = {"float": "fp32", "BFloat16": "bf16", "Float16": "fp16"}
    text = (ROOT / f"csrc/{CUDA_FUSED[op]}/cuda/sm80/instances.cmake").read_text(encoding="utf-8")
    return ", ".join(names[element] for element in re.findall(r"ELEMENT=(\w+)", text)) + "; any"


def _row(op: str, call: Callable[[torch.dtype, int], Any], is_attention: bool) -> Support:
    dims: tuple[int, ...] = HEAD_DIMS if is_attention else (8, 64, 128)
    outcomes: dict[str, Any] = {name: [_runs(call, dtype, dim) for dim in dims] for name, dtype in DTYPES.items()}
    forward = [name for name, runs in outcomes.items() if all(done for done, _ in runs)]
    backward = [name for name, runs in outcomes.items() if all(done for _, done in runs)]
    limit = "any"
    if is_attention:
        limit = f"{dims[0]}..{dims[-1]}" if not _runs(call, torch.float32, BEYOND)[0] else "any"
    cuda = [_cuda_cell(op, way) if is_attention else _cuda_fused_cell(op) for way in ("forward", "backward")]
    return Support(op, ", ".join(forward), limit, bool(forward), bool(forward) and backward == forward, *cuda)


def matrix() -> list[Support]:
    ops = [(op, call, True) for op, call in ATTENTION.items()] + [(op, call, False) for op, call in FUSED.items()]
    return [_row(op, call, kind) for op, call, kind in ops if hasattr(flagattn, op)]
