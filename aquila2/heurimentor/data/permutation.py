"""Keyed permutations of 0 .. size - 1 that take no memory: any place can be asked, forwards and backwards."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# Halves of few values hold little randomness per round; many rounds make every order of few places equally likely.
SMALL, ROUNDS_SMALL, ROUNDS = 1 << 12, 32, 8
MAX_SIZE = 1 << 48


class Permutation:
    """A bijection of 0 .. size - 1 chosen by a key.

    A Feistel network over pairs (x, y) with x < a, y < b, a = ceil(sqrt(size)), b = ceil(size / a). Each round adds a
    keyed hash of one half to the other, modulo its size, which the inverse subtracts. a * b exceeds size by less than
    a; a place that lands in the excess goes through the network again until it does not (cycle walking).

    Args:
        size: Number of places, 1 to 2^48.
        key: What chooses the permutation; parts are told apart, so ("ab", "c") is not ("a", "bc").
    """

    def __init__(self, size: int, *key: int | str) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"size must lie in 1 .. 2^48, got {size}")
        self.size = size
        self.a = math.isqrt(size - 1) + 1
        self.b = -(-size // self.a)
        rounds = ROUNDS_SMALL if size < SMALL else ROUNDS
        digest = hashlib.shake_256(repr(key).encode()).digest(8 * rounds)
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def forward(self, places: npt.ArrayLike) -> I64:
        """Where places go. (n,) integers in, (n,) int64 out."""
        return self._walk(places, range(len(self._keys)), 1)

    def inverse(self, rows: npt.ArrayLike) -> I64:
        """Which places go there. (n,) integers in, (n,) int64 out."""
        return self._walk(rows, range(len(self._keys) - 1, -1, -1), -1)

    def _walk(self, values: npt.ArrayLike, rounds: range, sign: int) -> I64:
        result: I64 = np.array(values, dtype=np.int64, ndmin=1)
        if result.size and (result.min() < 0 or result.max() >= self.size):
            raise ValueError(f"values must lie in 0 .. {self.size - 1}")
        outside: Any = slice(None)
        while True:
            result[outside] = self._network(result[outside], rounds, sign)
            outside = np.flatnonzero(result >= self.size)
            if not len(outside):
                return result

    def _network(self, values: I64, rounds: range, sign: int) -> I64:
        x, y = values // self.b, values % self.b
        for i in rounds:
            if i % 2:
                y = (y + sign * self._hash(x, i, self.b)) % self.b
            else:
                x = (x + sign * self._hash(y, i, self.a)) % self.a
        result: I64 = x * self.b + y
        return result

    def _hash(self, half: I64, i: int, size: int) -> I64:
        """Mixes half and the round's key like splitmix64 and brings it below `size` (under 2^32: no bias to see)."""
        z: U64 = half.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + self._keys[i]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        below: I64 = (z % np.uint64(size)).astype(np.int64)
        return below
