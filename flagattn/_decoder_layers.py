"""The halves of a decoder layer on few rows, as generation has them: one call each for what would be many."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from flagattn import _load
from flagattn._autograd import below_autograd

_load.load()
_ops: Any = torch.ops.flagattn


def few_row_gated_mlp(x: Tensor, norm: tuple[Tensor, float], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """``down(swiglu(gate(n), up(n)))`` of ``n = rms_norm(x)``, with the bits of `few_row_linear` and the fused ops.

    For callers in this package that have looked at their operands; only the op checks, and there is no gradient.

    Args:
        x: (batch, seqlen, features), contiguous, on the CPU.
        norm: weight and eps of the normalisation, which rounds as Llama does.
        weights: of gate, up and down, (out_features, in_features), whose rows are contiguous.
        biases: theirs, or none.

    Returns:
        y like x.
    """
    with below_autograd():
        return cast(Tensor, _ops.few_row_gated_mlp.default(x, *norm, weights, biases))


def few_row_attention(
    x: Tensor,
    norm: tuple[Tensor, float],
    weights: list[Tensor],
    biases: list[Tensor],
    out: tuple[Tensor, Tensor | None],
    rotation: tuple[Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    seqlens: Tensor,
    leftpad: Tensor | None,
    softmax_scale: float,
    window: tuple[int, int],
    softcap: float,
) -> Tensor:
    """``out(attention(rotated q, keys, values))`` of ``n = rms_norm(x)``, whose rotated k and v go into the caches.

    The bits are those of `few_row_linear` and the ops that stand for the parts. For callers in this package that have
    looked at their operands; only the op checks, and there is no gradient.

    Args:
        x: (batch, seqlen, features), contiguous, on the CPU.
        norm: weight and eps of the normalisation, which rounds as Llama does.
        weights: of q, k and v, (out_features, in_features), whose rows are contiguous.
        biases: theirs, or none.
        out: weight and bias of the last linear map.
        rotation: cosines and sines, (batch or 1, seqlen, head_dim / 2).
        caches: keys and values, (batch, rows, heads_k, head_dim); rows are written behind `seqlens`.
        seqlens: (batch,), int32.
        leftpad: (batch,), int32, the cache's rows that do not count; or None.
        softmax_scale, softcap: of the scores.
        window: (left, right), where -1 is unbounded.

    Returns:
        y like x.
    """
    numbers = (softmax_scale, *window, softcap)
    with below_autograd():
        y = _ops.few_row_attention.default(
            x, *norm, weights, biases, *out, *rotation, *caches, seqlens, leftpad, *numbers
        )
    for cache in caches:
        if not cache.is_inference():
            torch.autograd.graph.increment_version(cache)  # so that a graph that saved it notices
    return cast(Tensor, y)


@torch.library.register_fake("flagattn::few_row_gated_mlp")
def _few_row_gated_mlp_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("flagattn::few_row_attention")
def _few_row_attention_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)
