"""Verified folders: every flipped byte, cut and missing file is found; a crash leaves the old state or the new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aquila2.heurimentor import hashing, verified
from aquila2.heurimentor.verified import (
    NotVerified,
    keep_newest,
    newest_verified,
    numbered_folders,
    read_manifest,
    set_aside,
    verified_file,
    verified_folder,
    verify,
)

IMPORTABLE = {"PYTHONPATH": str(Path(verified.__file__).parents[2])}


def write(folder: Path, content: bytes = b"weights", facts: dict[str, object] | None = None) -> Path:
    with verified_folder(folder, facts) as temporary:
        (temporary / "model.bin").write_bytes(content)
        (temporary / "empty").touch()
        (temporary / "sub").mkdir()
        (temporary / "sub" / "state.json").write_text('{"step": 7}')
    return folder


def test_what_was_written_verifies(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-1", facts={"step": 1, "head": {"chain": "ab"}, "loss": 0.1})
    assert verify(folder) == {"step": 1, "head": {"chain": "ab"}, "loss": 0.1}
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    write(folder, b"others")
    assert verify(folder) == {} and (folder / "model.bin").read_bytes() == b"others"


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-1", bytes(range(50)), {"step": 1})
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            try:
                facts = verify(folder)
            except NotVerified:
                continue
            # Only white space of the manifest may change without changing what it says.
            assert path.name == "manifest.json" and facts == {"step": 1} and chr(whole[place]).isspace()
        path.write_bytes(whole)
    assert verify(folder) == {"step": 1}


def test_every_truncation_and_growth_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-1", bytes(range(20)), {"step": 1})
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for cut in [*(whole[:size] for size in range(len(whole))), whole + b"\0"]:
            path.write_bytes(cut)
            with pytest.raises(NotVerified, match=path.name):
                verify(folder)
        path.write_bytes(whole)


def test_missing_and_added_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-1")
    (folder / "extra").touch()
    with pytest.raises(NotVerified, match="extra is not in its manifest"):
        verify(folder)
    (folder / "extra").unlink()
    (folder / "empty").unlink()
    with pytest.raises(NotVerified, match="empty is missing"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(NotVerified, match="cannot be read"):
        verify(folder)


def test_files_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (verified, hashing):
        monkeypatch.setattr(module, "BLOCK", 4096)
    content = os.urandom(3 * 4096 + 5)
    folder = write(tmp_path / "step-1", content)
    assert len(read_manifest(folder)["files"]["model.bin"]["sha256"]) == 4
    for threads in (1, 2, None):
        assert verify(folder, threads) == {}
    (folder / "model.bin").write_bytes(content[:8200] + bytes([content[8200] ^ 1]) + content[8201:])
    with pytest.raises(NotVerified, match="in the block that starts at byte 8192"):
        verify(folder)


def test_the_newest_that_verifies_is_taken(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        write(tmp_path / f"step-{step}", facts={"step": step})
    (tmp_path / "step-100" / "model.bin").write_bytes(b"flipped")
    (tmp_path / "step-101.tmp").mkdir()
    said: list[str] = []
    found = newest_verified(
        numbered_folders(tmp_path, "step-"), said.append, lambda facts: "too new" if facts["step"] == 11 else None
    )
    assert found == (tmp_path / "step-10", {"step": 10})
    assert len(said) == 2 and "model.bin" in said[0] and said[1].endswith("step-11: too new")
    assert newest_verified([tmp_path / "nothing"], said.append) is None
    # What was skipped does not push out what is written next, set aside or not.
    keep_newest(write(tmp_path / "step-12"), "step-", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-100", "step-11", "step-12"}
    assert set_aside(tmp_path / "step-100") == tmp_path / "step-100.aside"
    keep_newest(tmp_path / "step-12", "step-", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-100.aside", "step-12"}
    assert numbered_folders(tmp_path, "step-") == [tmp_path / "step-12"]
    with pytest.raises(ValueError, match="keep must be at least 1"):
        keep_newest(tmp_path / "step-12", "step-", 0)


@pytest.mark.parametrize("fails", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    folder = write(tmp_path / "latest", b"old")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    targets: dict[str, Callable[[], None]] = {
        "write": lambda: monkeypatch.setattr(Path, "write_bytes", refuse),
        "fsync": lambda: monkeypatch.setattr(os, "fsync", refuse),
        "rename": lambda: monkeypatch.setattr(verified, "_exchange", refuse),
    }
    targets[fails]()
    with pytest.raises(OSError, match="No space left"):
        write(folder, b"new")
    monkeypatch.undo()
    assert verify(folder) == {} and (folder / "model.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_folder_that_is_replaced_is_there_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not verified._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names")
    folder = write(tmp_path / "latest", b"old")

    def away(*arguments: object) -> None:
        raise AssertionError("for a moment there is no folder of that name")

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", away)
        context.setattr(verified, "remove_folder", away)
        write(folder, b"new")
    assert verify(folder) == {} and (folder / "model.bin").read_bytes() == b"new"
    assert not folder.with_name("latest.tmp").exists()
    # Where it cannot, it does without.
    monkeypatch.setattr(verified, "_exchange", lambda first, second: False)
    assert (write(folder, b"newer") / "model.bin").read_bytes() == b"newer"


def test_one_file_is_compared_before_it_is_used(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-1", b"weights")
    assert verified_file(folder, "model.bin") == b"weights"
    (folder / "model.bin").write_bytes(b"Weights")
    for name, reason in (("model.bin", "is not as it was written"), ("others", "is missing")):
        with pytest.raises(NotVerified, match=f"{name} {reason}"):
            verified_file(folder, name)


def test_the_folders_above_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(verified, "fsync_path", synced.append)
    write(tmp_path / "run" / "checkpoints" / "step-1")
    assert {tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints"} <= set(synced)


WRITER = """
import os, random, signal, sys, time
from pathlib import Path
from aquila2.heurimentor.verified import keep_newest, verified_folder
random.seed(int(sys.argv[3]))
for attempt in range(int(sys.argv[2])):
    root = Path(sys.argv[1]) / str(attempt)
    root.mkdir()
    child = os.fork()
    if child:
        while not (root / "step-0").exists():
            time.sleep(0.001)
        time.sleep(random.uniform(0.003, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        continue
    for step in range(100000):
        with verified_folder(root / f"step-{step}", {"step": step}) as folder:
            for name in "abc":
                (folder / name).write_bytes(f"{name}{step}".encode() * 2000)
        keep_newest(root / f"step-{step}", "step-", 2)
        (root / "finished").write_bytes(str(step).encode())
"""


def kill_writers(folder: Path, kills: int, seed: int) -> None:
    """Kills that many writers, and fails where one leaves no whole newest folder."""
    script = folder / "writer.py"
    script.write_text(WRITER)
    runs = folder / "runs"
    runs.mkdir()
    subprocess.run(
        [sys.executable, str(script), str(runs), str(kills), str(seed)], check=True, env={**os.environ, **IMPORTABLE}
    )
    for root in runs.iterdir():
        said: list[str] = []
        found = newest_verified(numbered_folders(root, "step-"), said.append)
        noted = (root / "finished").read_bytes() if (root / "finished").exists() else b""
        assert found is not None and found[1]["step"] >= int(noted or b"0") and not said
        keep_newest(found[0], "step-", 1)
        assert {path.name for path in root.iterdir()} <= {found[0].name, "finished"}


def test_a_writer_killed_anywhere_leaves_a_whole_newest_folder(tmp_path: Path) -> None:
    kill_writers(tmp_path, 20, 0)


def test_manifests_are_readable_json(tmp_path: Path) -> None:
    manifest = json.loads((write(tmp_path / "step-1") / "manifest.json").read_text())
    assert manifest["files"]["sub/state.json"]["bytes"] == 11
