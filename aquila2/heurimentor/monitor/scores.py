"""The largest attention scores before the softmax: those of a step's first rows, and those of held-out ones.

The kernels keep row maxima to themselves, and their LSE only bounds them, by the logarithm of the keys. So queries and
keys of a few layers are multiplied once more, in fp32: an exact maximum, of few rows. Growing scores come before a
divergence that a too large learning rate makes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from aquila2.model import Aquila2ForCausalLM
from aquila2.training.data import Batch

QUERY_BLOCK = 256


def sampled_layers(layers: int) -> list[int]:
    """The first, the middle and the last layer."""
    return sorted({0, layers // 2, layers - 1})


class StepScores:
    """Watches the sampled layers in training passes: the first rows of a step's first micro-batch.

    Args:
        model: Stays watched; its passes must not be compiled.
        rows: How many; 0 watches nothing.
        clock: Seconds.

    Attributes:
        seconds: What looking has taken of the step's passes, whatever its rows; on a GPU without the device's part.
    """

    def __init__(self, model: Aquila2ForCausalLM, rows: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._rows, self._clock = rows, clock
        self.seconds = 0.0
        self._bounds: list[int] = []
        self._found: dict[int, Tensor] = {}
        attentions = _attentions(model)
        for layer in sampled_layers(len(attentions)) if rows else []:
            attentions[layer].observer = self._look

    def begin(self, batches: Sequence[Batch]) -> None:
        """Looks at the first of these micro-batches, whose passes come next."""
        self._found, self._bounds, self.seconds = {}, [], 0.0
        if batches and batches[0].num_targets:  # else it is one that only keeps step with other ranks
            tokens = batches[0].input_ids[: self._rows].numel()
            self._bounds = [end for end in batches[0].cu_seqlens.tolist() if end <= tokens]

    def take(self) -> dict[int, float]:
        """What was seen, by layers; those of which this rank has nothing are left out."""
        return {layer: float(score) for layer, score in self._found.items()}

    def _look(self, layer: int, q: Tensor, k: Tensor) -> None:
        # Passes without gradient are not the step's, and what is computed anew was seen before.
        if torch.is_grad_enabled() and self._bounds and layer not in self._found:
            started = self._clock()
            self._found[layer] = _largest_score(q[: self._rows], k[: self._rows], self._bounds)
            self.seconds += self._clock() - started


@torch.no_grad()
def largest_scores(model: Aquila2ForCausalLM, batches: Iterable[Batch]) -> dict[int, float]:
    """The largest attention score before the softmax that tokens of `batches` have in the sampled layers."""
    attentions = _attentions(model)
    largest: dict[int, Tensor] = {}
    layers = sampled_layers(len(attentions))
    before = {layer: attentions[layer].observer for layer in layers}
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            bounds = batch.cu_seqlens.tolist()

            def look(layer: int, q: Tensor, k: Tensor, bounds: list[int] = bounds) -> None:
                score = _largest_score(q, k, bounds)
                largest[layer] = torch.maximum(largest[layer], score) if layer in largest else score

            for layer in layers:
                attentions[layer].observer = look
            model.loss(batch.input_ids, batch.targets, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen)
    finally:
        for layer in layers:
            attentions[layer].observer = before[layer]
        model.train(was_training)
    return {layer: float(score) for layer, score in largest.items()}


def largest_of(ranks: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The largest score of every layer, of which ranks may have some heads, some rows or nothing; NaN comes first."""
    found: dict[int, float] = {}
    for scores in ranks:
        for layer, score in scores.items():
            found[layer] = max(found.get(layer, -math.inf), score, key=lambda value: (math.isnan(value), value))
    return dict(sorted(found.items()))


def _attentions(model: Aquila2ForCausalLM) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]


@torch.no_grad()
def _largest_score(q: Tensor, k: Tensor, bounds: Sequence[int]) -> Tensor:
    """The largest q.k / sqrt(D) under the causal mask of each document, NaN where there is one.

    Args:
        q: (B, S, Hq, D).
        k: (B, S, Hk, D).
        bounds: Where documents begin in the B S tokens, and the end of the last.
    """
    q, k = q.flatten(0, 1), k.flatten(0, 1)
    group = q.shape[1] // k.shape[1]
    largest = torch.full((), -math.inf, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        for start, end in pairwise(bounds):
            keys = k[start:end].float().permute(1, 2, 0)  # (Hk, D, s)
            for first in range(start, end, QUERY_BLOCK):
                last = min(first + QUERY_BLOCK, end)
                queries = q[first:last].float().unflatten(1, (-1, group)).permute(1, 2, 0, 3)  # (Hk, G, b, D)
                scores = queries @ keys[:, None, :, : last - start]  # (Hk, G, b, keys)
                later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + first - start)
                largest = torch.maximum(largest, scores.masked_fill_(later, -math.inf).max())
    return largest / math.sqrt(q.shape[-1])
