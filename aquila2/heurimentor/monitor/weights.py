"""What weights look like from inside: their spread per kind and layer, and its trajectory.

A trajectory compares two moments of a run: for every kind of weight the standard deviations of its layers are a curve
over the layers, and the Fréchet distance of two such curves, per thousand million tokens between them, says how fast
that kind still moves (Aquila2 technical report, 2024, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.values import whole

KINDS = {
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
}
BILLION = 1e9


@torch.no_grad()
def weight_moments(model: Aquila2ForCausalLM) -> dict[str, list[tuple[float, float]]]:
    """Mean and standard deviation of every kind of weight, layer by layer; kinds that the model lacks are left out.

    Ranks that share the weights have to ask together.
    """
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for layer in model.model.layers:
        weights = dict(layer.named_parameters())
        for kind, name in KINDS.items():
            if name in weights:
                std, mean = torch.std_mean(whole(weights[name]).float(), correction=0)
                found[kind].append((float(mean), float(std)))
    return {kind: moments for kind, moments in found.items() if moments}


def pooled(moments: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of all layers of a kind together; its layers are equally large."""
    mean = math.fsum(m for m, _ in moments) / len(moments)
    square = math.fsum(s * s + (m - mean) ** 2 for m, s in moments) / len(moments)
    return mean, math.sqrt(square)


def frechet(first: Sequence[float], second: Sequence[float]) -> float:
    """The discrete Fréchet distance of two curves over the layers, whose points are (layer, value).

    The least, over all ways to walk along both without going back, of the largest distance on the way.

    Raises:
        ValueError: A curve without points.
    """
    if not first or not second:
        raise ValueError("a curve must have at least one point")
    row: list[float] = []
    for i, a in enumerate(first):
        before, row = row, []
        for j, b in enumerate(second):
            reached = row[-1:] + before[j : j + 1] + before[max(j - 1, 0) : j]
            row.append(max(math.hypot(i - j, a - b), min(reached, default=0.0)))
    return row[-1]


def trajectory(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], tokens: int
) -> dict[str, float]:
    """How far the standard deviations of every kind moved, per thousand million tokens.

    Args:
        before, after: Per kind, the standard deviation of every layer.
        tokens: Trained in between, at least 1.
    """
    return {kind: frechet(before[kind], after[kind]) * BILLION / tokens for kind in after if kind in before}
