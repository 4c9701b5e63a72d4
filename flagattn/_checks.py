"""Argument checks shared by the public functions.

The tests run first and are few; what was wrong is worked out only after one has failed. Types, dtypes, devices, ranks
and shapes raise TypeError or ValueError here; wrong values inside tensors are found by the ops.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256

_DENSE = "(batch, seqlen, heads, head_dim)"
_DENSE_HEADS_FIRST = "(batch, heads, seqlen, head_dim)"
_PACKED = "(total, heads, head_dim)"


def check_attention_operands(
    q: Tensor, k: Tensor, v: Tensor, rank: int, names: tuple[str, str, str], *, heads_first: bool = False
) -> None:
    """q, k, v are tensors of one supported dtype and device, of `rank` dimensions, whose shapes fit together."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        _fail_on_types((q, k, v), names)
    dtype = q.dtype
    if dtype not in DTYPES or k.dtype != dtype or v.dtype != dtype:
        _fail_on_dtypes((q, k, v), names)
    device = q.device
    if k.device != device or v.device != device:
        _fail_on_devices((q, k, v), names)
    shape_q, shape_k, shape_v = q.shape, k.shape, v.shape
    if len(shape_q) != rank or len(shape_k) != rank or len(shape_v) != rank:
        _fail_on_ranks((q, k, v), names, _PACKED if rank == 3 else _DENSE_HEADS_FIRST if heads_first else _DENSE)
    heads = -3 if heads_first else -2
    heads_k = shape_k[heads]
    if (
        shape_k[:-1] != shape_v[:-1]
        or shape_q[-1] != shape_k[-1]
        or heads_k == 0
        or shape_q[heads] == 0
        or shape_q[heads] % heads_k != 0
        or (rank == 4 and shape_q[0] != shape_k[0])
        or not 1 <= shape_q[-1] <= MAX_HEAD_DIM
        or not 1 <= shape_v[-1] <= MAX_HEAD_DIM
    ):
        _fail_on_shapes(q, k, v, rank, names)


def check_same_as(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """`tensor` has the dtype, device and shape of `like`."""
    if not isinstance(tensor, Tensor):
        _fail_on_types((tensor,), (name,))
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


def check_packed_operand(tensor: Tensor, name: str, parts: int, layout: str) -> None:
    """`tensor` stacks `parts` operands in its third dimension from the end."""
    if not isinstance(tensor, Tensor):
        _fail_on_types((tensor,), (name,))
    if tensor.dim() != layout.count(",") + 1 or tensor.shape[-3] != parts:
        raise ValueError(f"{name} has shape {_shape(tensor)}; it must be {layout}")


def check_packing(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: Any, max_seqlen_k: Any, q: Tensor) -> None:
    """The cumulative lengths are int32 vectors of equal length on q's device; the maximal lengths are integers."""
    for name, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if not isinstance(cu_seqlens, Tensor):
            _fail_on_types((cu_seqlens,), (name,))
        if cu_seqlens.dtype is not torch.int32:
            raise TypeError(f"{name} is {_name(cu_seqlens.dtype)}; it must be int32")
        if cu_seqlens.device != q.device:
            raise ValueError(f"{name} is on {cu_seqlens.device}, but q is on {q.device}; their devices must be equal")
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
            raise ValueError(f"{name} has shape {_shape(cu_seqlens)}; it must be (batch + 1,)")
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q has shape {_shape(cu_seqlens_q)}, but cu_seqlens_k has {_shape(cu_seqlens_k)}; "
            "their shapes must be equal"
        )
    for name, length in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        check_integer(length, name)


def check_integer(value: Any, name: str) -> None:
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is {_kind(value)}; it must be an integer")


def window_bounds(window_size: Any, causal: bool) -> tuple[int, int]:
    """(left, right) for the op, where causal is a right bound of 0."""
    try:
        left, right = window_size
        if not (isinstance(left, int) and isinstance(right, int)):
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"window_size is {window_size!r}; it must be a pair of integers") from None
    if left < -1 or right < -1:
        raise ValueError(f"window_size is {(left, right)}; each side must be >= 0, or -1 for no bound")
    return left, 0 if causal else right


def scale_or_default(softmax_scale: float | None, head_dim: int) -> float:
    if softmax_scale is None:
        return float(head_dim**-0.5)
    if isinstance(softmax_scale, Tensor):
        raise TypeError("softmax_scale is a tensor; it must be a float or None")
    if not softmax_scale - softmax_scale == 0:
        raise ValueError(f"softmax_scale is {softmax_scale}; it must be finite")
    return softmax_scale


def check_softcap(softcap: float) -> None:
    if not softcap >= 0 or softcap - softcap != 0:
        raise ValueError(f"softcap is {softcap}; it must be finite and >= 0, where 0 switches it off")


def refuse_unsupported(dropout_p: float, alibi_slopes: object, sinks: object, block_table: object = None) -> None:
    """Arguments of FlashAttention-2's signatures that this version does not implement."""
    if dropout_p != 0.0:
        raise NotImplementedError(f"dropout_p is {dropout_p}; attention dropout is not implemented, so it must be 0")
    if alibi_slopes is not None:
        raise NotImplementedError("alibi_slopes is given; ALiBi is not implemented, so it must be None")
    if sinks is not None:
        raise NotImplementedError("sinks is given; attention sinks are not implemented, so it must be None")
    if block_table is not None:
        raise NotImplementedError("block_table is given; paged keys and values are not implemented, so it must be None")


def rows_contiguous(tensor: Tensor) -> Tensor:
    """The kernels read strided operands whose last dimension is contiguous; anything else is copied."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype autocast wants for operands on this device, or None where autocast is off."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


# ---- explanations ----


def _fail_on_types(tensors: tuple[Any, ...], names: tuple[str, ...]) -> NoReturn:
    name, value = next((n, t) for n, t in zip(names, tensors, strict=True) if not isinstance(t, Tensor))
    raise TypeError(f"{name} is {_kind(value)}; it must be a tensor")


def _fail_on_dtypes(tensors: tuple[Tensor, ...], names: tuple[str, ...]) -> NoReturn:
    allowed = ", ".join(_name(dtype) for dtype in DTYPES)
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} is {_name(tensor.dtype)}; supported dtypes are {allowed}")
    came = ", ".join(f"{name} is {_name(tensor.dtype)}" for name, tensor in zip(names, tensors, strict=True))
    raise TypeError(f"{came}; their dtypes must be equal")


def _fail_on_devices(tensors: tuple[Tensor, ...], names: tuple[str, ...]) -> NoReturn:
    came = ", ".join(f"{name} is on {tensor.device}" for name, tensor in zip(names, tensors, strict=True))
    raise ValueError(f"{came}; their devices must be equal")


def _fail_on_ranks(tensors: tuple[Tensor, ...], names: tuple[str, ...], layout: str) -> NoReturn:
    rank = layout.count(",") + 1
    name, tensor = next((n, t) for n, t in zip(names, tensors, strict=True) if t.dim() != rank)
    raise ValueError(f"{name} has shape {_shape(tensor)}; it must be {layout}")


def _fail_on_shapes(q: Tensor, k: Tensor, v: Tensor, rank: int, names: tuple[str, str, str]) -> NoReturn:
    name_q, name_k, name_v = names
    came = f"{name_q} has shape {_shape(q)}, {name_k} {_shape(k)}, {name_v} {_shape(v)}"
    if rank == 4 and q.shape[0] != k.shape[0]:
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
