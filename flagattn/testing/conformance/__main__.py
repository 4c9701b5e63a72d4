"""`python -m flagattn.testing.conformance`, which is what `make conformance` runs."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import flagattn
from flagattn.testing.conformance.plugin import ConformancePlugin, git
from flagattn.testing.conformance.suites import SUITES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flagattn.testing.conformance", description=__doc__)
    parser.add_argument("--suite", required=True, choices=sorted(SUITES))
    parser.add_argument("--src", required=True, type=Path, help="a checkout of the suite's repository")
    parser.add_argument("--cases", type=int, default=1000, help="how many cases are drawn; 0 for all (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument(
        "--largest",
        type=int,
        default=2**17,
        help="queries x keys a case may have; larger ones are left out of the draw (default 131072)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="stop after so long; the next run goes on there (default: never)",
    )
    parser.add_argument("--output", type=Path, default=None, help="where the JSON goes (default SUITE.json)")
    options = parser.parse_args(arguments)
    suite, source = SUITES[options.suite], options.src.resolve()
    missing = [name for name in suite.files if not (source / name).exists()]
    if missing:
        print(f"{options.src} is no checkout of {suite.repository}: {missing[0]} is missing", file=sys.stderr)
        return 2
    absent = [name for name in suite.imports if importlib.util.find_spec(name) is None]
    if absent:
        print(f"the suite's tests import {absent[0]}, which is not installed: pip install {absent[0]}", file=sys.stderr)
        return 2
    output = options.output or Path(f"{suite.name}.json")
    # One line per case, as they end: a run that was stopped goes on where it stood.
    record = output.with_suffix(".jsonl")
    plugin = ConformancePlugin(suite, source, options.cases, options.seed, options.largest, record)
    plugin.seconds = options.seconds
    plugin.prepare()
    quiet = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark", "--import-mode=importlib"]
    files = [str(source / name) for name in suite.files]
    ended = pytest.main([*quiet, f"--rootdir={source}", "-c", "/dev/null", *files], plugins=[plugin])
    if ended not in _RAN:
        return int(ended)
    result = summary(plugin, suite, source, options)
    output.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{output}: {result['passed']} passed, {len(result['failed'])} failed, {result['skipped']} skipped")
    return 1 if result["failed"] or not plugin.counts else 0


# A run that was stopped by the clock counts as interrupted.
_RAN = (
    pytest.ExitCode.OK,
    pytest.ExitCode.TESTS_FAILED,
    pytest.ExitCode.NO_TESTS_COLLECTED,
    pytest.ExitCode.INTERRUPTED,
)


def summary(plugin: ConformancePlugin, suite: Any, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    lines = plugin.outcomes()
    outcomes = Counter(line["outcome"] for line in lines)
    tests: dict[str, Counter[str]] = {}
    for line in lines:
        test = line["case"].split("::")[-1].split("[")[0]
        tests.setdefault(test, Counter())[line["outcome"]] += 1
    return {
        "suite": suite.name,
        "repository": suite.repository,
        "commit": git(source, "rev-parse", "HEAD"),
        "committed": git(source, "log", "-1", "--format=%cs"),
        "ours": dict(Counter(line.get("ours", "unknown") for line in lines)),
        "run": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cpu_level": flagattn.cpu_level(),
        "command": f"make conformance SUITE={suite.name} SRC=folder CASES={options.cases}",
        "seed": options.seed,
        "largest": options.largest,
        **plugin.counts,
        "not_run": plugin.counts.get("sampled", 0) - len(lines),
        "passed": outcomes["passed"],
        "skipped": outcomes["skipped"],
        "failed": [{"case": line["case"], "error": line["error"]} for line in lines if line["outcome"] == "failed"],
        "tests": {test: dict(counts) for test, counts in sorted(tests.items())},
        "seconds": round(sum(line["seconds"] for line in lines)),
    }


if __name__ == "__main__":
    sys.exit(main())
