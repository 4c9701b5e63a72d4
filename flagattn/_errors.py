"""Sentences for what the checks of the public functions do not look for, since a look at every call would cost time.

A tensor that is not dense, or on a device without kernels, and a number of a wrong type or beyond 64 bits all raise
somewhere below, in torch's words. The arguments are looked at then, and not before.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

_DEVICES = ("cpu", "cuda", "meta")
_TORCHS_WORDS = re.compile(r"Expected a value of type '(.+?)' for argument '(\w+)' but instead found type '(.+?)'")


def explained(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, whose errors about an argument that no check looks at name that argument."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            better = _explanation(function, args, kwargs, error)
            if better is None:
                raise
            raise better from error

    # Dynamo counts recompilations by code object, and these would all share one: each function gets its own, and with
    # it its own name in tracebacks and profiles.
    own: Any = call
    own.__code__ = own.__code__.replace(co_name=function.__name__)
    return call


def _explanation(function: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> Exception | None:
    try:
        named = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # missing or unknown arguments, as the error says
        return None
    for name, tensor in _tensors(named):
        better = _not_dense(name, tensor)
        if better is not None:
            return better
    words = _TORCHS_WORDS.search(str(error))
    if words is not None:
        for name, value in named.items():
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                return ValueError(f"{name} is an integer of {value.bit_length()} bits; it must fit into 64")
        expected, name, found = words.groups()
        return TypeError(f"{name} is of type {found}; it must be of type {expected}")
    if "negation" in str(error).lower() or "MathBitsFallback" in str(error):
        for name, tensor in _tensors(named):
            if tensor.is_neg():
                return ValueError(f"{name} is a view that torch negates when it is read; give {name}.resolve_neg()")
    return None


def _tensors(named: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in named.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(value) if isinstance(part, Tensor))


def _not_dense(name: str, tensor: Tensor) -> Exception | None:
    if tensor.is_nested:
        return TypeError(
            f"{name} is a nested tensor; it must be dense, and sequences of different lengths are for the functions "
            "that take cu_seqlens"
        )
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.").lstrip("_")
        return TypeError(f"{name} has the layout {layout}; it must be dense, so give {name}.to_dense()")
    if tensor.is_quantized:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TypeError(f"{name} is quantized ({dtype}); it must hold plain numbers, so give {name}.dequantize()")
    if tensor.device.type not in _DEVICES:
        return NotImplementedError(f"{name} is on {tensor.device}; there are kernels for CPU and CUDA")
    return None
