"""The microscope: what is recorded agrees with the counters, races are seen, and pages stand alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flagattn.testing.microscope import Event, Recording, Timeline, page, picture
from flagattn.testing.microscope.__main__ import main
from tests.host_exec import recordings
from tests.host_exec.kernels import counters

SQUARE = "odd_square"  # 127 x 127, two sequences of two heads: four blocks of one query tile and two key tiles
ALL = (("attention_forward", SQUARE), ("attention_backward", SQUARE), ("rms_norm", "3x2312"), ("swiglu", "5x88"))


def recorded(kernel: str, case: str, **options: object) -> list[Recording]:
    return [Recording.of(fields) for fields in recordings.record(kernel, case, **options)]  # type: ignore[arg-type]


# ---- What is recorded


@pytest.mark.parametrize("seed", [0, 3])
def test_the_blocks_together_are_what_is_counted(seed: int) -> None:
    blocks = [recorded("attention_forward", SQUARE, block=block, seed=seed)[0] for block in range(4)]
    assert [block.block for block in blocks] == [0, 1, 2, 3] and blocks[0].blocks == 4
    counted = counters()
    for kind, number in counted["instructions"].items():
        assert sum(block.count(kind) for block in blocks) == number, kind
    assert sum(block.sum("bank_conflicts") for block in blocks) == counted["bank_conflicts"] == 0
    sectors = counted["global_sectors_read"] + counted["global_sectors_written"]
    assert sum(block.sum("sectors") for block in blocks) == sectors


def test_the_forward_of_two_tiles() -> None:
    (recording,) = recorded("attention_forward", SQUARE)
    facts = Timeline(recording).facts
    assert len(recording.warps) == 4
    # The plan; keys and values of each tile; the vote on the last tile, which the end of the sequence cuts.
    assert facts["barrier phases"] == 1 + 2 * 2 + 1
    assert facts["copies committed"] == facts["copies waited for"] == recording.count("async_copy")
    assert facts["matrix products"] == 4 * 2 * 128  # warps, tiles, of docs/kernels/attention_forward_sm80.md
    assert facts["races"] == 0 and not recording.failure and not recording.is_cut
    flights = Timeline(recording).flights
    assert len(flights) == 4 and all(flight.landed for flight in flights)
    assert recording.count("special_function") >= 4 * 2 * 64


@pytest.mark.parametrize(("kernel", "case"), ALL)
@pytest.mark.parametrize("copies", ["eager", "random"])
def test_right_kernels_have_no_races(kernel: str, case: str, copies: str) -> None:
    for recording in recorded(kernel, case, seed=5, copies=copies):
        assert recording.races == () and recording.failure == ""


def test_nothing_is_recorded_unless_asked_for() -> None:
    module = recordings.host_exec_module()
    module.record(-1)
    recordings.kernels_fused.swiglu_forward(*(recordings.torch.ones(3, 64, dtype=recordings.torch.bfloat16),) * 2)
    assert module.recordings() == []


# ---- Faults


@pytest.mark.parametrize("fault", ["missing_barrier", "missing_copy_wait", "early_slot_release"])
@pytest.mark.parametrize(
    ("kernel", "case"), [("attention_forward", "odd_square_causal"), ("attention_backward", "long_causal")]
)
def test_races_are_where_the_copies_meet_the_reads(kernel: str, case: str, fault: str) -> None:
    faulty = [recording for recording in recorded(kernel, case, fault=fault) if recording.races]
    assert faulty, f"{fault} went unnoticed"
    recording = faulty[0]
    assert any(race.first.by_engine or race.second.by_engine for race in recording.races)
    for race in recording.races:
        assert race.first.writes or race.second.writes
        assert 0 <= race.offset < recording.shared_bytes
        for access in (race.first, race.second):
            events = recording.warps[access.warp]
            if access.event < len(events):
                kind = events[access.event].kind
                assert kind == ("async_copy" if access.by_engine else kind)
                assert access.by_engine or kind in ("matrix_load", "shared_load", "shared_store", "global_store")


def test_a_kernel_that_is_stopped_is_recorded_up_to_there() -> None:
    (recording,) = recorded("attention_forward", SQUARE, fault="divergent_collective")
    assert "the warp diverges" in recording.failure
    assert "The runner stopped the kernel" in page(recording, "stopped")


def test_a_block_that_waits_for_others_forever_is_recorded_too() -> None:
    kernel, case = "attention_backward", "long_causal"
    last = max(recording.blocks for recording in recorded(kernel, case) if len(recording.warps) == 8) - 1
    stopped = [one for one in recorded(kernel, case, block=last, fault="missing_signal") if one.failure]
    assert len(stopped) == 1 and stopped[0].block == last
    assert stopped[0].failure.startswith("deadlock between blocks: ") and stopped[0].count("matrix_product") > 0


def test_unknown_names_are_refused() -> None:
    for kernel, case, fault in (("none", SQUARE, ""), ("rms_norm", SQUARE, ""), ("attention_forward", "none", "")):
        with pytest.raises(ValueError, match=r"none|ROWSxCOLS"):
            recordings.record(kernel, case, fault=fault)
    with pytest.raises(ValueError, match="there is no fault nonsense"):
        recordings.record("rms_norm", "3x64", fault="nonsense")


# ---- Time


def event(order: int, kind: str, **fields: int) -> Event:
    defaults = {"waits": False, "which": -1, "phase": 0, "bytes": 0, "bank_conflicts": 0, "sectors": 0}
    return Event(order, kind, **{**defaults, **fields})  # type: ignore[arg-type]


def test_after_a_barrier_warps_go_on_together() -> None:
    barrier = {"which": 0, "waits": True}
    first = (event(0, "matrix_product"), event(1, "barrier", **barrier), event(6, "shuffle"))
    second = (
        *(event(order, "matrix_product") for order in (2, 3, 4)),
        event(5, "barrier", **barrier),
        event(7, "vote"),
    )
    recording = Recording("TestArguments", 1, 0, 64, 0, (first, second), (), (), "", False)
    timeline = Timeline(recording)
    assert timeline.times == [[0, 1, 4], [0, 1, 2, 3, 4]]
    assert [(phase.first, phase.end, phase.warps) for phase in timeline.phases] == [(1, 4, 2)]
    waits = [(span.warp, span.begin, span.end) for span in timeline.spans if span.group == "wait"]
    assert waits == [(0, 1, 4), (1, 3, 4)]
    assert Timeline(recording, "order").times == [[0, 1, 6], [2, 3, 4, 5, 7]]
    with pytest.raises(ValueError, match="clock"):
        Timeline(recording, "seconds")


def test_copies_fly_from_their_issue_to_the_wait() -> None:
    events = (
        event(0, "async_copy", bytes=512),
        event(1, "copy_commit", which=0),
        event(2, "matrix_product"),
        event(3, "copy_commit", which=1),  # empty
        event(4, "async_copy", bytes=512),
        event(5, "copy_commit", which=2),
        event(6, "copy_wait", which=1),
        event(7, "shuffle"),
    )
    timeline = Timeline(Recording("TestArguments", 1, 0, 32, 0, (events,), (), (), "", False))
    flights = [(flight.group, flight.begin, flight.end, flight.landed) for flight in timeline.flights]
    assert flights == [(0, 0, 7, True), (2, 4, 8, False)]
    assert timeline.facts["copies committed"] == 2 and timeline.facts["copies waited for"] == 1


# ---- The page


class Balanced(HTMLParser):
    """Fails where a tag is not closed, and collects what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [name for name, _ in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("kernel", "case"), ALL)
def test_the_page_stands_alone(kernel: str, case: str, tmp_path: Path) -> None:
    output, drawing = tmp_path / "page.html", tmp_path / "picture.svg"
    assert main([kernel, case, "-o", str(output), "--svg", str(drawing)]) == 0
    html = output.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(html)
    assert parser.open == [] and parser.loaded == []
    assert set(re.findall(r"https?://[^\"' <]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in html and "@import" not in html
    for svg in (*re.findall(r"<svg.*?</svg>", html, re.DOTALL), drawing.read_text(encoding="utf-8")):
        tree = ElementTree.fromstring(svg)
        assert len(tree.findall(".//{http://www.w3.org/2000/svg}rect")) > 4


def test_a_planted_fault_shows_on_the_page(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert main(["attention_forward", SQUARE, "--fault", "missing_barrier", "-o", str(output)]) == 0
    html = output.read_text(encoding="utf-8")
    assert 'class="race"' in html and "are ordered by nothing" in html and "with missing_barrier" in html


def test_the_command_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attention_forward", "no_such_case", "-o", str(tmp_path / "page.html")]) == 2
    assert "no_such_case" in capsys.readouterr().err
    assert main(["attention_forward", SQUARE, "--block", "1000", "-o", str(tmp_path / "page.html")]) == 2
    assert "has a block 1000" in capsys.readouterr().err
    assert main(["--list"]) == 0 and SQUARE in capsys.readouterr().out


def test_pictures_name_their_tracks() -> None:
    (recording,) = recorded("attention_forward", SQUARE)
    text = picture(Timeline(recording))
    for name in ("warp 3", "copy groups", "warps multiplying", "warps in math", "barrier phase"):
        assert name in text
