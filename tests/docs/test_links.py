"""Every relative link of README and docs leads to something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import ROOT, documents

# A path of the repository in code marks, without placeholders or patterns.
PATH = re.compile(r"`((?:csrc|flagattn|aquila2|tests|bench|docs|cmake)/[\w./-]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MADE_BY_COMMANDS = ("bench/results", "flagattn/_C.so", "flagattn/_C_cuda.so")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """The anchors that a forge makes of a document's headings."""
    headings = HEADING.findall(without_code(path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    broken = []
    for link in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken, f"{path.relative_to(ROOT)} links to what is not there: {', '.join(broken)}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path: Path) -> None:
    named = PATH.findall(without_code(path.read_text(encoding="utf-8")))
    missing = [name for name in named if not (ROOT / name).exists() and not name.startswith(MADE_BY_COMMANDS)]
    assert not missing, f"{path.relative_to(ROOT)} names files that are not there: {', '.join(missing)}"
