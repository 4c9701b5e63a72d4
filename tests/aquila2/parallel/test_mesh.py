"""Sizes of a layout: what is left open is filled in, and what does not make up the ranks is refused."""

from __future__ import annotations

import pytest

from aquila2.parallel.mesh import layout_for


@pytest.mark.parametrize(
    ("ranks", "asked", "expected"),
    [
        (1, {}, (1, 1, 1, 1)),
        (6, {}, (6, 1, 1, 1)),
        (6, {"shard": 2}, (3, 2, 1, 1)),
        (6, {"shard": 0}, (1, 6, 1, 1)),
        (6, {"shard": 0, "replicate": 2}, (2, 3, 1, 1)),
        (1, {"shard": 0}, (1, 1, 1, 1)),
        (2, {"tensor": 2}, (1, 1, 2, 1)),
        (6, {"stages": 3}, (2, 1, 1, 3)),
        (8, {"tensor": 2}, (4, 1, 2, 1)),
        (8, {"tensor": 2, "shard": 0}, (1, 4, 2, 1)),
    ],
)
def test_what_is_left_open_is_filled_in(ranks: int, asked: dict[str, int], expected: tuple[int, int, int, int]) -> None:
    layout = layout_for(ranks, **asked)
    assert (layout.replicate, layout.shard, layout.tensor, layout.stages) == expected


@pytest.mark.parametrize(
    ("ranks", "asked", "got"),
    [
        (3, {"shard": 2}, "1 x 2 x 1 x 1"),
        (2, {"shard": 4}, "1 x 4 x 1 x 1"),
        (4, {"replicate": 3, "shard": 0}, "3 x 1 x 1 x 1"),
        (2, {"replicate": 4, "shard": 0}, "4 x 1 x 1 x 1"),
        (3, {"stages": 2}, "1 x 1 x 1 x 2"),
        (1, {"tensor": 2}, "1 x 1 x 2 x 1"),
    ],
)
def test_what_does_not_make_up_the_ranks_is_refused(ranks: int, asked: dict[str, int], got: str) -> None:
    sentence = (
        f"parallel.replicate x parallel.shard x parallel.tensor x stages must make up the {ranks} ranks of the run, "
        f"got {got}"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        layout_for(ranks, **asked)


def test_stages_are_not_divided_further() -> None:
    sentence = "parallel.stages goes with parallel.shard and parallel.tensor of 1 only, got 2 and 1"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        layout_for(4, shard=2, stages=2)
