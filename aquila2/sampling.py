"""Choosing the next token: greedy, or temperature, then top-k, then top-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from its logits.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_k: Only the k most likely tokens stay; 0 keeps all.
        top_p: Of those, renormalised, the smallest set of most likely tokens with at least this mass stays.
        seed: Row r of a batch draws from a generator of its own, seeded with seed + r; None draws a seed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0.0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def generators(self, rows: int, device: torch.device) -> list[torch.Generator]:
        """One seeded random generator per row."""
        base = int(torch.randint(2**31, ()).item()) if self.seed is None else self.seed
        return [torch.Generator(device).manual_seed(base + row) for row in range(rows)]


def kept_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (N, V) in fp32 after temperature, top-k and top-p; tokens that fall out are -inf."""
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        dropped = mass_before >= sampling.top_p
        dropped[:, 0] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


def draw(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token id per row of logits (N, V); row i draws from generators[i]."""
    if sampling.temperature == 0.0:
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    probabilities = kept_logits(logits, sampling).softmax(dim=-1)
    return [
        int(torch.multinomial(row, 1, generator=generator).item())
        for row, generator in zip(probabilities, generators, strict=True)
    ]
