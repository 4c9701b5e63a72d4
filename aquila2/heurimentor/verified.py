"""Verified folders: written beside, synced, hashed and renamed; one with its name is whole, a change is found out."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aquila2.atomic import fsync_path
from aquila2.heurimentor.hashing import BLOCK, Place, hashes_of

MANIFEST = "manifest.json"
FORMAT = "aquila2-verified-1"
DELETED = ".deleted"
ASIDE = ".aside"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class NotVerified(ValueError):
    """A folder is not what its manifest says."""


@contextmanager
def verified_folder(target: Path, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Gives `NAME.tmp` to write files into; at the end they are synced, hashed and get the name `target`.

    The manifest is the last file, and the rename comes after everything is on the disk, so a folder named `target` is
    whole whatever happened. On an error the temporary folder is removed and `target`, if it was there, stays as it was.

    Args:
        target: The folder; one that is there is replaced.
        facts: JSON values to keep in the manifest, covered by its own hash.
    """
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _make_folder(target.parent)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            fsync_path(path)
        _write_manifest(temporary, facts or {})
        fsync_path(temporary)
        if not (target.exists() and _exchange(temporary, target)):
            if target.exists():
                remove_folder(target)
            temporary.rename(target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Makes a folder and what is above it, each on the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Lets two folders change names in one step, so that there is one under each at any time; False where it cannot.

    Linux has a call for it, most of its file systems obey, and Python does not know it.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0)


def remove_folder(folder: Path) -> None:
    """Removes a folder so that no part of it is ever seen under its name."""
    aside = folder.with_name(folder.name + DELETED)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, after its own hash was checked.

    Raises:
        NotVerified: It is missing, or not as it was written.
    """
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_bytes())
        whole = entries["format"] == FORMAT and entries["seal"] == _seal(entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotVerified(f"{path} cannot be read ({error.__class__.__name__}: {error})") from None
    if not whole:
        raise NotVerified(f"{path} does not have the hash that it names")
    result: dict[str, Any] = entries
    return result


def verified_file(folder: Path, name: str) -> bytes:
    """The content of one file of a folder, after it was compared with the manifest.

    Raises:
        NotVerified: It is missing, or not as it was written.
    """
    entry = read_manifest(folder)["files"].get(name)
    path = folder / name
    if entry is None or not path.is_file():
        raise NotVerified(f"{path} is missing")
    if hashes_of({name: path})[name] != entry["sha256"]:
        raise NotVerified(f"{path} is not as it was written")
    return path.read_bytes()


def verify(
    folder: Path, threads: int | None = None, places: Mapping[str, Sequence[Place]] = MappingProxyType({})
) -> dict[str, Any]:
    """Checks every file of a folder against its manifest, all blocks in parallel, and returns the manifest's facts.

    Args:
        folder: What `verified_folder` wrote.
        threads: Blocks hashed at once; the number of cores unless told.
        places: Memory that files are read into on the way, see `hashes_of`. It holds what was verified if this returns,
            and anything if it raises.

    Raises:
        NotVerified: Names the first file that is missing, too many, or not as it was written.
    """
    manifest = read_manifest(folder)
    files: dict[str, dict[str, Any]] = manifest["files"]
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(files)):
        state = "is missing" if name in files else "is not in its manifest"
        raise NotVerified(f"{folder / name} {state}")
    for name, entry in files.items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise NotVerified(f"{folder / name} has {size} bytes, its manifest names {entry['bytes']}")
    found = hashes_of({name: folder / name for name in files}, threads, places)
    for name, entry in files.items():
        for index, (expected, got) in enumerate(zip(entry["sha256"], found[name], strict=True)):
            if expected != got:
                start = index * BLOCK
                raise NotVerified(f"{folder / name} is not as it was written, in the block that starts at byte {start}")
    facts: dict[str, Any] = manifest["facts"]
    return facts


def newest_verified(
    folders: Sequence[Path],
    report: Callable[[str], None],
    objection: Callable[[dict[str, Any]], str | None] | None = None,
    threads: int | None = None,
) -> tuple[Path, dict[str, Any]] | None:
    """The first of `folders` that verifies, with its facts; tells `report` what is skipped and why.

    Args:
        folders: Newest first.
        report: Told one sentence for each folder that is skipped.
        objection: Looks at the facts of a folder and says why it will not do, None if it will.
        threads: See `verify`.
    """
    for folder in folders:
        try:
            reason = objection(read_manifest(folder)["facts"]) if objection else None
            if reason is None:
                return folder, verify(folder, threads)
        except (NotVerified, OSError) as error:
            reason = str(error)
        report(f"skipping {folder}: {reason}")
    return None


def numbered_folders(parent: Path, prefix: str) -> list[Path]:
    """The folders `prefix` + number in `parent`, largest number first; unfinished and deleted ones are left out."""
    found = [path for path in parent.glob(f"{prefix}*") if path.name[len(prefix) :].isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[len(prefix) :]), reverse=True)


def keep_newest(written: Path, prefix: str, keep: int) -> None:
    """Removes older numbered folders beside the one just written until `keep` are left, and unfinished leftovers.

    The one just written always stays, and so does what has a larger number: nobody has looked whether that is whole.
    Set aside what was skipped before going on, so that it does not stand before what is written next.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    parent, number = written.parent, int(written.name[len(prefix) :])
    older = [path for path in numbered_folders(parent, prefix) if int(path.name[len(prefix) :]) < number]
    for folder in older[keep - 1 :]:
        remove_folder(folder)
    for leftover in [*parent.glob(f"{prefix}*.tmp"), *parent.glob(f"{prefix}*{DELETED}")]:
        shutil.rmtree(leftover, ignore_errors=True)


def set_aside(folder: Path, ending: str = ASIDE) -> Path:
    """Renames a folder that is faulty or belongs to undone steps to `NAME.aside`, for people to look at."""
    aside = folder.with_name(folder.name + ending)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    fsync_path(folder.parent)
    return aside


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashes = hashes_of(paths)
    files = {name: {"bytes": path.stat().st_size, "sha256": hashes[name]} for name, path in paths.items()}
    # Through JSON once, so that what is sealed is what a reader gets.
    entries = json.loads(json.dumps({"format": FORMAT, "block": BLOCK, "facts": dict(facts), "files": files}))
    path = folder / MANIFEST
    with path.open("w", encoding="utf-8") as file:
        json.dump({**entries, "seal": _seal(entries)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _seal(entries: Mapping[str, Any]) -> str:
    sealed = {key: value for key, value in entries.items() if key != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
