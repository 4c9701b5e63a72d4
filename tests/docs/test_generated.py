"""Generated blocks hold what code and result files give now; nothing public is left undescribed."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from bench import results
from docs import blocks, chinese, generate
from docs.generate import ROOT, documents


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_are_up_to_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert generate.regenerated(path) == text, (
        f"{path.relative_to(ROOT)} is out of date; run `python -m docs.generate`, and `python -m bench.report "
        "--update-docs` after a bench"
    )
    opened, closed = text.count("<!-- generated:"), text.count("<!-- end -->")
    assert opened == closed == len(generate.BLOCK.findall(text))


@pytest.mark.parametrize("name", ["docs/api.md", "docs/zh/api.md"])
def test_every_public_function_has_a_section(name: str) -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(blocks.public_functions())


def test_what_modules_offer_is_described() -> None:
    headings = re.findall(r"^#### ([\w.]+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [f"{path}.{name}" for path in blocks.MODULES for name in blocks.described(path)]
    for heading in headings:
        path, _, name = heading.rpartition(".")
        assert getattr(importlib.import_module(path), name).__doc__, f"{heading} has no docstring"


def test_an_unknown_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: nonsense -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="'nonsense'"):
        generate.regenerated(page)


def test_bars_are_translated_whole() -> None:
    from bench.bars import BARS

    for bar in BARS:
        rest = blocks._translated(bar.what)
        for word in (
            "rms_norm",
            "swiglu",
            "torch.compile",
            "torch",
            "onnxruntime",
            "sgemm",
            "fp32",
            "bf16",
            "HF Llama",
            "eager",
        ):
            rest = rest.replace(word, "")
        left = re.findall(r"[a-z]{3,}", rest.replace("full", "").replace("causal", ""))
        assert not left, f"{bar.what!r} is not translated: {left}"


def test_every_cell_of_the_environment_table_is_translated() -> None:
    from flagattn.environment import ENVIRONMENT

    for variable in ENVIRONMENT:
        cells = {variable.read_at, variable.values, variable.default, variable.meaning}
        assert cells <= set(chinese.ENVIRONMENT_ZH)


def test_only_reasons_of_today_leave_cases_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = json.loads((ROOT / "docs/conformance/liger.json").read_text())
    run["deselected"] = {"needs four or eight GPUs": 12, "is long mended": 7}
    (tmp_path / "docs/conformance").mkdir(parents=True)
    (tmp_path / "docs/conformance/liger.json").write_text(json.dumps(run))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    text = blocks.conformance("en", "")
    assert "| 12 | needs four or eight GPUs |" in text and "mended" not in text
    assert text.endswith("for the next run to look at again: 7 of liger.")


# Chinese documents say the same in the same order: as many headings of each level, the same code and the same blocks.
CHINESE = ROOT / "docs" / "zh"
PAIRS = [("README.md", "README.zh.md")] + [
    (f"docs/{path.relative_to(CHINESE)}", f"docs/zh/{path.relative_to(CHINESE)}")
    for path in sorted([*CHINESE.glob("*.md"), *CHINESE.glob("ops/*.md")])
    if path.name != "api.md"
]


@pytest.mark.parametrize(("english", "chinese_name"), PAIRS)
def test_the_two_languages_have_one_structure(english: str, chinese_name: str) -> None:
    def structure(name: str) -> tuple[list[str], list[str], list[str]]:
        text = (ROOT / name).read_text(encoding="utf-8")
        code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        return (
            re.findall(r"^#+", prose, re.MULTILINE),
            [re.sub(r" *#.*", "", block) for block in code],
            re.findall(r"<!-- generated: ([\w -]+) -->", text),
        )

    assert structure(english) == structure(chinese_name)
