"""The list of environment variables is what the code reads, neither more nor less."""

from __future__ import annotations

import re
from pathlib import Path

from docs.generate import ROOT
from flagattn.environment import ENVIRONMENT

READS = re.compile(
    r"""(?:getenv\(|environ(?:\.get\(|\.setdefault\(|\[))\s*['"](\w+)['"]|['"](\w+)['"] in os\.environ"""
)

# What other programs define and we only pass on or look at.
FOREIGN = {
    "CI", "GLIBC_TUNABLES", "HOME", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "PATH", "TMPDIR",
    "TORCHELASTIC_RESTART_COUNT",
}  # fmt: skip


def sources() -> list[Path]:
    files = [ROOT / "setup.py"]
    for folder, pattern in (
        ("flagattn", "*.py"),
        ("aquila2", "*.py"),
        ("csrc", "*.cpp"),
        ("csrc", "*.h"),
        ("csrc", "*.cu*"),
    ):
        files += (ROOT / folder).rglob(pattern)
    return files


def test_the_table_lists_what_is_read() -> None:
    read = set()
    for path in sources():
        if path.name == "environment.py":
            continue
        for groups in READS.findall(path.read_text(encoding="utf-8")):
            read |= {name for name in groups if name}
    assert read - FOREIGN == {variable.name for variable in ENVIRONMENT}


def test_names_are_listed_once() -> None:
    names = [variable.name for variable in ENVIRONMENT]
    assert len(names) == len(set(names))
    assert {variable.read_at for variable in ENVIRONMENT} <= {"import", "first call", "build"}
