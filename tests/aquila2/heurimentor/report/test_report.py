"""The report of a real run: what it shows, that it needs nothing but itself, and how it looks in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aquila2.cli import main
from aquila2.heurimentor.report.charts import HEIGHT, LEFT, RIGHT, WIDTH, Chart, Mark, Series, number, thinned
from aquila2.heurimentor.report.collect import RunView, smoothed
from aquila2.heurimentor.report.page import HERE, charts_of, follow_report, page, write_report
from aquila2.training import trainer
from aquila2.training.lock import is_held, only_run_in
from tests.aquila2.heurimentor.runs import options_for, write_texts

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
ADDRESS = re.compile(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]*)|url\(([^)]*)\)|@import""")


class Page(HTMLParser):
    """The elements of a page, its scripts, and whether every element that was opened was closed."""

    VOID = ("meta", "link", "path", "polyline", "polygon", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.figures: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if values.get("data-chart"):
            self.figures.append(str(values["data-chart"]))
        assert not {name for name in values if name.startswith("on")}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was continued, with decisions, held-out losses, checkpoints and an alert."""
    folder = tmp_path_factory.mktemp("report")
    write_texts(folder / "texts")
    options: dict[str, Any] = {
        "decisions": [{"after": 4, "mixture": {"words": 1.0, "sums": 3.0}}, {"after": 6, "stage": "<second>"}],
        "run": {"save_every": 4, "eval_every": 3},
        "data": {"heldout": 0.3},
    }
    trainer.train(options_for(folder / "texts", folder / "run", **options))
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000012")
    trainer.train(options_for(folder / "texts", folder / "run", **options))
    alert = {"kind": "alert", "step": 9, "alert": "spike", "subject": "loss", "rank": 0}
    alert |= {"sentence": "the loss jumps </script>", "documents": [f"words/words.jsonl:{i}" for i in range(9)]}
    with (folder / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(alert) + "\n")
    return folder / "run"


def test_the_page_shows_the_run(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    found = Page(text)
    words = " ".join(found.texts)
    for expected in (
        "Held-out loss per domain", "Mixture", "Epochs per domain", "Gradient norm", "Learning rate", "Throughput",
        "cross-entropy (nats per token)", "tokens per second", "passes over the data", "step", "finished",
        "48 of 48 samples", "the mixture is words 25.0%, sums 75.0%", "the stage is <second>", "by", "config",
        "spike", "the loss jumps </script>", "words/words.jsonl:0", "3 more", "sealed, in the lineage", "crash",
    ):  # fmt: skip
        assert expected in words, expected
    assert set(found.figures) >= {"heldout", "loss", "mixture", "epochs", "norm", "lr", "speed", "time"}
    assert len(set(found.ids)) == len(found.ids)
    # No element of the data ends the script that holds it.
    data = json.loads(found.scripts[0])
    assert set(data) == set(found.figures)
    assert any("</script>" in mark[3] for mark in data["loss"]["marks"])
    assert [series["name"] for series in data["heldout"]["series"]] == ["words", "sums", "all"]


def test_the_values_are_the_run_s(run: Path) -> None:
    view = RunView.of(run)
    charts = {chart.key: chart.data() for chart in charts_of(view)}
    for series in charts["heldout"]["series"]:
        points, halves = view.estimates("heldout")[series["name"]]
        assert len(series["rows"]) == len(points) == 5
        for row, (step, loss), half in zip(series["rows"], points, halves, strict=True):
            assert row[0] == step and row[1] == pytest.approx(loss, rel=1e-5)
            assert (row[3] - row[2]) / 2 == pytest.approx(half, rel=1e-4)
    mixture = {series["name"]: series["rows"] for series in charts["mixture"]["series"]}
    assert [row[:2] for row in mixture["words"]] == [[0, 0.75], [4 - 1e-6, 0.75], [4, 0.25], [12, 0.25]]
    # The areas stand on each other: the upper one ends at the top.
    assert mixture["sums"][0][-1] == min(row[-1] for rows in mixture.values() for row in rows)
    epochs = view.epochs()
    assert view.lineage is not None
    counts, segments = view.lineage.schedule.counts(48), view.lineage.schedule.segments
    for segment, count in zip(segments, counts, strict=True):
        assert epochs[segment.domain][-1] == (12, count / segment.rows)
    assert [(mark.x, mark.kind) for mark in view.marks()] == [
        (4, "decision"), (6, "decision"), (9, "alert"), (8, "resume")
    ]  # fmt: skip


def test_it_needs_nothing_but_itself(run: Path) -> None:
    text = page(RunView.of(run))
    assert {a or b for a, b in ADDRESS.findall(text)} <= {"data:,"}
    for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "WebSocket", "import(", "//cdn"):
        assert word not in text, word
    for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(figure)
    assert len(text) < 400_000
    # Every colour has both dresses.
    style = (HERE / "page.css").read_text()
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in style.split("* { box-sizing")[0].split("}")[:2])
    assert light == dark >= set(re.findall(r"var\((--[\w-]+)\)", style))


def test_a_checkpoint_that_is_not_sound_is_told(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = copy / "checkpoints" / "step-00000004" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"bytes": ', '"bytes": 1', 1))
    assert "does not have the hash that it names" in page(RunView.of(copy))


def test_before_the_first_step_and_where_there_is_no_run(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    found = Page(write_report(tmp_path).read_text())
    assert not found.figures and "rests" in found.texts
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        write_report(tmp_path / "nowhere")


def test_it_follows_a_run_until_that_ends(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert not is_held(run)
    with only_run_in(run):
        assert is_held(run)
        follower = threading.Thread(target=follow_report, args=(run, target, 0.05))
        follower.start()
        while not target.exists():
            follower.join(0.01)
        assert 'data-refresh="0.05"' in target.read_text() and "running" in Page(target.read_text()).texts
    follower.join(60)
    assert not follower.is_alive()
    assert "data-refresh=" not in target.read_text() and "finished" in Page(target.read_text()).texts
    assert main(["report", str(run), "--out", str(target), "--follow"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert main(["report", str(run), "--every", "0"]) == 2


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    points = [(float(i), math.sin(i / 50)) for i in range(10_000)]
    points[5000] = (5000.0, 9.0)
    points[77] = (77.0, math.nan)
    buckets = thinned(Series("a", points))
    assert len(buckets) == 500 and max(bucket.high for bucket in buckets) == 9.0
    assert sum(bucket.y for bucket in buckets) / 500 == pytest.approx(
        sum(y for _, y in points if y == y) / 9999, abs=1e-3
    )
    chart = Chart("a", "A", "x", [Series("a", points)], marks=[Mark(3, "alert", "<b>")])
    assert len(chart.svg()) < 40_000 and "<b>" not in chart.svg()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[2.0], [5.0, 5.0], [0.0, 0.0], [1e-7, 3e4], [-3.0, 1.0, math.inf], [1e12, 2e12]])
def test_curves_of_any_size_stay_within_the_picture(values: list[float], log: bool) -> None:
    chart = Chart("a", "A", "x", [Series("a", list(enumerate(values)), "dots", [0.1] * len(values))], log=log)
    drawn = ElementTree.fromstring(chart.svg())
    for line in drawn.iter("polyline"):
        for place in line.attrib["points"].split():
            x, y = map(float, place.split(","))
            assert LEFT <= x <= WIDTH - RIGHT and 0 <= y <= HEIGHT
    places = [text.attrib for text in drawn.iter("text") if text.attrib["class"] == "tick"]
    ticks = [
        text.text for text in drawn.iter("text") if text.attrib.get("text-anchor") == "end" and "class" in text.attrib
    ]
    assert len({(place["x"], place["y"]) for place in places}) == len(places) >= 4
    assert len(set(ticks)) >= len(ticks) - 1
    json.dumps(chart.data(), allow_nan=False)


def test_bands_end_where_no_value_can_lie() -> None:
    chart = Chart("a", "A", "x", [Series("a", [(1, 0.9), (2, 0.1)], "dots", [0.3, 0.3])], bounds=(0.0, 1.0))
    buckets = chart.drawn[0][2]
    assert [bucket[1:] for bucket in buckets] == [(0.9, pytest.approx(0.6), 1.0), (0.1, 0.0, pytest.approx(0.4))]
    assert chart.data()["series"][0]["rows"][0][3] == 1.0


def test_a_smoothed_curve_lies_in_its_curve() -> None:
    falling = [(step, 2.0 + 6.0 * math.exp(-step / 20)) for step in range(400)]
    for (step, mean), (_, value) in zip(smoothed(falling), falling, strict=True):
        assert mean == pytest.approx(value, rel=0.01), step
    noisy = [(step, 1.0 + 0.1 * (-1) ** step) for step in range(400)]
    assert all(mean == pytest.approx(1.0, abs=0.02) for _, mean in smoothed(noisy)[5:])
    assert smoothed([(1, math.nan), (2, 3.0)]) == [(2, 3.0)]


@pytest.mark.parametrize("most", [1.0, 0.3, 0.0123, 4e-4, 2.3e-7])
def test_shares_of_any_size_have_different_ticks(most: float) -> None:
    chart = Chart("a", "A", "x", [Series("a", [(1, 0.0), (2, most)])], from_zero=True, percent=True)
    drawn = ElementTree.fromstring(chart.svg())
    ticks = [text.text or "" for text in drawn.iter("text") if text.attrib.get("text-anchor") == "end"]
    shares = [text for text in ticks if text.endswith(" %")]
    values = [float(text.removesuffix(" %")) / 100 for text in shares]
    assert len(shares) >= 4 and values == sorted(set(values)) and values[0] == 0
    assert values[-1] == pytest.approx(most, rel=0.7) and values[-1] >= most


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12_000, "12k"), (3.4e6, "3.4M"), (0.05, "0.05"), (2e-5, "2e-05"), (2.5e9, "2.5G")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_the_script_is_right_as_far_as_node_can_tell() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so nothing reads the page's script")
    subprocess.run([node, "--check", str(HERE / "page.js")], check=True, timeout=60)


def test_in_a_browser(run: Path, tmp_path: Path) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed, so the page is only parsed")
    target = write_report(run, tmp_path / "page.html")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", target.as_uri()], capture_output=True, text=True, timeout=120)
    assert 'data-ready="yes"' in done.stdout and 'data-theme="' in done.stdout
    picture = tmp_path / "page.png"
    subprocess.run(
        [*command, f"--screenshot={picture}", "--window-size=1280,2400", target.as_uri()], check=True, timeout=120
    )
    assert picture.stat().st_size > 20_000
