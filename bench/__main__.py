"""`python -m bench [module ...] [-k expression]` measures, writes bench/results/<machine>/ and prints the report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine, report, results


def modules() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def command_of(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "bench", *arguments])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"which benches to run (default: all of {', '.join(modules())})")
    parser.add_argument("-k", dest="keyword", help="pytest expression that picks cases")
    parser.add_argument("--output", type=Path, help="folder of the results (default: bench/results/<machine>)")
    options = parser.parse_args(arguments)
    for name in options.modules:
        if name not in modules():
            parser.error(f"no bench named {name!r}; there are {', '.join(modules())}")

    # The machine's own rates come first and with every run; a partial run keeps the other modules' files.
    chosen = options.modules or modules()
    chosen = ["machine", *(name for name in chosen if name != "machine")]
    environment = {**os.environ, "GLIBC_TUNABLES": machine.GLIBC_TUNABLES}
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.json"
        pytest = [sys.executable, "-m", "pytest", *(f"bench/bench_{name}.py" for name in chosen)]
        pytest += ["-q", "-p", "no:cacheprovider", "--benchmark-enable", "--benchmark-only", "--benchmark-quiet"]
        pytest += [f"--benchmark-json={raw}", *(["-k", f"({options.keyword}) or machine"] if options.keyword else [])]
        code = subprocess.run(pytest, cwd=machine.ROOT, env=environment).returncode
        if not raw.exists():
            return code or 1
        files = results.split_by_module(json.loads(raw.read_text(encoding="utf-8")), command_of(arguments))
    folder = options.output or results.RESULTS / machine.this_machine()
    paths = results.write(files, folder)
    print(report.text_report(results.read(folder)))
    print("\nwritten: " + ", ".join(os.path.relpath(path, machine.ROOT) for path in paths))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
