"""The order of a run: exactly once through every history of mixtures and segments, and the same from every side."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aquila2.heurimentor.data.apportionment import UNITS, integer_weights
from aquila2.heurimentor.data.schedule import Schedule

DOMAINS = ("code", "en", "zh")


@st.composite
def histories(draw: st.DrawFn) -> tuple[Schedule, int, dict[int, int]]:
    """A schedule after random decisions, the samples drawn, and per closed segment the draws it had got."""
    schedule = Schedule(draw(st.integers(0, 9)))
    rows = st.integers(1, 23)
    for domain in DOMAINS:
        schedule.open(0, domain, f"{domain} 0", "", draw(rows))
    mixed: set[str] = set()
    sample, closed = 0, {}
    for change in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["mix", "mix", "open", "close"])) if change else "mix"
        if kind == "mix":
            alive = {s.domain for s in schedule.segments if s.number not in closed}
            shares = draw(
                st.fixed_dictionaries({domain: st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0]) for domain in sorted(alive)})
            )
            if not any(shares.values()):
                shares[min(alive)] = 1.0
            schedule.mix(sample, integer_weights(shares))
            mixed = {name for name, share in shares.items() if share}
        elif kind == "open":
            domain = draw(st.sampled_from([*DOMAINS, "new"]))
            schedule.open(sample, domain, f"{domain} {sample} {change}", "", draw(rows))
        else:
            number = draw(st.integers(0, len(schedule.segments) - 1))
            domain = schedule.segments[number].domain
            others = [s for s in schedule.segments if s.domain == domain and s.number not in {*closed, number}]
            if number not in closed and (others or domain not in mixed):
                schedule.close(sample, number)
                closed[number] = schedule.counts(sample)[number]
        sample += draw(st.integers(0, 60))
    return schedule, sample, closed


@settings(deadline=None, max_examples=150)
@given(history=histories())
def test_every_history_is_exactly_once(history: tuple[Schedule, int, dict[int, int]]) -> None:
    schedule, total, closed = history
    drawn = schedule.draws(0, total)
    for segment in schedule.segments:
        mine = drawn.segments == segment.number
        count = int(mine.sum())
        # Draws come in order, none missing, none twice; in an epoch no row comes twice, and all rows come.
        assert drawn.draws[mine].tolist() == list(range(count))
        assert schedule.counts(total)[segment.number] == count
        assert closed.get(segment.number, count) == count
        rows = drawn.rows[mine].tolist()
        for start in range(0, count, segment.rows):
            epoch = rows[start : start + segment.rows]
            assert len(set(epoch)) == len(epoch)
            assert len(epoch) < segment.rows or sorted(epoch) == list(range(segment.rows))


@settings(deadline=None, max_examples=60)
@given(history=histories(), data=st.data())
def test_any_part_can_be_asked_alone_and_backwards(
    history: tuple[Schedule, int, dict[int, int]], data: st.DataObject
) -> None:
    schedule, total, _ = history
    drawn = schedule.draws(0, total)
    first = data.draw(st.integers(0, total))
    part = schedule.draws(first, data.draw(st.integers(0, total - first)))
    for whole, piece in zip(drawn, part, strict=True):
        assert np.array_equal(whole[first : first + len(piece)], piece)
    counts = Counter(drawn.segments[:first].tolist())
    assert schedule.counts(first) == [counts[s.number] for s in schedule.segments]
    for sample in range(0, total, 7):
        segment, draw = int(drawn.segments[sample]), int(drawn.draws[sample])
        assert schedule.sample_of(segment, draw) == sample
        epoch, place = divmod(draw, schedule.segments[segment].rows)
        assert schedule.permutation(segment, epoch).inverse(drawn.rows[sample])[0] == place


@settings(deadline=None, max_examples=60)
@given(history=histories(), later=st.integers(0, 30))
def test_later_decisions_do_not_change_earlier_samples(
    history: tuple[Schedule, int, dict[int, int]], later: int
) -> None:
    schedule, total, _ = history
    before = schedule.draws(0, total + later)
    schedule.open(total + later, "en", "late", "", 11)
    schedule.mix(total + later, integer_weights({"en": 1.0}))
    schedule.draws(total + later, 5)
    for old, new in zip(before, schedule.draws(0, total + later), strict=True):
        assert np.array_equal(old, new)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), gaps=st.data())
def test_a_domain_repeats_nothing_while_something_of_its_round_is_left(sizes: list[int], gaps: st.DataObject) -> None:
    schedule, sample = Schedule(0), 0
    schedule.open(0, "en", "0", "", sizes[0])
    schedule.mix(0, {"en": UNITS})
    for number, size in enumerate(sizes[1:], start=1):
        sample += gaps.draw(st.integers(0, 30))
        schedule.open(sample, "en", str(number), "", size)

    # The round that runs ends for all segments in one draw, within the rows that there are; then come whole rounds.
    def ends_a_round(place: int) -> bool:
        counts = schedule.counts(place)
        return all(count and count % size == 0 for count, size in zip(counts, sizes, strict=True)) and all(
            schedule.counts(place + later * sum(sizes))
            == [count + later * size for count, size in zip(counts, sizes, strict=True)]
            for later in (1, 2)
        )

    ends = [place for place in range(sample, sample + sum(sizes) + 1) if ends_a_round(place)]
    assert ends and (schedule.counts(ends[0])[-1] == sizes[-1] or len(sizes) == 1)


def test_new_data_joins_the_running_round() -> None:
    schedule = Schedule(1)
    schedule.open(0, "en", "old", "", 10)
    schedule.mix(0, {"en": UNITS})
    schedule.open(14, "en", "new", "", 12)
    # The old segment owes 6 rows of its second epoch, the new one 12 of its first: both end together.
    assert schedule.counts(14 + 18) == [20, 12]
    middle = schedule.counts(14 + 9)
    assert abs(middle[0] - 17) <= 1 and abs(middle[1] - 6) <= 1
    assert schedule.counts(14 + 18 + 22) == [30, 24]


def test_mixture_is_followed_at_every_place() -> None:
    schedule = Schedule(0)
    shares = {"code": 0.45, "en": 0.25, "zh": 0.3}
    for domain in shares:
        schedule.open(0, domain, domain, "", 1000)
    schedule.mix(0, integer_weights(shares))
    for sample in range(0, 4000, 13):
        for count, share in zip(schedule.counts(sample), shares.values(), strict=True):
            assert abs(count - sample * share) <= 1


def test_epochs_differ_and_runs_with_one_seed_agree() -> None:
    def rows(seed: int) -> list[int]:
        schedule = Schedule(seed)
        schedule.open(0, "en", "id", "", 50)
        schedule.mix(0, {"en": UNITS})
        return schedule.draws(0, 100).rows.tolist()

    assert rows(1) == rows(1) != rows(2)
    assert rows(1)[:50] != rows(1)[50:]


def test_skip_and_quarantine_are_remembered() -> None:
    schedule = Schedule(0)
    schedule.open(0, "en", "id", "", 50)
    schedule.mix(0, {"en": UNITS})
    schedule.skip(10, 5)
    schedule.quarantine(20, 0, [3, 4])
    schedule.quarantine(30, 0, [4])
    assert [schedule.is_skipped(sample) for sample in (9, 10, 14, 15)] == [False, True, True, False]
    assert schedule.quarantined == {(0, 3): 20, (0, 4): 20}


def test_a_segment_that_never_comes_again() -> None:
    schedule = Schedule(0)
    schedule.open(0, "en", "a", "", 10)
    schedule.open(0, "zh", "b", "", 10)
    schedule.mix(0, integer_weights({"en": 1, "zh": 1}))
    schedule.mix(10, {"en": UNITS})
    assert schedule.sample_of(1, 4) is not None and schedule.sample_of(1, 5) is None
    schedule.open(20, "en", "c", "", 10)
    schedule.close(20, 0)
    assert schedule.sample_of(0, 1000) is None


def test_refusals() -> None:
    schedule = Schedule(0)
    with pytest.raises(ValueError, match="no mixture holds at sample 0"):
        schedule.draws(0, 1)
    with pytest.raises(ValueError, match="at least one row, got 0"):
        schedule.open(0, "en", "a", "", 0)
    schedule.open(0, "en", "a", "", 10)
    with pytest.raises(ValueError, match="the domain 'zh' has no open segment"):
        schedule.mix(0, {"zh": UNITS})
    for weights in ({"en": 5}, {}, {"en": 2 * UNITS, "zh": -UNITS}):
        with pytest.raises(ValueError, match=r"sum to 2\^30"):
            schedule.mix(0, weights)
    schedule.mix(0, {"en": UNITS})
    with pytest.raises(ValueError, match="segment 0 is the last of the domain 'en'"):
        schedule.close(5, 0)
    with pytest.raises(ValueError, match=r"segment must lie in 0 \.\. 0, got 3"):
        schedule.close(5, 3)
    with pytest.raises(ValueError, match=r"segment must lie in 0 \.\. 0, got 3"):
        schedule.quarantine(5, 3, [0])
    with pytest.raises(ValueError, match="skip must be at least 1 sample, got 0"):
        schedule.skip(5, 0)
    schedule.open(5, "en", "b", "", 10)
    schedule.close(5, 0)
    with pytest.raises(ValueError, match="segment 0 is closed already"):
        schedule.close(6, 0)
