"""`python -m bench [module ...]` measures, writes bench/results/<machine>/ and prints the report.

With -k only some cases of a module are run; they are printed, and stored only where --output says so.
"""

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
    """The machine's own rates come first: they are measured in every run."""
    names = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    return ["machine", *sorted(names - {"machine"})]


def command_of(names: list[str], keyword: str | None) -> str:
    return shlex.join(["python", "-m", "bench", *names, *(["-k", keyword] if keyword else [])])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=str(__doc__).splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"which benches to run (default: all of {', '.join(modules())})")
    parser.add_argument("-k", dest="keyword", help="pytest expression that picks cases")
    parser.add_argument("--output", type=Path, help="folder of the results (default: bench/results/<machine>)")
    options = parser.parse_args(arguments)
    for name in options.modules:
        if name not in modules():
            parser.error(f"no bench named {name!r}; there are {', '.join(modules())}")

    chosen = [name for name in modules() if not options.modules or name in ("machine", *options.modules)]
    environment = {**os.environ, "GLIBC_TUNABLES": machine.GLIBC_TUNABLES}
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.json"
        pytest = [sys.executable, "-m", "pytest", *(f"bench/bench_{name}.py" for name in chosen)]
        pytest += [
            "-q",
            "-p",
            "no:cacheprovider",
            "--benchmark-enable",
            "--benchmark-only",
            "--benchmark-quiet",
            "--disable-warnings",
        ]
        pytest += [f"--benchmark-json={raw}", *(["-k", f"({options.keyword}) or machine"] if options.keyword else [])]
        code = subprocess.run(pytest, cwd=machine.ROOT, env=environment).returncode
        if not raw.exists():
            return code or 1
        command = command_of(options.modules, options.keyword)
        files = results.split_by_module(json.loads(raw.read_text(encoding="utf-8")), command)
    if options.keyword and not options.output:
        print(report.text_report(files))
        return code
    folder = options.output or results.RESULTS / machine.this_machine()
    paths = results.write(files, folder)
    print(report.text_report(results.read(folder)))
    print("\nwritten: " + ", ".join(os.path.relpath(path, machine.ROOT) for path in paths))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
