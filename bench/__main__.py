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
from typing import Any

from bench import machine, report, results

NOTHING_COLLECTED = 5  # pytest's exit status


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
    command = command_of(options.modules, options.keyword)
    store = not options.keyword or options.output is not None
    folder = options.output or results.RESULTS / machine.this_machine()

    code, measured = 0, dict[str, dict[str, Any]]()
    for name in chosen:
        keyword = options.keyword if name != "machine" else None
        module_code, raw = measure(name, keyword)
        code = code or module_code
        beside = measured["machine"]["rows"] if "machine" in measured else []
        files = results.split_by_module(raw, command, beside) if raw else {}
        measured.update(files)
        if store:
            for path in results.write(files, folder):
                print(f"written: {os.path.relpath(path, machine.ROOT)}", flush=True)
    print(report.text_report(results.read(folder) if store else measured))
    return code


def measure(name: str, keyword: str | None) -> tuple[int, dict[str, Any] | None]:
    """Runs one module in a process of its own; returns pytest's status and pytest-benchmark's JSON."""
    environment = {**os.environ, "GLIBC_TUNABLES": machine.GLIBC_TUNABLES}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "raw.json"
        pytest = [sys.executable, "-m", "pytest", f"bench/bench_{name}.py", "-q", "-p", "no:cacheprovider"]
        pytest += ["--benchmark-enable", "--benchmark-only", "--benchmark-quiet", "--disable-warnings"]
        pytest += [f"--benchmark-json={path}", *(["-k", keyword] if keyword else [])]
        code = subprocess.run(pytest, cwd=machine.ROOT, env=environment).returncode
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return (0 if code == NOTHING_COLLECTED else code), json.loads(text) if text else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
