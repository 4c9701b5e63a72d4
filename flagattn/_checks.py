"""Argument checks shared by the public functions.

The tests run first and are few; what was wrong is worked out only after one has failed. Types, dtypes, devices, ranks
and shapes raise TypeError or ValueError here; wrong values inside tensors are found by the ops.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256
BEYOND = 2**40  # longer than any sequence: windows and thresholds are cut off here

_DENSE = "(batch, seqlen, heads, head_dim)"
_PACKED = "(total, heads, head_dim)"


def check_dense_operands(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str, str]) -> tuple[int, int, int, int]:
    """q, k, v fit together as (batch, seqlen, heads, head_dim); returns seqlen_q, seqlen_k, head_dim, head_dim_v."""
    _check_tensors(q, k, v, names)
    shape_q, shape_k, shape_v = q.shape, k.shape, v.shape
    if len(shape_q) != 4 or len(shape_k) != 4 or len(shape_v) != 4:
        _fail_on_ranks((q, k, v), names, _DENSE)
    batch, seqlen_q, heads_q, head_dim = shape_q
    batch_k, seqlen_k, heads_k, head_dim_k = shape_k
    batch_v, seqlen_v, heads_v, head_dim_v = shape_v
    if (
        head_dim != head_dim_k
        or seqlen_k != seqlen_v
        or heads_k != heads_v
        or batch != batch_k
        or batch != batch_v
        or heads_are_wrong(heads_q, heads_k)
        or not 1 <= head_dim <= MAX_HEAD_DIM
        or not 1 <= head_dim_v <= MAX_HEAD_DIM
    ):
        _fail_on_shapes(q, k, v, names)
    return seqlen_q, seqlen_k, head_dim, head_dim_v


def check_packed_operands(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str, str]) -> tuple[int, int]:
    """q, k, v fit together as (total, heads, head_dim); returns head_dim and head_dim_v."""
    _check_tensors(q, k, v, names)
    shape_q, shape_k, shape_v = q.shape, k.shape, v.shape
    if len(shape_q) != 3 or len(shape_k) != 3 or len(shape_v) != 3:
        _fail_on_ranks((q, k, v), names, _PACKED)
    _, heads_q, head_dim = shape_q
    total_k, heads_k, head_dim_k = shape_k
    total_v, heads_v, head_dim_v = shape_v
    if (
        head_dim != head_dim_k
        or total_k != total_v
        or heads_k != heads_v
        or heads_are_wrong(heads_q, heads_k)
        or not 1 <= head_dim <= MAX_HEAD_DIM
        or not 1 <= head_dim_v <= MAX_HEAD_DIM
    ):
        _fail_on_shapes(q, k, v, names)
    return head_dim, head_dim_v


def check_ranks(tensors: tuple[Tensor, ...], names: tuple[str, ...], layout: str) -> None:
    """Every tensor has as many dimensions as `layout`, for example "(batch, heads, seqlen, head_dim)", names."""
    rank = layout.count(",") + 1
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            fail_on_types((tensor,), (names[index],))
        if tensor.dim() != rank:
            _fail_on_ranks((tensor,), (names[index],), layout)


def check_same_as(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """`tensor` has the dtype, device and shape of `like`."""
    if not isinstance(tensor, Tensor):
        fail_on_types((tensor,), (name,))
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{name} is {_name(tensor.dtype)}, but {like_name} is {_name(like.dtype)}; their dtypes must be equal"
        )
    if tensor.device != like.device:
        raise ValueError(
            f"{name} is on {tensor.device}, but {like_name} is on {like.device}; their devices must be equal"
        )
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} has shape {_shape(tensor)}, but {like_name} has {_shape(like)}; their shapes must be equal"
        )


def check_floating(tensor: Tensor, name: str) -> None:
    """`tensor` is a tensor of a supported dtype."""
    if not isinstance(tensor, Tensor):
        fail_on_types((tensor,), (name,))
    if tensor.dtype not in DTYPES:
        _fail_on_dtypes((tensor,), (name,))


def check_stacked_operand(tensor: Tensor, name: str, parts: int, layout: str) -> None:
    """`tensor` stacks `parts` operands in its third dimension from the end."""
    check_ranks((tensor,), (name,), layout)
    if tensor.shape[-3] != parts:
        raise ValueError(f"{name} has shape {_shape(tensor)}; it must be {layout}")


def check_packing(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: Any, max_seqlen_k: Any, q: Tensor) -> None:
    """The cumulative lengths are int32 vectors of equal length on q's device; the maximal lengths are integers."""
    check_prefix_sums(q, cu_seqlens_q, cu_seqlens_k)
    for name, length in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        check_integer(length, name)


def check_prefix_sums(q: Tensor, *prefix_sums: Tensor) -> None:
    """cu_seqlens_q, and cu_seqlens_k where it is given, are int32 vectors of equal length on q's device."""
    for name, cu_seqlens in zip(("cu_seqlens_q", "cu_seqlens_k"), prefix_sums):
        if not isinstance(cu_seqlens, Tensor):
            fail_on_types((cu_seqlens,), (name,))
        if cu_seqlens.dtype is not torch.int32:
            raise TypeError(f"{name} is {_name(cu_seqlens.dtype)}; it must be int32")
        if cu_seqlens.device != q.device:
            raise ValueError(f"{name} is on {cu_seqlens.device}, but q is on {q.device}; their devices must be equal")
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
            raise ValueError(f"{name} has shape {_shape(cu_seqlens)}; it must be (batch + 1,)")
        if cu_seqlens.stride(0) != 1:
            raise ValueError(f"{name} has the stride {cu_seqlens.stride(0)}; it must be contiguous")
    if prefix_sums[0].shape != prefix_sums[-1].shape:
        raise ValueError(
            f"cu_seqlens_q has shape {_shape(prefix_sums[0])}, but cu_seqlens_k has {_shape(prefix_sums[-1])}; "
            "their shapes must be equal"
        )


def check_integer(value: Any, name: str) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} is {_kind(value)}; it must be an integer")


def check_flag(value: Any, name: str) -> None:
    if isinstance(value, (bool, torch.SymBool)):
        return
    if isinstance(value, Tensor) or value not in (0, 1):  # NumPy's bool equals them too
        what = value if isinstance(value, int) else _kind(value)
        raise TypeError(f"{name} is {what}; it must be True or False")


def window_bounds(window_size: Any, causal: bool) -> tuple[int, int]:
    """(left, right) for the op, where causal is a right bound of 0."""
    check_flag(causal, "causal")
    try:
        left, right = window_size
        if not (isinstance(left, int) and isinstance(right, int)):
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"window_size is {window_size!r}; it must be a pair of integers") from None
    if left < -1 or right < -1:
        raise ValueError(f"window_size is {(left, right)}; each side must be >= 0, or -1 for no bound")
    return min(left, BEYOND), 0 if causal else min(right, BEYOND)


def scale_or_default(softmax_scale: float | None, head_dim: int) -> float:
    if softmax_scale is None:
        return float(head_dim**-0.5)
    if isinstance(softmax_scale, Tensor):
        raise TypeError("softmax_scale is a tensor; it must be a float or None")
    if not _is_number(softmax_scale):
        raise TypeError(f"softmax_scale is {_kind(softmax_scale)}; it must be a float or None")
    if not softmax_scale - softmax_scale == 0:
        raise ValueError(f"softmax_scale is {softmax_scale}; it must be finite")
    return softmax_scale


def check_number(value: Any, name: str) -> None:
    if not _is_number(value):
        raise TypeError(f"{name} is {_kind(value)}; it must be a float")


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, int, torch.SymFloat, torch.SymInt)) or hasattr(value, "__float__")  # numpy's


def check_softcap(softcap: float) -> None:
    check_number(softcap, "softcap")
    if softcap != 0.0 and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it must be finite and >= 0, where 0 switches it off")


def under_autocast(*operands: Any) -> tuple[Any, ...]:
    """The operands in autocast's dtype where it is on; else, and where they are no tensors, as they are."""
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        kind = operands[0].device.type if isinstance(operands[0], Tensor) else ""
        if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            return tuple(
                operand.to(dtype) if isinstance(operand, Tensor) and operand.dtype in DTYPES else operand
                for operand in operands
            )
    return operands


def prepared(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands with contiguous last dimensions."""
    for operand in operands:
        if operand.stride(-1) != 1:
            return tuple(rows_contiguous(operand) for operand in operands)
    return operands


def padded(*operands: Tensor) -> tuple[Tensor, ...]:
    """The operands with zeros behind their head dims up to the next multiple of 8, the quantum of the kernels."""
    return tuple(F.pad(operand, (0, -operand.shape[-1] % 8)) for operand in operands)


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The kernels read strided operands whose last dimension is contiguous; anything else is copied."""
    # Not contiguous(), which returns tensors without elements as they are, whatever their strides.
    return tensor if tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


def promoted_under_autocast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Where autocast is on, two operands of different dtypes in the wider one; else as they are."""
    if (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and first.dtype != second.dtype
        and first.device.type in ("cpu", "cuda")
        and torch.is_autocast_enabled(first.device.type)
    ):
        wide = torch.promote_types(first.dtype, second.dtype)
        return first.to(wide), second.to(wide)
    return first, second


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str, str]) -> None:
    """q, k, v are tensors of one supported dtype on one device."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        fail_on_types((q, k, v), names)
    dtype = q.dtype
    if dtype not in DTYPES or k.dtype != dtype or v.dtype != dtype:
        _fail_on_dtypes((q, k, v), names)
    device = q.device
    if k.device != device or v.device != device:
        _fail_on_devices((q, k, v), names)


def heads_are_wrong(heads_q: int, heads_k: int) -> bool:
    return heads_k == 0 or heads_q == 0 or heads_q % heads_k != 0


# ---- explanations ----


def fail_on_types(tensors: tuple[Any, ...], names: tuple[str, ...]) -> NoReturn:
    name, value = next((n, t) for n, t in zip(names, tensors) if not isinstance(t, Tensor))
    raise TypeError(f"{name} is {_kind(value)}; it must be a tensor")


def _fail_on_dtypes(tensors: tuple[Tensor, ...], names: tuple[str, ...]) -> NoReturn:
    allowed = ", ".join(_name(dtype) for dtype in DTYPES)
    for name, tensor in zip(names, tensors):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} is {_name(tensor.dtype)}; supported dtypes are {allowed}")
    came = ", ".join(f"{name} is {_name(tensor.dtype)}" for name, tensor in zip(names, tensors))
    raise TypeError(f"{came}; their dtypes must be equal")


def _fail_on_devices(tensors: tuple[Tensor, ...], names: tuple[str, ...]) -> NoReturn:
    came = ", ".join(f"{name} is on {tensor.device}" for name, tensor in zip(names, tensors))
    raise ValueError(f"{came}; their devices must be equal")


def _fail_on_ranks(tensors: tuple[Tensor, ...], names: tuple[str, ...], layout: str) -> NoReturn:
    rank = layout.count(",") + 1
    name, tensor = next((n, t) for n, t in zip(names, tensors) if t.dim() != rank)
    raise ValueError(f"{name} has shape {_shape(tensor)}; it must be {layout}")


def _fail_on_shapes(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, str, str]) -> NoReturn:
    name_q, name_k, name_v = names
    came = f"{name_q} has shape {_shape(q)}, {name_k} {_shape(k)}, {name_v} {_shape(v)}"
    if q.dim() == 4 and q.shape[0] != k.shape[0]:
        raise ValueError(f"{came}; {name_q} and {name_k} must have the same batch size")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"{came}; {name_k} and {name_v} may differ in the last dimension only")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{came}; {name_q} and {name_k} must have the same head_dim")
    for name, tensor in ((name_q, q), (name_v, v)):
        if not 1 <= tensor.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has head_dim {tensor.shape[-1]}; it must be from 1 to {MAX_HEAD_DIM}")
    raise ValueError(f"{came}; the number of heads of {name_q} must be a positive multiple of that of {name_k}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
