"""Which attention function takes which feature, found by doing: each is called with it, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flagattn

SEQLEN = 5
OFFSETS = torch.tensor([0, SEQLEN], dtype=torch.int32)


def _operands(*heads: int, packed: bool = False, grad: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(SEQLEN, count, 8) if packed else (1, SEQLEN, count, 8) for count in heads]
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


def _paged(tensors: list[Tensor]) -> list[Tensor]:
    """(1, seqlen, heads, head_dim) -> one page for each token, (seqlen, 1, heads, head_dim)."""
    return [tensor.reshape(SEQLEN, 1, *tensor.shape[-2:]) for tensor in tensors]


def _dense(**features: Any) -> Any:
    q, k, v = _operands(2, 1, 1)
    return flagattn.flash_attn_func(q, k, v, **features)


def _packed(**features: Any) -> Any:
    paged = "block_table" in features
    q, k, v = _operands(2, 1, 1, packed=True, grad=not paged)
    k, v = _paged([k, v]) if paged else (k, v)
    return flagattn.flash_attn_varlen_func(q, k, v, OFFSETS, OFFSETS, SEQLEN, SEQLEN, **features)


def _sdpa(**features: Any) -> Any:
    q, k, v = (tensor.transpose(1, 2) for tensor in _operands(2, 2, 2))
    return flagattn.scaled_dot_product_attention(q, k, v, **features)


def _piecewise(**features: Any) -> Any:
    q1, k1, q2, k2, v = _operands(2, 1, 2, 1, 1)
    return flagattn.piecewise_attn_func(q1, k1, q2, k2, v, 2, **features)


def _piecewise_packed(**features: Any) -> Any:
    q1, k1, q2, k2, v = _operands(2, 1, 2, 1, 1, packed=True)
    return flagattn.piecewise_attn_varlen_func(q1, k1, q2, k2, v, OFFSETS, OFFSETS, SEQLEN, SEQLEN, 2, **features)


def _cached(**features: Any) -> Any:
    q, *cache = _operands(2, 1, 1, grad=False)
    k_cache, v_cache = _cache(cache, features)
    return flagattn.flash_attn_with_kvcache(q, k_cache, v_cache, **features)


def _piecewise_cached(**features: Any) -> Any:
    q1, q2, *cache = _operands(2, 2, 1, 1, 1, grad=False)
    k1_cache, k2_cache, v_cache = _cache(cache, features)
    features = {"causal": False} | features
    return flagattn.piecewise_attn_with_kvcache(q1, q2, k1_cache, k2_cache, v_cache, 2, **features)


def _cache(cache: list[Tensor], features: dict[str, Any]) -> list[Tensor]:
    return _paged(cache) if "block_table" in features else cache


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "flash_attn_func": _dense,
    "flash_attn_varlen_func": _packed,
    "scaled_dot_product_attention": _sdpa,
    "piecewise_attn_func": _piecewise,
    "piecewise_attn_varlen_func": _piecewise_packed,
    "flash_attn_with_kvcache": _cached,
    "piecewise_attn_with_kvcache": _piecewise_cached,
}

# A feature -> the arguments that ask for it; a function has it where it takes one of them.
FEATURES: dict[str, list[dict[str, Any]]] = {
    "causal": [{"causal": True}, {"is_causal": True}],
    "window": [{"window_size": (1, 0)}],
    "softcap": [{"softcap": 0.5}],
    "LSE": [{"return_lse": True}],
    "mask or bias": [{"attn_mask": torch.linspace(-1, 1, SEQLEN * SEQLEN).view(SEQLEN, SEQLEN)}],
    "ALiBi": [{"alibi_slopes": torch.tensor([0.5, 0.25])}],
    "sinks": [{"sinks": torch.tensor([0.5, 0.25])}],
    "dropout": [{"dropout_p": 0.5}],
    "pages": [{"block_table": torch.arange(SEQLEN, dtype=torch.int32).flip(0)[None]}],
}


def _outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """ "no", "forward" or "gradient"; a feature that runs and changes nothing is an error of this page."""
    try:
        result = call(**arguments)
    except (TypeError, NotImplementedError):
        return "no"
    results = result if isinstance(result, tuple) else (result,)
    if len(results) == 1 and torch.equal(results[0], call()):
        raise AssertionError(f"{call.__name__} with {arguments} gives what it gives without")
    if not all(tensor.requires_grad for tensor in results):
        return "forward"
    sum(tensor.sum() for tensor in results).backward()
    return "gradient"


def matrix() -> list[tuple[str, list[str]]]:
    """Of every function: its name and, in the order of FEATURES, "no", "forward" or "gradient"."""
    rank = ("no", "forward", "gradient")
    return [
        (name, [max((_outcome(call, ask) for ask in asks), key=rank.index) for asks in FEATURES.values()])
        for name, call in FUNCTIONS.items()
    ]
