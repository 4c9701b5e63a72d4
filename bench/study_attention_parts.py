"""`python -m bench.study_attention_parts [file]`: what the parts of the CPU attention forward take, one by one.

One panel of queries against one key tile, in the inner caches, on one thread: the scores' product, the exponentials and
the outputs' product, beside multiply-adds in registers. Together they bound what the whole kernel can reach, however
well it hides memory and packing. How many instructions the core issues in a cycle at that time is told as well: where a
neighbour has the other half of the core, that bounds the parts, and not the multiply-adds.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.roofline import compiled_probe, fma_peak_library

HEAD_DIMS, ROUNDS, TIMES = (64, 128), 101, 100
COMMAND = "python -m bench.study_attention_parts"


def seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def issue_rate_library() -> ctypes.CDLL:
    """The loops of issue_rate.cpp."""
    loaded = compiled_probe("issue_rate.cpp")
    for loop in (loaded.no_ops, loaded.dependent_additions):
        loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_double
    return loaded


def rate(loop: Any, rounds: int = 4000) -> float:
    """Instructions per second."""
    start = time.perf_counter()
    done = loop(rounds)
    return float(done / (time.perf_counter() - start))


def measure(library: ctypes.CDLL, dim: int) -> dict[str, float]:
    """Medians over rounds in which every part runs once, and so do the multiply-adds."""
    data = torch.rand(library.panel_floats(dim)) - 0.5
    flops = 2.0 * library.panel_columns() * library.tile_keys() * dim
    peak, issue = fma_peak_library(), issue_rate_library()
    times: dict[str, list[float]] = {"scores": [], "exponentials": [], "outputs": [], "peak": []}
    issued = []
    for _ in range(ROUNDS):
        for name in ("scores", "exponentials", "outputs"):
            part = getattr(library, name)
            times[name].append(seconds(lambda part=part: part(ctypes.c_void_p(data.data_ptr()), dim, TIMES)) / TIMES)
        start = time.perf_counter()
        done = peak.fma_flops(20_000)
        times["peak"].append((time.perf_counter() - start) * flops / done)
        issued.append(rate(issue.no_ops) / rate(issue.dependent_additions))

    def median(values: list[float]) -> float:
        return statistics.median(values)

    peaks = times["peak"]
    whole = [sum(parts) for parts in zip(times["scores"], times["exponentials"], times["outputs"], strict=True)]
    scores_of_tile = library.panel_columns() * library.tile_keys()
    return {
        "peak_gflops": round(flops / median(peaks) / 1e9, 1),
        "scores_share_of_peak": round(median([p / t for p, t in zip(peaks, times["scores"])]), 3),
        "outputs_share_of_peak": round(median([p / t for p, t in zip(peaks, times["outputs"])]), 3),
        "exponential_ns_per_score": round(median(times["exponentials"]) / scores_of_tile * 1e9, 4),
        "no_ops_per_cycle": [round(share, 2) for share in statistics.quantiles(issued, n=4)],
        "all_parts_share_of_peak": round(median([2 * p / t for p, t in zip(peaks, whole)]), 3),
    }


def main(arguments: list[str]) -> int:
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "attention_parts.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        library = compiled_probe(
            "attention_parts.cpp", Path(folder), ("-std=c++20", "-I", str(machine.ROOT / "csrc"), "-fno-math-errno")
        )
        library.panel_floats.restype = library.panel_columns.restype = library.tile_keys.restype = ctypes.c_int64
        for part in (library.scores, library.exponentials, library.outputs):
            part.argtypes, part.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None
        library.panel_floats.argtypes = [ctypes.c_int64]
        rows = {f"D {dim}": measure(library, dim) for dim in HEAD_DIMS}
    facts = {"command": COMMAND, "threads": 1, "head_dims": rows}
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
