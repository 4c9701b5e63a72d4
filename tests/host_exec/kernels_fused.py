"""The fused ops' CUDA kernels on CPU tensors, with their gradients: what a test calls where an op would be called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.host_exec.builds import host_exec_module


def dtype_of(tensor: Tensor) -> Any:
    return getattr(host_exec_module().DType, str(tensor.dtype).removeprefix("torch."))


def rows_of(tensor: Tensor | None) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """(address, sizes, strides) of the leading dimensions, neighbours merged as csrc/torch/strided_rows.h does."""
    if tensor is None:
        return None
    assert tensor.stride(-1) == 1 or tensor.shape[-1] <= 1
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1]):
        if size == 1:
            continue
        if strides and strides[-1] == size * stride:
            sizes[-1] *= size
            strides[-1] = stride
        else:
            sizes.append(size)
            strides.append(stride)
    return tensor.data_ptr(), tuple(sizes or [1]), tuple(strides or [0])


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def filled_with_nan(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), torch.nan, dtype=dtype)


def row_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


# ---- RMSNorm


def rms_norm_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, rounds: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    y = filled_with_nan(x.shape, x.dtype)
    summed = None if residual is None else filled_with_nan(x.shape, x.dtype)
    rstd = filled_with_nan(x.shape[:-1], torch.float32)
    host_exec_module().rms_norm_sm80(
        {
            "dtype": dtype_of(x),
            "weight_dtype": dtype_of(weight),
            "rows": x.shape[:-1].numel(),
            "cols": x.shape[-1],
            "x": rows_of(x),
            "residual": rows_of(residual),
            "weight": weight.data_ptr(),
            "eps": eps,
            "offset": offset,
            "round_normalised": rounds,
            "y": address(y),
            "summed": address(summed),
            "rstd": address(rstd),
        }
    )
    return y, summed, rstd


def rms_norm_backward(
    dy: Tensor, dsummed: Tensor | None, s: Tensor, weight: Tensor, rstd: Tensor, offset: float, needs_dweight: bool
) -> tuple[Tensor, Tensor | None]:
    rows, cols = s.shape[:-1].numel(), s.shape[-1]
    ds = filled_with_nan(s.shape, s.dtype)
    dweight = filled_with_nan(weight.shape, weight.dtype) if needs_dweight else None
    scratch_bytes = host_exec_module().rms_norm_backward_scratch_sm80(rows, cols, dtype_of(s))
    scratch = filled_with_nan((scratch_bytes // 4,), torch.float32) if needs_dweight else None
    host_exec_module().rms_norm_backward_sm80(
        {
            "dtype": dtype_of(s),
            "weight_dtype": dtype_of(weight),
            "rows": rows,
            "cols": cols,
            "dy": rows_of(row_contiguous(dy)),
            "dsummed": None if dsummed is None else rows_of(row_contiguous(dsummed)),
            "s": rows_of(s),
            "rstd": address(rstd),
            "weight": weight.data_ptr(),
            "offset": offset,
            "ds": address(ds),
            "dweight": address(dweight),
            "scratch": address(scratch),
        }
    )
    return ds, dweight


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, *options: Any) -> Any:
        y, summed, rstd = rms_norm_forward(x, residual, weight, *options)
        ctx.save_for_backward(x if summed is None else summed, weight, rstd)
        ctx.offset = options[1]
        return y if summed is None else (y, summed)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dsummed: Tensor | None = None) -> Any:
        s, weight, rstd = ctx.saved_tensors
        ds, dweight = rms_norm_backward(dy, dsummed, s, weight, rstd, ctx.offset, ctx.needs_input_grad[2])
        return ds, ds if ctx.needs_input_grad[1] else None, dweight, None, None, None


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    offset: float = 0.0,
    rounding: str = "llama",
) -> Any:
    """`flagattn.rms_norm` by the sm_80 kernels."""
    x, residual = row_contiguous(x), None if residual is None else row_contiguous(residual)
    return _RmsNorm.apply(x, residual, weight, eps, offset, rounding == "llama")


# ---- SwiGLU


def swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    y = filled_with_nan(gate.shape, gate.dtype)
    host_exec_module().swiglu_sm80(
        {
            "dtype": dtype_of(gate),
            "rows": gate.shape[:-1].numel(),
            "cols": gate.shape[-1],
            "gate": rows_of(gate),
            "up": rows_of(up),
            "y": address(y),
        }
    )
    return y


def swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    dgate, dup = (filled_with_nan(gate.shape, gate.dtype) for _ in range(2))
    host_exec_module().swiglu_backward_sm80(
        {
            "dtype": dtype_of(gate),
            "rows": gate.shape[:-1].numel(),
            "cols": gate.shape[-1],
            "dy": rows_of(dy),
            "gate": rows_of(gate),
            "up": rows_of(up),
            "dgate": address(dgate),
            "dup": address(dup),
        }
    )
    return dgate, dup


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate, up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return swiglu_backward(row_contiguous(dy), *ctx.saved_tensors)


def swiglu(gate: Tensor, up: Tensor) -> Any:
    """`flagattn.swiglu` by the sm_80 kernels."""
    return _Swiglu.apply(row_contiguous(gate), row_contiguous(up))


# ---- Rotary embedding


def _rotary_operand(x: Tensor) -> tuple[int, int, int, int]:
    return x.data_ptr(), x.stride(0) if x.dim() == 4 else 0, x.stride(-3), x.stride(-2)


def _rotary_table(table: Tensor) -> tuple[int, int, int]:
    return table.data_ptr(), table.stride(0) if table.dim() == 3 and table.shape[0] > 1 else 0, table.stride(-2)


def rotate(
    x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool, conjugate: bool
) -> None:
    """x turned into y, which may be x."""
    per_sequence = positions is not None and positions.dim() == 2 and positions.shape[0] > 1
    host_exec_module().rotary_sm80(
        {
            "dtype": dtype_of(x),
            "table_dtype": dtype_of(cos),
            "batch": x.shape[0] if x.dim() == 4 else 1,
            "seqlen": x.shape[-3],
            "heads": x.shape[-2],
            "head_dim": x.shape[-1],
            "half_dim": cos.shape[-1],
            "num_positions": cos.shape[-2],
            "x": _rotary_operand(x),
            "y": _rotary_operand(y),
            "cos": _rotary_table(cos),
            "sin": _rotary_table(sin),
            "positions32": address(positions) if positions is not None and positions.dtype == torch.int32 else None,
            "positions64": address(positions) if positions is not None and positions.dtype == torch.int64 else None,
            "positions_batch_stride": x.shape[-3] if per_sequence else 0,
            "interleaved": interleaved,
            "conjugate": conjugate,
        }
    )


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        ctx.rest = rest
        y = filled_with_nan(x.shape, x.dtype)
        rotate(x, y, *rest, False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = filled_with_nan(dy.shape, dy.dtype)
        rotate(row_contiguous(dy), dx, *ctx.rest, True)
        return dx, None, None, None, None


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    positions: Tensor | None = None,
    inplace: bool = False,
) -> Any:
    """`flagattn.apply_rotary` by the sm_80 kernels."""
    cos, sin = row_contiguous(cos), row_contiguous(sin)
    positions = None if positions is None else positions.contiguous()
    if inplace:
        rotate(x, x, cos, sin, positions, interleaved, False)
        return x
    return _Rotary.apply(row_contiguous(x), cos, sin, positions, interleaved)
