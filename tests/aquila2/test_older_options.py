"""Runs whose options an older version wrote, `monitor.stop_on` among them: they go on, and the guard holds for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from aquila2.cli import main
from aquila2.heurimentor.ledger.audit import audit
from aquila2.training import checkpoints, setup, trainer
from aquila2.training.checkpoints import OPTIONS, list_checkpoints
from aquila2.training.options import Options, dump_options, load_options, parse_options
from tests.aquila2.heurimentor.runs import losses_of, write_texts

# What the version before `monitor.divergence` wrote for a tiny run, but for the places.
WRITTEN = (Path(__file__).parent / "options_of_an_older_run.yaml").read_text("utf-8")


def older(tmp_path: Path, stop_on: str = "[]") -> str:
    text = WRITTEN.replace("TEXTS", str(tmp_path / "texts")).replace("RUN", str(tmp_path / "run"))
    return text.replace("stop_on: []", f"stop_on: {stop_on}")


def options_of(text: str, samples: int = 16) -> Options:
    entries = yaml.safe_load(text)
    return parse_options({**entries, "train": {**entries["train"], "samples": samples}})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose checkpoints and `config.yaml` hold what the older version wrote."""
    write_texts(tmp_path / "texts")
    text = older(tmp_path)
    with monkeypatch.context() as context:
        for module in (setup, checkpoints):
            context.setattr(module, "dump_options", lambda options: text)
        trainer.train(options_of(text))
    folder = tmp_path / "run"
    kept = [folder / "config.yaml", *(path / OPTIONS for path in list_checkpoints(folder / "checkpoints"))]
    assert len(kept) == 3 and all("stop_on: []" in path.read_text("utf-8") for path in kept)
    return folder


def test_the_guard_holds_for_an_older_run(run: Path, tmp_path: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    changed = yaml.safe_load(older(tmp_path))
    changed["optimizer"]["lr"], changed["data"]["seq_len"] = 0.5, 32
    with pytest.raises(ValueError, match=r"holds a run with another data\.seq_len, optimizer\.lr, train\.samples;"):
        trainer.train(options_of(yaml.safe_dump(changed), samples=24))
    assert (run / "config.yaml").read_bytes() == before
    (run / "config.yaml").unlink()  # the checkpoints' own are enough
    with pytest.raises(ValueError, match=r"holds a run with another train\.samples;"):
        trainer.train(options_of(older(tmp_path), samples=24))


def test_an_older_run_is_started_again_and_stays_as_it_is(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    losses = losses_of(run)
    options = options_of(older(tmp_path))
    assert trainer.train(options).progress.step == 4
    assert "config.yaml" not in capfd.readouterr().err
    assert (run / "config.yaml").read_text("utf-8") == dump_options(options)
    assert losses_of(run) == losses and not audit(run, data=True).faults


def test_commands_open_an_older_run(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run)]) == 0
    assert main(["mentor", "add", str(run), "sums", str(tmp_path / "texts" / "sums.jsonl"), "--after", "9"]) == 0


def test_options_that_cannot_be_compared_are_no_reason_to_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(older(tmp_path))
    newest = list_checkpoints(run / "checkpoints")[0]

    def refusing(entries: object) -> Options:
        raise ValueError("train has no option 'warp'")

    with monkeypatch.context() as context:
        context.setattr(setup, "parse_options", refusing)
        with pytest.raises(ValueError, match=rf"{newest.name}/{OPTIONS} is whole and not of this version \(train has"):
            setup.claim(run, options)
    (run / "config.yaml").write_text("optimizer: 3\n", "utf-8")
    for path in list_checkpoints(run / "checkpoints"):
        (path / OPTIONS).unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(.*\), and no checkpoint keeps a copy; restore it, or"):
        setup.claim(run, options)
    assert (run / "config.yaml").read_text("utf-8") == "optimizer: 3\n"


def test_stop_on_is_told_by_the_findings_own_options(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(older(tmp_path, "[divergence, plateau]"), "utf-8")
    monitor = load_options(tmp_path / "run.yaml").monitor
    assert (monitor.divergence, monitor.plateau, monitor.stuck) == ("stop", "stop", "warn")
    with pytest.raises(ValueError, match=r"monitor\.stop_on must list some of divergence, .*, got \['spike'\]"):
        load_options(tmp_path / "run.yaml", ["monitor.stop_on=[spike]"])
    with pytest.raises(ValueError, match=r"monitor\.plateau must be stop where monitor\.stop_on lists it, got 'warn'"):
        load_options(tmp_path / "run.yaml", ["monitor.plateau=warn"])
