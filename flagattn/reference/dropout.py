"""Which attention weights dropout keeps: Philox-4x32-10 by its definition, in 64-bit integers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """The four random words of every counter, all of 32 bits in int64 tensors."""
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def dropout_keep_mask(
    rng_state: Tensor, dropout_p: float, batch: int, heads: int, seqlen_q: int, seqlen_k: int
) -> Tensor:
    """True where the weight of (batch, head, row, key) is kept: its random word is at least dropout_p * 2^32.

    The word is number key % 4 of Philox-4x32-10 with the key rng_state[0] and the counter (key / 4, row, rng_state[1] +
    batch * heads + head), of 32, 32 and 64 bits, lowest first.
    """
    seed, offset = (int(value) & (2**64 - 1) for value in rng_state.tolist())
    streams = [(offset + index) & (2**64 - 1) for index in range(batch * heads)]
    shape = (batch * heads, seqlen_q, (seqlen_k + 3) // 4)
    words = philox(
        (
            torch.arange(shape[2]).expand(shape),
            torch.arange(shape[1])[:, None].expand(shape),
            torch.tensor([stream & _LOW for stream in streams], dtype=torch.int64)[:, None, None].expand(shape),
            torch.tensor([stream >> 32 for stream in streams], dtype=torch.int64)[:, None, None].expand(shape),
        ),
        (seed & _LOW, seed >> 32),
    )
    in_order = torch.stack(words, dim=-1).flatten(-2)[..., :seqlen_k]
    return (in_order >= math.ceil(dropout_p * 2**32)).view(batch, heads, seqlen_q, seqlen_k)


def _product(multiplier: int, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of a product of two words; no step leaves 49 bits."""
    upper, lower = multiplier * (factor >> 16), multiplier * (factor & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _LOW
    return high, low
