"""Rewrites the generated blocks of README and docs: `python -m docs.generate`, or `--check` to only compare.

A block stands between `<!-- generated: NAME -->`, or `<!-- generated: NAME ARGUMENT -->`, and `<!-- end -->`. What is
in it comes from code or from committed result files; tests/docs compares the two. The language follows the file: zh in
its path means Chinese.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from docs import blocks

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)

# What every block is made by: (language, way up to the root, argument if there is one) -> text.
MAKERS: dict[str, Callable[..., str]] = {
    "api": blocks.api_reference,
    "api-modules": blocks.module_reference,
    "asked": blocks.asked,
    "bars": blocks.bars,
    "call-costs": blocks.call_costs,
    "chart": blocks.chart,
    "charts": blocks.all_charts,
    "configs": blocks.configs,
    "conformance": blocks.conformance,
    "environment": blocks.environment,
    "errors": blocks.errors,
    "essays": blocks.essays,
    "features": blocks.features,
    "fused-ops": blocks.fused_ops,
    "masks": blocks.masks,
    "options": blocks.options,
    "results": blocks.results_tables,
    "signature": blocks.signature,
    "summary": blocks.summary,
    "support": blocks.support,
}


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]


def language_of(path: Path) -> str:
    return "zh" if path.name.endswith(".zh.md") or "zh" in path.relative_to(ROOT).parts[:-1] else "en"


def regenerated(path: Path) -> str:
    """The document with every block made anew."""
    up = "/".join([".."] * (len(path.relative_to(ROOT).parts) - 1))
    prefix = f"{up}/" if up else ""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        if name not in MAKERS:
            raise ValueError(f"{path.relative_to(ROOT)} asks for block {name!r}; there are {', '.join(MAKERS)}")
        argument = [match[3]] if match[3] else []
        return f"{match[1]}{MAKERS[name](language_of(path), prefix, *argument).rstrip()}\n{match[4]}"

    return BLOCK.sub(fill, path.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a block is out of date")
    options = parser.parse_args(arguments)
    stale = []
    for path in documents():
        text = regenerated(path)
        if text == path.read_text(encoding="utf-8"):
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not options.check:
            path.write_text(text, encoding="utf-8")
    print(f"{'out of date' if options.check else 'rewritten'}: {', '.join(stale) or 'nothing'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
