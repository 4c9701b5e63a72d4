"""Attention over a cache layer that grows in place: whether there is one, and how queries attend then."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from flagattn.integrations import _transformers_layouts as layouts

# What the attention function takes and `appending` leaves to it.
_OTHER_OPTIONS = ("is_causal", "s_aux", "cu_seq_lens_q", "cu_seq_lens_k", "cache")


def growing_layer(cache: Any, index: int) -> Any:
    """`growing` of the module on caches, which can only be imported where there is a transformers."""
    return _growing()(cache, index)


@functools.cache
def _growing() -> Callable[[Any, int], Any]:
    from flagattn.integrations._transformers_cache import growing

    return growing


def appending(
    module: nn.Module,
    layer: Any,
    k: Any,
    v: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> dict[str, Any] | None:
    """How queries attend where k and v, or rows like them, go behind those of a growing cache layer.

    None where there is more to it than `GrowingLayer.attend` serves.
    """
    plain = not any(kwargs.get(name) is not None for name in _OTHER_OPTIONS) and not kwargs.get("output_attentions")
    if not (plain and layer.appends(k, v)):
        return None
    used, count = layer.get_seq_length(), k.shape[2]
    starts = None
    if attention_mask is not None:
        if attention_mask.dim() != 2 or attention_mask.shape[1] != used + count:
            return None
        padding = layouts.padding_of(attention_mask)
        if padding.starts is None or attention_mask.shape[1] - padding.shortest > used:
            return None  # the op wants every sequence to begin among the rows that are there
        starts = padding.starts
    causal = bool(getattr(module, "is_causal", True))
    window = (-1, -1)
    if sliding_window is not None and used + count > sliding_window:
        window = (sliding_window - 1, 0 if causal else sliding_window - 1)
    scores = {"softmax_scale": scaling, "softcap": softcap or 0.0}
    return {"causal": causal, "window_size": window, "leftpad": starts, **scores}
