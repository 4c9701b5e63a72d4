"""The audit: proves a whole run, and finds whatever was done to one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aquila2.heurimentor.ledger.audit import audit, open_segments
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import ROOT, Tampered, scan, seal
from aquila2.heurimentor.ledger.lineage import BadRecord, Lineage
from aquila2.heurimentor.verified import NotVerified


def rewrite(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Forges the file: records are changed and all chain values made anew."""
    chain, content = ROOT, b""
    chains: dict[str, str] = {}
    for line in scan(run / NAME).lines:
        record = dict(line.record)
        change(record)
        if "onto" in record:
            record["onto"] = chains[record["onto"]]
        sealed, chain = seal(chain, record)
        chains[line.chain] = chain
        content += sealed
    (run / NAME).write_bytes(content)


def test_a_whole_run_is_proved(run: Path) -> None:
    said: list[str] = []
    for result in (audit(run), audit(run, data=True, report=said.append)):
        assert not result.faults
        assert (result.steps, result.samples, result.undone, result.heads) == (20, 127, 3, 2)
        assert sum(use.drawn for use in result.segments) == 127
        assert sum(use.skipped for use in result.segments) == 7
        table = result.table()
        assert "exactly once: proved" in table and "went on from step 5 after a crash" in table
    assert result.digests == 20 and result.permutations >= 4 and any("verifying segment 2" in s for s in said)
    epochs = {use.segment.domain: use.epochs for use in result.segments[:2]}
    assert max(epochs.values()) >= 1


def test_a_torn_tail_is_told(run: Path) -> None:
    with (run / NAME).open("ab") as file:
        file.write(b'{"kind":"step","st')
    result = audit(run)
    assert not result.faults and "a torn tail of 18 bytes" in result.table()


def test_a_changed_line_is_found(run: Path) -> None:
    content = (run / NAME).read_bytes()
    (run / NAME).write_bytes(content.replace(b'"loss":1.0', b'"loss":9.0', 1))
    with pytest.raises(Tampered, match="is not what its chain value was made for"):
        audit(run)


def test_a_forged_chain_misses_the_heads_of_the_checkpoints(run: Path) -> None:
    rewrite(run, lambda record: record["values"].update(loss=0.5) if record["kind"] == "step" else None)
    result = audit(run)
    assert result.faults == [f"step-{step} was saved with another ledger than this one" for step in (20, 5)]
    assert "NOT PROVED" in result.table()


def test_a_head_that_was_kept_elsewhere_exposes_a_new_chain_and_a_cut(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")  # with the heads that a forger would know
    before = [line.chain for line in scan(run / NAME).lines]
    found = audit(run, heads=before)
    assert not found.faults and found.head == before[-1] and f"head {before[-1]}" in found.table()
    whole = (run / NAME).read_bytes()
    (run / NAME).write_bytes(whole[: scan(run / NAME).lines[-2].end])
    assert not audit(run).faults
    assert audit(run, heads=before[-2:]).faults == [f"the ledger does not have the head {before[-1]} any more"]
    with pytest.raises(
        ValueError, match=rf"the 64 hexadecimal digits that an audit has printed, got '{before[-1][:12]}'"
    ):
        audit(run, heads=[before[-1][:12]])
    (run / NAME).write_bytes(whole)
    rewrite(run, lambda record: record.get("values", {}).update(loss=0.0))
    assert not audit(run).faults and audit(run, heads=before[-1:]).faults


def test_forged_draws_and_digests_are_found(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    copy = run.parent / "copy"
    shutil.copytree(run, copy)

    def other_draws(record: dict[str, Any]) -> None:
        if record.get("step") == 9 and record["kind"] == "step":
            record["drawn"][0][1] += 1

    rewrite(run, other_draws)
    faults = audit(run).faults
    assert any("recorded other draws than the decisions ask for" in fault for fault in faults)
    assert any("with a gap" in fault for fault in faults)

    rewrite(copy, lambda record: record.update(digest="0" * 16) if record.get("step") == 9 else None)
    assert not audit(copy).faults
    assert audit(copy, data=True).faults == ["step 9 was fed other tokens than its rows hold"]


def test_a_left_out_step_is_found(run: Path) -> None:
    lines = [line for line in scan(run / NAME).lines if line.record.get("step") != 10]
    content, chain = b"", ROOT
    for line in lines:
        sealed, chain = seal(chain, line.record)
        content += sealed
    (run / NAME).write_bytes(content)
    with pytest.raises(BadRecord):
        audit(run)


def test_changed_data_is_found(run: Path) -> None:
    path = run / "data" / "english" / "tokens.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    alone = audit(run)  # looks at no row, and says so
    assert not alone.faults and "proved from the log; no row was read" in alone.table()
    faults = audit(run, data=True).faults
    assert "tokens.bin is not as it was written" in faults[0] and "was fed other tokens" in faults[1]
    shutil.rmtree(run / "data" / "english")
    shutil.copytree(run / "data" / "chinese", run / "data" / "english")
    with pytest.raises(NotVerified, match="the run was decided to use"):
        open_segments(run, Lineage.of(scan(run / NAME).lines))
    assert any("was decided to use" in fault for fault in audit(run, data=True).faults)


def test_checkpoints_without_a_head(run: Path) -> None:
    manifest = run / "checkpoints" / "step-5" / "manifest.json"
    manifest.write_text(json.dumps({"facts": {}}))
    assert "step-5 does not tell where the ledger stood" in audit(run).faults[0]


def test_nothing_to_audit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no ledger"):
        audit(tmp_path)
    (tmp_path / NAME).touch()
    assert audit(tmp_path).faults == ["the ledger has no line"]
