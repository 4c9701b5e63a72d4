"""Rotary frequencies of Aquila2: plain, linear interpolation, dynamic NTK."""

from __future__ import annotations

import torch
from torch import Tensor

from aquila2.config import Aquila2Config


def rope_tables(config: Aquila2Config, length: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles of positions 0 .. length - 1.

    angle[p, i] = p / (factor * theta^(2i / D)) with factor 1 except under linear scaling. Dynamic NTK scaling leaves
    lengths up to max_position_embeddings M alone and beyond them replaces theta by
    theta * (factor * length / M - (factor - 1))^(D / (D - 2)). The angles are fp32, in the order of operations of the
    published modelling code, so that they equal its angles to the last bit.

    Args:
        config: Head dim, theta and scaling.
        length: Number of positions, which is also the length that dynamic scaling looks at.
        device: Where the tables go.

    Returns:
        cos and sin, each (length, D / 2) fp32.
    """
    dim, theta, factor = config.head_dim, config.rope_theta, config.rope_scaling_factor
    if config.rope_scaling == "dynamic":
        reach = max(length, config.max_position_embeddings) / config.max_position_embeddings
        theta = theta * (factor * reach - (factor - 1)) ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    inverse = 1.0 / (theta**exponents)
    if config.rope_scaling == "linear":
        inverse = inverse / factor
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * inverse  # (length, D / 2)
    return angles.cos(), angles.sin()
