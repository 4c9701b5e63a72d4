"""No number that was not measured: speeds stand in generated blocks, or beside a link to the JSON they come from.

A kernel essay may also tell what tuning showed, in a section that names the machine it was measured on.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import BLOCK, ROOT, documents

# A number with a unit of speed, time or ratio. Plain sizes and counts are no claims.
CLAIM = re.compile(
    r"\d[\d.,]*\s*(?:[GT]FLOP/s|GFLOPS|[GM]i?B/s|tokens/s|tok/s|ms\b|µs|μs|\bus\b|ns\b|seconds\b|x faster|× faster"
    r"|×(?!\s*\d)|times as fast|%|倍|毫秒|微秒|百分)"
)
MACHINE = re.compile(r"\b(?:EPYC|Xeon|H200|H100|A100)\b")
SOURCE = re.compile(r"\([^)]*bench/results/[^)]+\.json\)")


def without_tuning_notes(text: str) -> str:
    sections = re.split(r"(?m)^(?=#+ )", text)
    return "".join(section for section in sections if not MACHINE.search(section))


def paragraphs_with_claims(text: str) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", BLOCK.sub("", text), flags=re.DOTALL)
    return [part for part in re.split(r"\n\s*\n", prose) if CLAIM.search(part) and not SOURCE.search(part)]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_speed_has_a_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = paragraphs_with_claims(without_tuning_notes(text) if path.parent.name == "kernels" else text)
    claims = [f"{CLAIM.search(part)[0]!r} in {part.strip()[:100]!r}" for part in found]  # type: ignore[index]
    assert not claims, (
        f"{path.relative_to(ROOT)} quotes numbers without a link to a JSON under bench/results: " + "; ".join(claims)
    )


def test_the_rule_finds_claims_and_accepts_sources() -> None:
    assert paragraphs_with_claims("It reaches 240 GFLOP/s.")
    assert paragraphs_with_claims("前向快 1.5 倍。")
    assert paragraphs_with_claims("It is 2.5× as fast.\n\nNothing here.") == ["It is 2.5× as fast."]
    assert not paragraphs_with_claims("240 GFLOP/s ([file](../bench/results/machine/attention.json)).")
    assert not paragraphs_with_claims("A 1024 × 1024 matrix in 16 bits, head dim 128.")
    assert not paragraphs_with_claims("<!-- generated: bars -->\n1.5×\n<!-- end -->")


def test_tuning_notes_need_a_machine() -> None:
    notes = "## Tried\n\nOn an AMD EPYC.\n\nPrefetch: 3 % faster.\n"
    assert not paragraphs_with_claims(without_tuning_notes(notes))
    assert paragraphs_with_claims(without_tuning_notes(notes + "## Later\n\n4 % faster.\n")) == ["4 % faster.\n"]
