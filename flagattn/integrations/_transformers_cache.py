"""A layer of transformers' dynamic cache that appends in place instead of copying itself for every token.

It does so where that is certain to give what transformers' own layer gives, and leaves everything else to that one:
gradients, compiled graphs, the first rows, and rows of another shape, dtype or device than those before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from flagattn._cache_calls import append_and_attend

LEAST_ROOM = 64  # rows


class Rows(Protocol):
    """What of new rows (batch, heads, seqlen, head_dim) decides whether they can be appended."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


class _Room:
    """Rows (batch, heads, seqlen, head_dim) at the front of a longer buffer, which is (batch, seqlen, heads, head_dim).

    Whoever holds `rows`, the latest ones handed out, may write behind them. Rows handed out earlier are the same
    memory: nothing here writes to them, but who changes them in place changes the cache's.
    """

    def __init__(self, rows: Tensor, count: int) -> None:
        batch, heads, used, head_dim = rows.shape
        capacity = used + count + max(LEAST_ROOM, (used + count) // 4)
        self.buffer = rows.new_empty((batch, capacity, heads, head_dim))
        self._heads_first = self.buffer.transpose(1, 2)
        self.rows = self._heads_first.narrow(2, 0, used)
        self.rows.copy_(rows)

    def has(self, rows: Tensor, count: int) -> bool:
        """Whether these are the rows here and `count` more may be written behind them."""
        return (
            self.rows is rows
            and rows.shape[2] + count <= self.buffer.shape[1]
            and (torch.is_inference_mode_enabled() or not self.buffer.is_inference())
        )

    def extended(self, count: int) -> Tensor:
        """The rows and `count` more, which have been or will be written."""
        self.rows = self._heads_first.narrow(2, 0, self.rows.shape[2] + count)
        return self.rows


_ROOMS = {"keys": "_key_room", "values": "_value_room"}


class GrowingLayer(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """transformers' DynamicLayer; `update` copies only where room has run out, if `appends` says so.

    The rows it hands out then are views of its buffers, which are not contiguous. A copy, shallow or deep, and a pickle
    hold the rows without the room behind them.
    """

    keys: Any  # tensors from the first rows on
    values: Any
    _key_room: _Room | None = None
    _value_room: _Room | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> GrowingLayer:
        """A layer with what the other one holds."""
        growing = cls()
        vars(growing).update(vars(layer))
        return growing

    def appends(self, keys: Rows, values: Rows) -> bool:
        """Whether these (batch, heads, seqlen, head_dim) would be written behind the rows there are.

        Head dimensions that are no multiple of 8 are left out: attention copies such rows with padding every time.
        """
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and self.get_seq_length() > 0
            and self.keys.shape[2] == self.values.shape[2]
            and keys.shape[2] == values.shape[2]
            and _continues(self.keys, keys)
            and _continues(self.values, values)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (batch, heads, seqlen, head_dim) to both and returns all of them."""
        if not self.appends(key_states, value_states):
            return cast(tuple[Tensor, Tensor], super().update(key_states, value_states, *args, **kwargs))
        count = key_states.shape[2]
        for room, new in zip(self._rooms(count), (key_states, value_states)):
            used = room.rows.shape[2]
            room.extended(count).narrow(2, used, count).copy_(new)
        return self._handed_out()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Appends k and v and attends to all rows, in one call; all operands are (batch, seqlen, heads, head_dim).

        Only where `appends` says so of k and v, and they are memory of their own. `options` are the last ones of
        `append_and_attend`.
        """
        return self.append(
            q, k.shape[1], lambda *caches: append_and_attend(q, caches[:2], (k, v), caches[2], **options)
        )

    def append(self, q: Tensor, count: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Calls attend(key buffer, value buffer, the rows in use (batch,)), which appends `count` rows to both.

        The buffers are (batch, seqlen, heads, head_dim); q tells batch and device.
        """
        keys, values = self._rooms(count)
        lengths = _lengths if type(q) is Tensor else _lengths.__wrapped__  # nothing traced is kept
        out = attend(keys.buffer, values.buffer, lengths(q.shape[0], keys.rows.shape[2], q.device))
        keys.extended(count)
        values.extended(count)
        self._handed_out()
        return out

    def reset(self) -> None:
        """Forgets the rows and frees their room."""
        super().reset()
        self._key_room = self._value_room = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Rows from elsewhere (cropped, reordered, joined) free the room of those before."""
        super().__setattr__(name, value)
        if name in _ROOMS:
            super().__setattr__(_ROOMS[name], None)

    def __getstate__(self) -> dict[str, Any]:
        state = self._state()
        for name in _ROOMS:
            rows = state.get(name)
            if isinstance(rows, Tensor) and not rows.requires_grad:
                state[name] = rows.clone(memory_format=torch.contiguous_format)  # without the buffer they are part of
        return state

    def __copy__(self) -> GrowingLayer:
        twin = type(self)()
        vars(twin).update(self._state())
        return twin

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _ROOMS.values()}

    def _rooms(self, count: int) -> tuple[_Room, _Room]:
        """Those of the keys and values, with room for `count` more."""
        key_room, value_room = self._key_room, self._value_room
        if key_room is None or not key_room.has(self.keys, count):
            self._key_room = key_room = _Room(self.keys, count)
        if value_room is None or not value_room.has(self.values, count):
            self._value_room = value_room = _Room(self.values, count)
        return key_room, value_room

    def _handed_out(self) -> tuple[Tensor, Tensor]:
        rooms = self._key_room, self._value_room
        assert rooms[0] is not None and rooms[1] is not None
        vars(self).update(keys=rooms[0].rows, values=rooms[1].rows)  # past __setattr__, which would free the rooms
        return rooms[0].rows, rooms[1].rows


@functools.lru_cache(maxsize=1)  # all layers of a forward pass ask for the same ones
def _lengths(batch: int, rows: int, device: torch.device) -> Tensor:
    return torch.full((batch,), rows, dtype=torch.int32, device=device)


def _continues(rows: Tensor, new: Rows) -> bool:
    (batch, heads, _, head_dim), given = rows.shape, new.shape
    return (
        (batch, heads, head_dim) == (given[0], given[1], given[3])
        and head_dim % 8 == 0
        and rows.dtype == new.dtype
        and rows.device == new.device
    )


def growing(cache: Any, index: int) -> GrowingLayer | None:
    """The cache's layer, made a growing one if it is a plain dynamic one; else None, as for caches of another kind.

    A cache or layer with an `update` of its own is of another kind: it wants to be asked.
    """
    layers: Any = getattr(cache, "layers", ())
    if index >= len(layers) or getattr(cache, "offloading", False) or not _updates_as(cache, Cache):
        return None
    layer = layers[index]
    if type(layer) is DynamicLayer and _updates_as(layer, DynamicLayer):
        layers[index] = layer = GrowingLayer.of(layer)
    return layer if type(layer) is GrowingLayer and _updates_as(layer, GrowingLayer) else None


def _updates_as(instance: Any, kind: type) -> bool:
    return getattr(getattr(instance, "update", None), "__func__", None) is getattr(kind, "update", None)
