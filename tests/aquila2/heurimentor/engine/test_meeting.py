"""How ranks meet in a store that torchrun keeps over all its starts of them: nothing of an earlier one counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch.distributed as dist

from aquila2.heurimentor.engine import world
from aquila2.heurimentor.engine.world import OtherRankFailed, meet, ranks_of


def nothing() -> None:
    pass


def start(store: dist.Store, size: int, prepare: Callable[[], None] = nothing) -> list[Future[dist.Store]]:
    with ThreadPoolExecutor(size) as ranks:
        return [ranks.submit(meet, prepare, store, rank, size) for rank in reversed(range(size))][::-1]


def test_every_start_has_a_part_of_its_own() -> None:
    store = dist.HashStore()
    for turn in range(3):
        parts = [rank.result() for rank in start(store, 3)]
        assert parts[0].add("ranks", 1) == 1  # whatever the start before has left there
        assert [part.add("ranks", 1) for part in parts[1:]] == [2, 3], turn


def test_nobody_goes_on_before_the_first_rank_is_ready() -> None:
    store = dist.HashStore()
    start(store, 2)
    ready = threading.Event()
    seen: list[bool] = []

    def preparing() -> None:
        time.sleep(0.3)
        ready.set()

    def waiting() -> None:
        meet(nothing, store, 1, 2)
        seen.append(ready.is_set())

    with ThreadPoolExecutor(2) as ranks:
        for rank in (ranks.submit(waiting), ranks.submit(meet, preparing, store, 0, 2)):
            rank.result()
    assert seen == [True]


def test_a_failure_is_told_once_and_a_dead_rank_does_not_count() -> None:
    store = dist.HashStore()

    def failing() -> None:
        raise ValueError("no such text")

    def late() -> None:
        time.sleep(0.3)
        meet(nothing, store, 1, 2)

    with ThreadPoolExecutor(2) as ranks:
        first, other = ranks.submit(meet, failing, store, 0, 2), ranks.submit(late)
    with pytest.raises(ValueError, match="no such text"):
        first.result()
    with pytest.raises(OtherRankFailed, match="ValueError: no such text"):
        other.result()
    store.set("aquila2/ask/1", "a rank that has died since")
    assert all(rank.result() for rank in start(store, 2))


def test_the_first_rank_does_not_wait_for_the_dead_to_say_why_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "TELL_SECONDS", 0.2)

    def failing() -> None:
        raise ValueError("no such text")

    with pytest.raises(ValueError, match="no such text"):
        meet(failing, dist.HashStore(), 0, 2)


def test_ranks_of_a_machine_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match=r"train\.device must be cuda where .*, got 'cuda:0'"),
        ranks_of("cuda:0", nothing),
    ):
        pass
