"""A layer of transformers' dynamic cache that appends in place instead of copying itself for every token."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

import flagattn

LEAST_ROOM = 64  # rows
_native: Any = flagattn  # its results depend on flags


class _Room:
    """Rows (batch, seqlen, heads, head_dim) at the front of a longer buffer.

    Whoever holds `rows`, the latest ones handed out as (batch, heads, seqlen, head_dim), may write behind them; earlier
    ones are never written to.
    """

    def __init__(self, rows: Tensor, new: Tensor) -> None:
        used = rows.shape[2] if rows.dim() == 4 else 0
        batch, heads, count, head_dim = new.shape
        capacity = used + count + max(LEAST_ROOM, (used + count) // 4)
        self.buffer = new.new_empty((batch, capacity, heads, head_dim))
        self._heads_first = self.buffer.transpose(1, 2)
        self.rows = self._heads_first.narrow(2, 0, used)
        if used:
            self.rows.copy_(rows)

    def takes(self, rows: Any, new: Tensor) -> bool:
        """Whether `new` fits behind `rows`: a copy of a cache, or one that was cropped or reordered, needs its own."""
        return (
            self.rows is rows
            and rows.shape[2] + new.shape[2] <= self.buffer.shape[1]
            and (torch.is_inference_mode_enabled() or not self.buffer.is_inference())
        )

    def extended(self, count: int) -> Tensor:
        """The rows and `count` more, which have been or will be written."""
        self.rows = self._heads_first.narrow(2, 0, self.rows.shape[2] + count)
        return self.rows


def _room_for(rows: Any, new: Tensor, room: _Room | None) -> _Room:
    return room if room is not None and room.takes(rows, new) else _Room(rows, new)


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
        for room, new in zip(self._make_room(key_states, value_states), (key_states, value_states)):
            used, count = room.rows.shape[2], new.shape[2]
            room.extended(count).narrow(2, used, count).copy_(new)
        return self._handed_out()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Appends k and v and attends to all rows, in one call; all operands are (batch, seqlen, heads, head_dim).

        `options` are those of flagattn.flash_attn_with_kvcache. No gradient.
        """
        keys, values = self._make_room(k.transpose(1, 2), v.transpose(1, 2))
        used = torch.full((q.shape[0],), keys.rows.shape[2], dtype=torch.int32, device=q.device)
        out = _native.flash_attn_with_kvcache(q, keys.buffer, values.buffer, k, v, cache_seqlens=used, **options)
        keys.extended(k.shape[1])
        values.extended(k.shape[1])
        self._handed_out()
        return cast(Tensor, out)

    def _make_room(self, keys: Tensor, values: Tensor) -> tuple[_Room, _Room]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._key_room = _room_for(self.keys, keys, self._key_room)
        self._value_room = _room_for(self.values, values, self._value_room)
        return self._key_room, self._value_room

    def _handed_out(self) -> tuple[Tensor, Tensor]:
        assert self._key_room is not None and self._value_room is not None
        self.keys, self.values = self._key_room.rows, self._value_room.rows
        return self._key_room.rows, self._value_room.rows


def growing(cache: Any, index: int) -> GrowingLayer | None:
    """The cache's layer, made a growing one if it is a plain dynamic one; None where it is of another kind."""
    layers: Any = getattr(cache, "layers", ())
    if index >= len(layers) or getattr(cache, "offloading", False):
        return None
    layer = layers[index]
    if type(layer) is DynamicLayer:
        layers[index] = layer = GrowingLayer.of(layer)
    return layer if type(layer) is GrowingLayer else None
