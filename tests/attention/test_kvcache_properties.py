"""Random sequences of appends and decodes against a cache that is plain Python lists of rows.

The numbers themselves are held to the float64 rule elsewhere; here it is which rows are written, turned and seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flagattn
from flagattn import reference

HEADS_Q, HEADS_K, DIM = 4, 2, 16
MOST_ROWS = 40  # of a sequence
TABLES = torch.randn(2, MOST_ROWS, DIM // 2, generator=torch.Generator().manual_seed(0))  # any numbers do


@dataclass(frozen=True)
class Kind:
    """What a cache is like, for all the steps."""

    page_size: int  # 0: not paged
    leftpads: tuple[int, ...]  # of every sequence; its cache begins with so many rows that are not keys
    rotary_dim: int  # 0: nothing is rotated
    interleaved: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Step:
    """Some sequences, in any order, get `new` rows each and ask with `queries` rows."""

    sequences: tuple[int, ...]
    new: int
    queries: int
    causal: bool
    window: tuple[int, int]


kinds = st.builds(
    Kind,
    page_size=st.sampled_from([0, 1, 3, 8, 16]),
    leftpads=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    rotary_dim=st.sampled_from([0, 4, 16]),
    interleaved=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
# Of the cached keys, of out and of the LSE; a key that is turned in bf16 is rounded before it is cached.
TOLERANCE = {torch.float32: (1e-6, 2e-5, 2e-5), torch.bfloat16: (4e-2, 8e-2, 5e-2)}


def steps_of(kind: Kind) -> st.SearchStrategy[list[Step]]:
    step = st.builds(
        Step,
        sequences=st.permutations(range(len(kind.leftpads))).flatmap(
            lambda order: st.integers(1, len(order)).map(lambda count: tuple(order[:count]))
        ),
        new=st.integers(0, 6),
        queries=st.integers(1, 5),
        causal=st.booleans(),
        window=st.sampled_from([(-1, -1), (-1, -1), (3, 0), (0, 2)]),
    )
    return st.lists(step, min_size=1, max_size=6)


# ---- The model ----


@dataclass
class Model:
    """rows[b] are the (key, value) pairs of sequence b, one after another, in float64."""

    kind: Kind
    rows: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.kind.leftpads]

    def turned(self, row: Tensor, position: int) -> Tensor:
        """(heads, head_dim), its pairs turned by the angles of the position."""
        half = self.kind.rotary_dim // 2
        cos, sin = TABLES[:, position, :half].double()
        turned = row.double()
        for i in range(half):
            first, second = (2 * i, 2 * i + 1) if self.kind.interleaved else (i, i + half)
            x, y = turned[:, first].clone(), turned[:, second].clone()
            turned[:, first], turned[:, second] = x * cos[i] - y * sin[i], x * sin[i] + y * cos[i]
        return turned

    def step(self, b: int, step: Step, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new rows of sequence b; (out, lse) of its queries, (queries, heads, dim) and (heads, queries)."""
        begin = self.kind.leftpads[b] + len(self.rows[b])
        self.rows[b] += [(self.turned(key, begin + i), value) for i, (key, value) in enumerate(zip(k, v))]
        own_positions = step.causal or step.window != (-1, -1)
        rotates = step.new > 0  # rotation comes with new rows
        queries = [self.turned(row, begin + (i if own_positions else 0)) if rotates else row for i, row in enumerate(q)]
        keys, values = (
            torch.stack(parts) if parts else torch.zeros(0, HEADS_K, DIM)
            for parts in ([row[i] for row in self.rows[b]] for i in (0, 1))
        )
        operands = (part[None].double() for part in (torch.stack(queries), keys, values))
        out, lse = reference.attention(*operands, causal=step.causal, window_size=step.window)
        return out[0], lse[0]


# ---- The caches ----


class Caches:
    """k and v as the function takes them; everything that no sequence has written is NaN."""

    def __init__(self, kind: Kind) -> None:
        batch, size = len(kind.leftpads), kind.page_size
        self.kind, self.lengths = kind, list(kind.leftpads)
        if size:
            pages = -(-MOST_ROWS // size)
            order = torch.randperm(batch * pages + 2, generator=torch.Generator().manual_seed(1))
            self.table = order[: batch * pages].view(batch, pages).to(torch.int32)
            shape: tuple[int, ...] = (len(order), size)
        else:
            shape = (batch + 1, MOST_ROWS)
        self.k, self.v = (torch.full((*shape, HEADS_K, DIM), torch.nan, dtype=kind.dtype) for _ in range(2))

    def step(self, step: Step, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(step.sequences, dtype=torch.int32)
        given: dict[str, Any] = {
            "cache_seqlens": torch.tensor([self.lengths[b] for b in step.sequences], dtype=torch.int32),
            "cache_leftpad": torch.tensor([self.kind.leftpads[b] for b in step.sequences], dtype=torch.int32),
            "causal": step.causal,
            "window_size": step.window,
            "rotary_interleaved": self.kind.interleaved,
        }
        if self.kind.page_size:
            given["block_table"] = self.table[chosen]
        else:
            given["cache_batch_idx"] = chosen
        if step.new:
            given |= {"k": k, "v": v}
            if self.kind.rotary_dim:
                half = self.kind.rotary_dim // 2
                given |= {
                    "rotary_cos": TABLES[0][:, :half].contiguous(),
                    "rotary_sin": TABLES[1][:, :half].contiguous(),
                }
        out, lse = flagattn.flash_attn_with_kvcache(q, self.k, self.v, return_lse=True, **given)
        for b in step.sequences:
            self.lengths[b] += step.new
        return out, lse

    def rows_of(self, b: int) -> tuple[Tensor, Tensor]:
        """What a sequence has written, and that all the rest of its stretch is NaN still."""
        whole = [
            cache[self.table[b].long()].flatten(0, 1) if self.kind.page_size else cache[b] for cache in (self.k, self.v)
        ]
        begin, end = self.kind.leftpads[b], self.lengths[b]
        for stretch in whole:
            assert bool(stretch[:begin].isnan().all()) and bool(stretch[end:].isnan().all())
        return whole[0][begin:end], whole[1][begin:end]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_steps_of_a_cache_are_those_of_lists_of_rows(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    steps = data.draw(steps_of(kind))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    caches, model = Caches(kind), Model(kind)
    near_key, near_out, near_lse = TOLERANCE[kind.dtype]
    for step in steps:
        if max(caches.lengths[b] for b in step.sequences) + step.new + step.queries > MOST_ROWS:
            continue
        q, k, v = (
            torch.randn(len(step.sequences), count, heads, DIM, generator=generator).to(kind.dtype)
            for count, heads in ((step.queries, HEADS_Q), (step.new, HEADS_K), (step.new, HEADS_K))
        )
        out, lse = caches.step(step, q, k, v)
        for i, b in enumerate(step.sequences):
            expected, expected_lse = model.step(b, step, q[i], k[i], v[i])
            torch.testing.assert_close(out[i].double(), expected, rtol=near_out, atol=near_out)
            torch.testing.assert_close(lse[i].double(), expected_lse, rtol=near_lse, atol=near_lse)
    for b, rows in enumerate(model.rows):
        keys, values = caches.rows_of(b)
        assert len(keys) == len(values) == len(rows)
        for key, value, (own_key, own_value) in zip(keys, values, rows):
            assert torch.equal(value, own_value)
            torch.testing.assert_close(key.double(), own_key, rtol=near_key, atol=near_key)
    used = set(caches.table.flatten().tolist()) if kind.page_size else set(range(len(kind.leftpads)))
    for cache in (caches.k, caches.v):
        assert all(bool(place.isnan().all()) for i, place in enumerate(cache) if i not in used)
