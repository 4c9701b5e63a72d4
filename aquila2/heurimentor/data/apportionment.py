"""Who gets place n when shares are given: exact integers, evenly spread, any place without the ones before it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

UNITS = 1 << 30


def integer_weights(weights: Mapping[str, float]) -> dict[str, int]:
    """Integers that sum to 2^30 and stand to each other as `weights` do; no positive weight becomes 0.

    Raises:
        ValueError: A weight is negative or not finite, or none is positive.
    """
    if any(not 0 <= weight < float("inf") for weight in weights.values()):
        raise ValueError(f"weights must be finite and not negative, got {dict(weights)}")
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    total = sum(exact.values())
    if not total:
        raise ValueError(f"at least one weight must be positive, got {dict(weights)}")
    wanted = {name: weight * UNITS / total for name, weight in exact.items()}
    result = {name: max(int(share), 1 if share else 0) for name, share in wanted.items()}
    # Largest remainders first; where tiny weights were raised to 1, the largest weights give.
    order = sorted(wanted, key=lambda name: (result[name] - wanted[name], name))
    missing = UNITS - sum(result.values())
    for name in order[: max(missing, 0)]:
        result[name] += 1
    if missing < 0:
        result[max(result, key=lambda name: (result[name], name))] += missing
    return result


@dataclass(frozen=True)
class _Node:
    """A node of the tree: a leaf (its number), or a split of its places between two nodes."""

    weight: int
    leaf: int = -1
    left: _Node | None = None
    right: _Node | None = None
    phase: int = 0


class Apportionment:
    """Spreads the places 0, 1, 2, ... over receivers in proportion to integer weights.

    A binary tree whose leaves are the receivers of positive weight. Of the first m places of a node of weight w, whose
    left child has weight a, (m * a + phase) // w go left, and the rest right. So counts, the receiver of a place and
    the place of a receiver's turn have closed forms, and after sum(weights) places everybody has exactly its weight.

    Args:
        weights: One per receiver, not negative, sum in 1 .. 2^31.
        debts: What each receiver is owed from before, in 1 / sum(weights) of a place; decides who comes first.
    """

    def __init__(self, weights: Sequence[int], debts: Sequence[int] | None = None) -> None:
        self.weights = [int(weight) for weight in weights]
        self.total = sum(self.weights)
        if min(self.weights, default=0) < 0 or not 0 < self.total <= 1 << 31:
            raise ValueError(f"weights must not be negative and sum to 1 .. 2^31, got {self.weights}")
        self._root = _build_tree(self.weights, list(debts or [0] * len(self.weights)), self.total)
        self._paths = dict(_paths(self._root, ()))

    @property
    def depth(self) -> int:
        """Splits between the root and the furthest receiver."""
        return max(len(path) for path in self._paths.values())

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places each receiver gets."""
        rounds, rest = divmod(places, self.total)
        result = [rounds * weight for weight in self.weights]
        stack = [(self._root, rest)]
        while stack:
            node, m = stack.pop()
            if node.left is None or node.right is None:
                result[node.leaf] += m
            else:
                left = (m * node.left.weight + node.phase) // node.weight
                stack += [(node.left, left), (node.right, m - left)]
        return result

    def receivers(self, places: npt.ArrayLike) -> tuple[I64, I64]:
        """Who gets each place, and which turn of that receiver it is. (n,) integers in, two (n,) int64 out."""
        numbers = np.array(places, dtype=np.int64, ndmin=1)
        rounds, rest = numbers // self.total, numbers % self.total
        who, turn = np.empty_like(rest), np.empty_like(rest)
        stack = [(self._root, np.arange(len(rest)), rest)]
        while stack:
            node, indices, m = stack.pop()
            if node.left is None or node.right is None:
                who[indices] = node.leaf
                turn[indices] = rounds[indices] * node.weight + m
                continue
            a, w = node.left.weight, node.weight
            before, after = (m * a + node.phase) // w, ((m + 1) * a + node.phase) // w
            goes_left = after > before
            stack.append((node.left, indices[goes_left], before[goes_left]))
            stack.append((node.right, indices[~goes_left], (m - before)[~goes_left]))
        return who, turn

    def place_of(self, receiver: int, turn: int) -> int:
        """The place of a receiver's turn; the inverse of `receivers`."""
        if receiver not in self._paths:
            raise ValueError(f"receiver {receiver} has no weight")
        rounds, place = divmod(turn, self.weights[receiver])
        for node, to_left in reversed(self._paths[receiver]):
            assert node.left is not None and node.right is not None
            share, phase = (
                (node.left.weight, node.phase) if to_left else (node.right.weight, node.weight - 1 - node.phase)
            )
            # The smallest m with (m * share + phase) // weight = place + 1 is one past the place sought.
            place = -(-(node.weight * (place + 1) - phase) // share) - 1
        return rounds * self.total + place


def _build_tree(weights: list[int], debts: list[int], total: int) -> _Node:
    """Joins the two lightest again and again, as Huffman does: heavy receivers come to stand near the root."""
    heap = [(weight, i, _Node(weight, leaf=i), debts[i]) for i, weight in enumerate(weights) if weight]
    heapq.heapify(heap)
    order = len(weights)
    while len(heap) > 1:
        small, large = heapq.heappop(heap), heapq.heappop(heap)
        weight, debt = small[0] + large[0], small[3] + large[3]
        # What the left child is owed beyond its share of what the node itself is owed, in 1 / weight of a place.
        owed = (weight * small[3] - small[0] * debt) // total
        phase = min(max(weight // 2 + owed, 0), weight - 1)
        heapq.heappush(heap, (weight, order, _Node(weight, left=small[2], right=large[2], phase=phase), debt))
        order += 1
    return heap[0][2]


def _paths(node: _Node, path: tuple[tuple[_Node, bool], ...]) -> list[tuple[int, tuple[tuple[_Node, bool], ...]]]:
    if node.left is None or node.right is None:
        return [(node.leaf, path)]
    return _paths(node.left, (*path, (node, True))) + _paths(node.right, (*path, (node, False)))
