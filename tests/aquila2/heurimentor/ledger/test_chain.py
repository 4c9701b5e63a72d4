"""The chained file: every change and every cut is found or healed, and a refused write leaves whole lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aquila2.heurimentor.ledger.chain import ROOT, ChainFile, Tampered, scan, seal

RECORDS = [{"kind": "genesis", "seed": 1}, {"kind": "step", "loss": 2.5}, {"kind": "决定", "value": {"a": [1, None]}}]


def write(path: Path, records: list[dict[str, Any]] | None = None) -> bytes:
    file = ChainFile(path)
    for record in RECORDS if records is None else records:
        file.append(record)
    file.close()
    return path.read_bytes()


def test_lines_are_json_and_come_back(tmp_path: Path) -> None:
    content = write(tmp_path / "l")
    assert [{k: v for k, v in json.loads(line).items() if k != "chain"} for line in content.splitlines()] == RECORDS
    found = scan(tmp_path / "l")
    assert [line.record for line in found.lines] == RECORDS and found.torn == b""
    assert [line.number for line in found.lines] == [0, 1, 2]
    assert found.end == len(content)
    file = ChainFile(tmp_path / "l")
    assert (file.chain, file.end, file.cut) == (found.lines[-1].chain, len(content), 0)
    added = file.append({"kind": "more"})
    file.close()
    assert scan(tmp_path / "l").lines[-1] == added


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "l"
    content = write(path)
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        # The checkpoint knows that all of it was there.
        with pytest.raises(Tampered, match="a checkpoint knows"):
            scan(path, synced=len(content))
        try:
            found = scan(path)
        except Tampered:
            continue
        # Without a checkpoint only what cannot be told from a torn last line passes as one.
        assert place >= last and len(found.lines) == 2 and found.torn


def test_every_truncation_is_healed_or_found(tmp_path: Path) -> None:
    path = tmp_path / "l"
    content = write(path)
    ends = [line.end for line in scan(path).lines]
    for size in range(len(content)):
        path.write_bytes(content[:size])
        whole = sum(end <= size for end in ends)
        found = scan(path)
        assert len(found.lines) == whole and len(found.torn) == size - found.end
        if size < ends[-1]:
            with pytest.raises(Tampered):
                ChainFile(path, synced=ends[-1])
            assert path.stat().st_size == size
        file = ChainFile(path, synced=ends[whole - 1] if whole else 0)
        assert file.cut == size - found.end and path.stat().st_size == found.end
        aside = path.with_name(f"l.torn-{found.end}")
        assert not found.torn or aside.read_bytes() == found.torn
        file.append({"kind": "after"})
        file.close()
        assert scan(path).lines[-1].record == {"kind": "after"}


def test_lines_cannot_be_removed_swapped_or_forged(tmp_path: Path) -> None:
    path = tmp_path / "l"
    first, second, third = write(path).splitlines(keepends=True)
    for lines in ([first, third], [second, third], [first, third, second], [first, second, second]):
        path.write_bytes(b"".join(lines))
        with pytest.raises(Tampered, match="is not what its chain value was made for"):
            scan(path)
    forged, _ = seal("0" * 64, RECORDS[1])
    path.write_bytes(first + forged)
    with pytest.raises(Tampered, match="line 2"):
        scan(path)


def test_garbage_of_a_power_cut_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "l"
    content = write(path)
    end = scan(path).lines[1].end
    for garbage in (b"\0" * 100, b"\0\n\0\n", b"\xff" * 7 + b"\n", content[end:][:30] + b"\0" * 50 + b"\n"):
        path.write_bytes(content[:end] + garbage)
        assert len(scan(path).lines) == 2
        file = ChainFile(path)
        file.close()
        assert path.read_bytes() == content[:end]
    # A page that was lost before one that was kept: only beyond what a checkpoint knows to be synced.
    path.write_bytes(content[:end] + b"\0" * 40 + b"\n" + content[end:])
    with pytest.raises(Tampered):
        scan(path)
    assert len(scan(path, synced=end).lines) == 2


def test_a_refused_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l"
    content = write(path)
    file = ChainFile(path)
    real = os.write
    state = {"left": 20}

    def full(descriptor: int, data: bytes) -> int:
        if not state["left"]:
            raise OSError(28, "No space left on device")
        written = real(descriptor, data[: state["left"]])
        state["left"] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.append({"kind": "a long line that does not fit"})
    assert path.read_bytes() == content
    monkeypatch.undo()
    file.append({"kind": "now"})
    file.close()
    assert len(scan(path).lines) == 4


def test_two_writers(tmp_path: Path) -> None:
    file = ChainFile(tmp_path / "l")
    with pytest.raises(BlockingIOError, match="is being written by another process"):
        ChainFile(tmp_path / "l")
    file.close()
    ChainFile(tmp_path / "l").close()


def test_records_that_cannot_be_sealed() -> None:
    for record in ({}, {"chain": "x"}):
        with pytest.raises(ValueError, match="a record must be an object"):
            seal(ROOT, record)
    with pytest.raises(ValueError, match="not JSON compliant"):
        seal(ROOT, {"loss": float("nan")})
