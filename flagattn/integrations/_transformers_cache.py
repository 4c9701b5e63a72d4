"""A layer of transformers' dynamic cache that appends in place instead of copying itself for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 64  # rows


class _Room:
    """Rows (batch, heads, seqlen, head_dim) at the front of a longer buffer that keeps a row's heads together.

    Whoever holds `rows`, the latest ones handed out, may write behind them; earlier ones are never written to.
    """

    def __init__(self, rows: Tensor, new: Tensor) -> None:
        used = rows.shape[2] if rows.dim() == 4 else 0
        batch, heads, count, head_dim = new.shape
        capacity = used + count + max(LEAST_ROOM, (used + count) // 4)
        self.buffer = new.new_empty((batch, capacity, heads, head_dim)).transpose(1, 2)
        self.rows = self.buffer.narrow(2, 0, used)
        if used:
            self.rows.copy_(rows)

    def takes(self, rows: Tensor, new: Tensor) -> bool:
        """Whether `new` fits behind `rows`: a copy of a cache, or one that was cropped or reordered, needs its own."""
        return (
            self.rows is rows
            and rows.shape[2] + new.shape[2] <= self.buffer.shape[2]
            and (torch.is_inference_mode_enabled() or not self.buffer.is_inference())
        )

    def append(self, new: Tensor) -> Tensor:
        used, count = self.rows.shape[2], new.shape[2]
        self.buffer.narrow(2, used, count).copy_(new)
        self.rows = self.buffer.narrow(2, 0, used + count)
        return self.rows


def _appended(rows: Any, new: Tensor, room: _Room | None) -> tuple[Tensor, _Room]:
    if room is None or not room.takes(rows, new):
        room = _Room(rows, new)
    return room.append(new), room


class GrowingLayer(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """transformers' DynamicLayer in every respect but `update`, which copies the cache only where room has run out."""

    _key_room: _Room | None = None
    _value_room: _Room | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> GrowingLayer:
        """A layer with what the other one holds."""
        growing = cls()
        vars(growing).update(vars(layer))
        return growing

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (batch, heads, seqlen, head_dim) to both and returns all of them."""
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad)
        ):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, self._key_room = _appended(self.keys, key_states, self._key_room)
        values, self._value_room = _appended(self.values, value_states, self._value_room)
        self.keys, self.values = keys, values
        return keys, values


def let_grow(cache: Any, layer: int) -> None:
    """Makes the cache's layer a growing one if it is a plain dynamic one; everything else stays what it is."""
    layers: Any = getattr(cache, "layers", ())
    if layer < len(layers) and type(layers[layer]) is DynamicLayer and not getattr(cache, "offloading", False):
        layers[layer] = GrowingLayer.of(layers[layer])
