"""Rotary position embedding by its definition."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, positions: Tensor | None = None
) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] channels of x (..., seqlen, heads, head_dim) by the angles of their position.

    `cos` and `sin` are (max_position, rotary_dim / 2). Row i stands at position i, or at positions[..., i]. The pair of
    channel i is i + rotary_dim / 2, or with `interleaved` channels 2i and 2i + 1 form a pair. The rotation is done in
    at least fp32 and rounded once.
    """
    seqlen, half = x.shape[-3], cos.shape[-1]
    if positions is None:
        positions = torch.arange(seqlen, device=x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    cos_rows = cos[positions].to(wide).unsqueeze(-2)
    sin_rows = sin[positions].to(wide).unsqueeze(-2)

    rotated, passed = x[..., : 2 * half].to(wide), x[..., 2 * half :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :half], rotated[..., half:]
    new_first = first * cos_rows - second * sin_rows
    new_second = second * cos_rows + first * sin_rows
    if interleaved:
        turned = torch.stack((new_first, new_second), dim=-1).flatten(-2)
    else:
        turned = torch.cat((new_first, new_second), dim=-1)
    return torch.cat((turned.to(x.dtype), passed), dim=-1)
