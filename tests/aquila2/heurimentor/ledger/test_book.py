"""A run's ledger: whatever crashes, resizes and changes, the lineage holds every row once and keeps its order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquila2.heurimentor.ledger.book import NAME, Book, row_digest, share_out
from aquila2.heurimentor.ledger.chain import Line, Tampered, scan
from aquila2.heurimentor.ledger.control import answer_requests, request
from aquila2.heurimentor.ledger.lineage import BadRecord, Head, Lineage


def start(folder: Path, **rows: int) -> Book:
    book = Book.create(folder, seed=3, row_tokens=16, settings={"name": "test"})
    for domain, count in (rows or {"en": 40, "zh": 30}).items():
        book.decide("open", segment(domain, domain, count))
    book.mix(dict.fromkeys(rows or {"en": 1, "zh": 1}, 1.0))
    return book


def segment(domain: str, identity: str, rows: int) -> dict[str, Any]:
    return {"domain": domain, "id": identity, "folder": f"data/{identity}", "rows": rows}


def take(book: Book, count: int, world: int = 1) -> list[tuple[int, int]]:
    """One step on `world` ranks, each reading its own share; returns the rows in the order of samples."""
    plan = book.plan(count)
    parts = share_out(count, [1 + rank % 2 for rank in range(world)])
    read = [(int(plan.segments[i]), int(plan.rows[i])) for part in parts for i in part]
    book.commit(count, sum(row_digest(int(plan.samples[i]), plan.rows[i : i + 1]) for part in parts for i in part))
    return read


def lineage_rows(folder: Path) -> list[tuple[int, int]]:
    """All rows that the lineage trained, in order, from the file alone."""
    lineage = Lineage.of(scan(folder / NAME).lines)
    rows: list[tuple[int, int]] = []
    for step in lineage.steps:
        plan = lineage.schedule.draws(step.first, step.samples)
        rows += zip(plan.segments.tolist(), plan.rows.tolist(), strict=True)
    return rows


class Run:
    """A run that crashes, resizes and decides at random, beside a list of what its weights have seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world, self.opened = folder, 1, 0
        self.book = start(folder)
        self.seen: list[list[tuple[int, int]]] = []
        self.saved: list[tuple[Head, int]] = [(self.book.head, 0)]

    def step(self, count: int) -> None:
        self.seen.append(take(self.book, count, self.world))

    def save(self) -> None:
        self.book.sync()
        self.saved.append((self.book.head, len(self.seen)))

    def crash(self, back: int, torn: bytes, world: int) -> None:
        head, steps = self.saved[-1 - back % len(self.saved)]
        self.book.close()
        with (self.folder / NAME).open("ab") as file:
            file.write(torn)
        self.book = Book(self.folder, head)
        del self.seen[steps:]
        self.saved = [entry for entry in self.saved if entry[1] <= steps]
        self.world = world
        self.book.set_ranks([1] * world)

    def rewind(self, back: int) -> None:
        step = max(self.book.lineage.step - back, 0)
        self.book.rewind(step)
        del self.seen[step:]
        self.saved = [entry for entry in self.saved if entry[1] <= step]

    def mix(self, share: float, ahead: int) -> None:
        self.book.mix({"en": share, "zh": 1.0 - share}, after=self.book.lineage.step + ahead)

    def open(self, rows: int) -> None:
        self.opened += 1
        self.book.decide("open", segment("en", f"more {self.opened}", rows))

    def skip(self, samples: int) -> None:
        self.book.decide("skip", {"samples": samples})


ACTIONS = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("save")),
    st.tuples(
        st.just("crash"), st.integers(0, 2), st.sampled_from([b"", b'{"kind":"st', b"\0\0\0"]), st.integers(1, 4)
    ),
    st.tuples(st.just("rewind"), st.integers(0, 4)),
    st.tuples(st.just("mix"), st.sampled_from([0.001, 0.3, 0.5, 1.0]), st.integers(0, 3)),
    st.tuples(st.just("open"), st.integers(1, 20)),
    st.tuples(st.just("skip"), st.integers(1, 9)),
)


@settings(deadline=None, max_examples=40)
@given(actions=st.lists(ACTIONS, min_size=5, max_size=25))
def test_every_history_is_exactly_once_in_the_lineage(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[Any, ...]]
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    for name, *arguments in actions:
        getattr(run, name)(*arguments)
    run.book.close()
    lineage = Lineage.of(scan(run.folder / NAME).lines)
    seen = [row for step in run.seen for row in step]
    assert lineage.step == len(run.seen)
    assert lineage_rows(run.folder) == seen

    # Trained and skipped rows together are the first draws of every segment, each once per epoch.
    everything = lineage.schedule.draws(0, lineage.samples)
    trained = [lineage.step_of(sample) is not None for sample in range(lineage.samples)]
    pairs = list(zip(everything.segments.tolist(), everything.rows.tolist(), strict=True))
    assert [pair for pair, was in zip(pairs, trained, strict=True) if was] == seen
    assert all(was != lineage.schedule.is_skipped(sample) for sample, was in enumerate(trained))
    for info, count in zip(lineage.schedule.segments, lineage.schedule.counts(lineage.samples), strict=True):
        rows = [row for number, row in pairs if number == info.number]
        assert len(rows) == count
        for begin in range(0, count, info.rows):
            assert len(set(rows[begin : begin + info.rows])) == len(rows[begin : begin + info.rows])
    shutil.rmtree(run.folder)


def test_crashes_and_ranks_do_not_change_the_stream(tmp_path: Path) -> None:
    def run(folder: Path, disturbed: bool) -> list[tuple[int, int]]:
        book = start(folder)
        book.mix({"en": 3, "zh": 1}, after=7)
        seen, heads = [], [book.head]
        world, crashes = 1, [9, 13, 22, 22] if disturbed else []
        while book.lineage.step < 30:
            if book.lineage.step == 11 and "new" not in [s.id for s in book.lineage.schedule.segments]:
                book.decide("open", segment("zh", "new", 25))
            seen.append(take(book, 6, world))
            if book.lineage.step % 5 == 0:
                heads.append(book.head)
            if book.lineage.step in crashes[:1]:
                crashes.pop(0)
                book.close()
                book = Book(folder, heads[-1], cause="resize")
                del seen[book.lineage.step :]
                world = world % 3 + 1
                book.set_ranks([1] * world)
        book.close()
        return [row for step in seen for row in step]

    assert run(tmp_path / "calm", False) == run(tmp_path / "disturbed", True)
    lineage = Lineage.of(scan(tmp_path / "disturbed" / NAME).lines)
    assert (len(lineage.undone), len(lineage.resumes)) == (11, 4)
    assert lineage_rows(tmp_path / "calm") == lineage_rows(tmp_path / "disturbed")


def test_decisions_are_replayed_and_not_taken_anew(tmp_path: Path) -> None:
    book = start(tmp_path)
    take(book, 4)
    head = book.head
    take(book, 4)
    book.mix({"en": 1})
    book.decide("rate", 1e-4, by="policy")
    take(book, 4)
    stream = book.plan(8).rows.tolist()
    book.close()
    with Book(tmp_path, head) as book:
        assert [line.record["what"] for line in book.lineage.pending] == ["mixture", "rate"]
        take(book, 4)
        assert not book.lineage.pending
        assert [line.record["what"] for line, _ in book.lineage.applied[-2:]] == ["mixture", "rate"]
        take(book, 4)
        assert book.plan(8).rows.tolist() == stream


def test_a_rewind_drops_what_the_run_decided_since(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        book.mix({"en": 1}, after=3)
        for _ in range(2):
            take(book, 4)
        book.decide("open", segment("en", "bad", 9), by="policy")
        take(book, 4)
        book.rewind(1)
        assert [s.id for s in book.lineage.schedule.segments] == ["en", "zh"]
        assert [line.record["after"] for line in book.lineage.pending] == [3]
        book.decide("skip", {"samples": 4})
        take(book, 4)
        assert book.lineage.steps[-1].first == 8
        assert [step.number for step in book.lineage.undone] == [2, 3]


def test_checkpoints_of_undone_steps_are_told_apart(tmp_path: Path) -> None:
    book = start(tmp_path)
    heads = []
    for _ in range(4):
        take(book, 4)
        heads.append(book.head)
    book.rewind(2)
    assert book.lineage.objection(heads[1]) is None
    assert book.lineage.objection(heads[2]) == "step 3 was undone, the ledger stands at step 2"
    take(book, 5)
    assert book.lineage.objection(heads[2]) == "its step 3 was undone and taken again"
    assert book.lineage.objection(book.head) is None
    assert book.lineage.objection(Head(1, "0" * 64, 10)) == "the ledger has no such line"
    assert Head.of(json.loads(json.dumps(book.head.facts()))) == book.head
    book.close()
    with pytest.raises(ValueError, match="the checkpoint of step 3 does not fit: its step 3 was undone"):
        Book(tmp_path, heads[2])


def test_a_ledger_behind_its_checkpoint_is_refused(tmp_path: Path) -> None:
    book = start(tmp_path)
    take(book, 4)
    head = book.head
    book.close()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[: head.offset - 10])
    with pytest.raises(Tampered, match="a checkpoint knows"):
        Book(tmp_path, head)


def test_requests_are_entered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = start(tmp_path)
    request(tmp_path, "mix", {"en": 0.25, "zh": 0.75}, by="somebody")
    request(tmp_path, "rate", 0.1, after=5)
    kept = {path: path.read_bytes() for path in (tmp_path / "control").glob("*.json")}
    lines = answer_requests(book)
    assert [(line.record["what"], line.record["after"]) for line in lines] == [("mixture", 0), ("rate", 5)]
    assert lines[0].record["value"] == {"en": 1 << 28, "zh": 3 << 28} and lines[0].record["by"] == "somebody"
    assert not list((tmp_path / "control").glob("*.json"))
    # A crash after entering and before removing.
    book.close()
    for path, content in kept.items():
        path.write_bytes(content)
    with Book(tmp_path) as book:
        assert answer_requests(book) == [] and not list((tmp_path / "control").glob("*.json"))


def test_requests_that_cannot_be_are_put_aside_with_the_reason(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        request(tmp_path, "mix", {"fr": 1.0})
        request(tmp_path, "nonsense", 1)
        (tmp_path / "control" / "x.json").write_text("{")
        size = (tmp_path / NAME).stat().st_size
        assert answer_requests(book) == []
        assert (tmp_path / NAME).stat().st_size == size
        reasons = [path.read_text() for path in sorted((tmp_path / "control" / "rejected").glob("*.reason.txt"))]
        assert "the domain 'fr' has no open segment" in reasons[0]
        assert "what must be one of open, close, mixture" in reasons[1]
        assert len(reasons) == 3


@pytest.mark.parametrize(
    ("what", "value", "after", "message"),
    [
        ("mixture", {"en": 5}, 1, "sum to 2\\^30"),
        ("mixture", {"en": 0.5}, 9, "integer weights"),
        ("mixture", {"fr": 1 << 30}, 9, "'fr' has no open segment"),
        ("open", segment("en", "en", 4), 1, "is open already"),
        ("open", segment("en", "other", 0), 9, "rows must be at least 1"),
        ("open", {"domain": "en"}, 9, "'id' is missing"),
        ("skip", {"samples": 0}, 9, "samples must be at least 1"),
        ("rate", {}, 0, "takes effect after step 0, and step 1 is done"),
        ("close", {"segment": 0}, 1, "the last of the domain 'en'"),
    ],
)
def test_decisions_that_cannot_be_are_refused_before_they_are_written(
    tmp_path: Path, what: str, value: Any, after: int, message: str
) -> None:
    with start(tmp_path) as book:
        take(book, 4)
        head = book.head
        with pytest.raises(BadRecord, match=message):
            book.decide(what, value, after=after)
        assert book.head == head and scan(tmp_path / NAME).end == head.offset
        take(book, 4)


def test_a_decision_that_would_break_a_later_one_is_refused(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        book.decide("open", segment("fr", "fr", 5))
        book.mix({"fr": 1.0}, after=4)
        number = book.lineage.schedule.segments[-1].number
        with pytest.raises(BadRecord, match="cannot be taken: the domain 'fr' has no open segment"):
            book.decide("close", {"segment": number})


def test_records_that_cannot_follow(tmp_path: Path) -> None:
    with start(tmp_path) as book:
        take(book, 4)
        lines = scan(tmp_path / NAME).lines
        bad = [
            ({"kind": "step", "step": 3, "first": 4, "count": 4}, "step 3 at sample 4 follows step 1"),
            ({"kind": "step", "step": 2, "first": 4, "count": 0}, "count must be at least 1"),
            ({"kind": "resume", "step": 7, "onto": "", "cause": "crash"}, "the lineage has 1 steps"),
            ({"kind": "resume", "step": 1, "onto": "", "cause": "crash"}, "it names another step 1"),
            ({"kind": "resume", "step": 1, "onto": "", "cause": "x"}, "cause must be one of"),
            ({"kind": "genesis"}, "one genesis"),
            ({"kind": "x"}, "kind must be one of"),
            ({"kind": "ranks", "shares": [0]}, "shares must be"),
            ({"kind": "ranks"}, "'shares' is missing"),
        ]
        for record, message in bad:
            with pytest.raises(BadRecord, match=message):
                Lineage.of([*lines, lines[-1]._replace(number=len(lines), record=record)])


def test_starting_and_opening(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no ledger"):
        Book(tmp_path)
    start(tmp_path).close()
    with pytest.raises(FileExistsError, match="is the ledger of another run"):
        Book.create(tmp_path, seed=0, row_tokens=8)
    with Book(tmp_path) as book, pytest.raises(BlockingIOError):
        Book(tmp_path)
    assert book.lineage.genesis["settings"] == {"name": "test"} and book.lineage.row_tokens == 16
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / NAME).touch()
    with pytest.raises(BadRecord, match="has no line"):
        Book(tmp_path / "empty")


def test_a_step_takes_few_bytes(tmp_path: Path) -> None:
    values = {"loss": 2.3456789012345, "grad_norm": 0.98765432101, "lr": 3e-4}
    with start(tmp_path, **{f"d{i}": 10**6 for i in range(10)}) as book:
        before = book.head.offset
        for _ in range(50):
            book.commit(1024, 1 << 63, values)
        assert book.head.offset - before < 50 * (280 + 10 * 25)
        assert json.loads(json.dumps(book.commit(1, 0, {"loss": float("nan")}).record))["values"] == {"loss": "nan"}


@given(count=st.integers(0, 100), shares=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any))
def test_shares_divide_a_step_without_rest(count: int, shares: list[int]) -> None:
    parts = share_out(count, shares)
    assert [sample for part in parts for sample in part] == list(range(count))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - count * share / sum(shares)) <= 1


def test_digests_see_place_and_content_and_add_up() -> None:
    ids = np.arange(8)
    assert row_digest(1, ids) != row_digest(2, ids) != row_digest(2, ids + 1)
    assert row_digest(1, ids) == row_digest(1, ids.astype(np.uint16).astype(np.int64)) < 1 << 64
    with pytest.raises(ValueError, match="shares must not be negative"):
        share_out(4, [0, 0])


@pytest.mark.parametrize(
    ("extra", "sizes", "rooms"),
    [
        (0, [4, 4, 4, 3], [12, 8, 4, None]),  # as it was
        (0, [3, 3, 3, 3, 3], [12, 9, 6, 3, None]),  # smaller steps: the skip waits for its samples
        (0, [5, 5, 2, 5], [12, 7, 2, None]),  # larger ones: a step ends there
        (6, [4, 2, 4], [6, 2, None]),  # others skipped before
        (14, [4], [None]),  # and some of its own
        (20, [4], [None]),  # and all of them
    ],
)
def test_a_skip_that_names_its_samples_skips_them_wherever_the_steps_then_stand(
    tmp_path: Path, extra: int, sizes: list[int], rooms: list[int | None]
) -> None:
    book = start(tmp_path)
    for _ in range(5):
        take(book, 4)
        if book.lineage.step == 2:
            book.sync()
            head = book.head
    book.mix({"en": 1, "zh": 3})
    book.decide("skip", {"first": 20, "samples": 4}, by="monitor: a spike")
    assert book.lineage.samples == 24
    book.mix({"en": 1, "zh": 1})
    rows = book.plan(8).rows.tolist()
    book.close()
    book = Book(tmp_path, head)
    assert book.lineage.samples == 8
    if extra:
        book.decide("skip", {"samples": extra}, by="a person")
    for place, (count, room) in enumerate(zip(sizes, rooms, strict=True)):
        assert book.lineage.room == room, place
        if room is not None:
            with pytest.raises(BadRecord, match="is skipped"):
                Lineage.of(scan(tmp_path / NAME).lines).feed(step_line(book, room + 1))
        take(book, count)
    book.close()
    lineage = Lineage.of(scan(tmp_path / NAME).lines)
    assert all(lineage.schedule.is_skipped(sample) for sample in range(20, 24))
    assert sum(count for _, count in lineage.schedule.skipped) == max(4 + extra - max(0, min(4, 8 + extra - 20)), 4)
    assert not any(step.first < 24 and step.end > 20 for step in lineage.steps)
    if sizes[:4] == [4, 4, 4, 3]:
        assert lineage.schedule.draws(24, 8).rows.tolist() == rows  # nothing is another where nothing has changed


def test_waiting_skips_come_at_the_same_place_in_every_life(tmp_path: Path) -> None:
    book = start(tmp_path)
    take(book, 4)
    book.sync()
    head = book.head
    for _ in range(4):
        take(book, 4)
    book.decide("skip", {"first": 20, "samples": 4}, by="monitor: a spike")
    with pytest.raises(BadRecord, match="takes no later step"):
        book.decide("skip", {"first": 40, "samples": 4}, after=9)
    lives = []
    for life in range(3):
        book.close()
        book = Book(tmp_path, head)
        for step in range(2, 12):
            take(book, min(2, book.lineage.room or 2))
            if life == 0 and step == 9:  # where the skip has just come, and once more behind it
                assert book.lineage.samples == 24
                book.mix({"en": 1, "zh": 3})
                book.decide("skip", {"samples": 3})
                book.mix({"en": 3, "zh": 1})
        lives.append((book.lineage.schedule.skipped, book.lineage.samples, book.plan(30).rows.tolist()))
    book.close()
    assert lives[0] == lives[1] == lives[2] and lives[0][0] == [(20, 4), (24, 3)]


def step_line(book: Book, count: int) -> Line:
    record = {"kind": "step", "step": book.lineage.step + 1, "first": book.lineage.samples, "count": count}
    return Line(10_000, 0, "", {**record, "drawn": [], "digest": "", "values": {}})
