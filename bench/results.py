"""Result files: one JSON per bench module and machine, with the command, commit and conditions that made it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.machine import ROOT

RESULTS = ROOT / "bench" / "results"
SCHEMA = 1


def split_by_module(
    report: dict[str, Any], command: str, machine_rows: list[dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """pytest-benchmark's JSON -> {"attention": one result file, ...}; rows without our `extra_info` are left out.

    `machine_rows` are the machine's own rates of the same run: a file keeps those that it was measured beside.
    """
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        if "suite" not in info:
            continue
        module = Path(entry["fullname"].split("::")[0]).stem.removeprefix("bench_")
        statistics = {
            "rounds": entry["stats"]["rounds"],
            "min_s": entry["stats"]["min"],
            "iqr_s": entry["stats"]["iqr"],
        }
        rows[module].append({"name": entry["name"], **info, **statistics})
    return {
        module: {
            "schema": SCHEMA,
            "command": command,
            "date": report["datetime"][:19],
            "commit": report["commit_info"]["id"],
            "conditions": report["machine_info"],
            "machine_rows": machine_rows or [],
            "rows": _rounded(found),
        }
        for module, found in rows.items()
    }


def _rounded(value: Any) -> Any:
    """Six significant digits: more than any clock here gives, and a file that can be read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def write(files: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for module, content in files.items():
        path = folder / f"{module}.json"
        text = json.dumps({**content, "machine_rows": [], "rows": []}, ensure_ascii=False, indent=1)
        for field in ("machine_rows", "rows"):
            lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in content.get(field, []))
            text = text.replace(f'"{field}": []', f'"{field}": [\n{lines}\n ]' if lines else f'"{field}": []')
        path.write_text(text + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result file of a machine by module name."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    for name, content in files.items():
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{folder / name}.json has schema {content.get('schema')}; this report reads {SCHEMA}")
    return files


def machines() -> list[str]:
    """The machines that have result files; studies in folders below them do not count."""
    return sorted({path.parent.name for path in RESULTS.glob("*/*.json")})
