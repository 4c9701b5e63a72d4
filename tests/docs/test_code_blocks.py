"""Every Python block of README and docs runs: README's each alone, the others in order, a namespace per document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from docs.generate import ROOT, documents

PYTHON = re.compile(r"(<!-- not run: .+ -->\n)?```python\n(.*?)```", re.DOTALL)


def blocks_of(path: Path) -> list[str]:
    return [block for skipped, block in PYTHON.findall(path.read_text(encoding="utf-8")) if not skipped]


@pytest.mark.parametrize(
    "path", [path for path in documents() if blocks_of(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    names: dict[str, Any] = {"__name__": "__document__"}
    try:
        for index, block in enumerate(blocks_of(path)):
            if path.parent == ROOT:
                names = {"__name__": "__document__"}
            exec(compile(block, f"{path.relative_to(ROOT)}, block {index + 1}", "exec"), names)
    finally:
        torch.set_num_threads(threads)
