"""`python -m bench.study_fused_ops [file]`: the fused ops on one thread by processor time, for their essay in docs.

Processor time of one thread stays comparable on a machine that is busy with other work, where the wall-clock time of
two threads does not. Every contestant runs once per round, each on its next set of buffers; ratios are formed in the
round.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine
from bench.call_costs import call_costs

ROWS, COLS, HEADS, ROUNDS, SETS = 2048, 4096, 32, 15, 3
COMMAND = "python -m bench.study_fused_ops"


def race(contestants: dict[str, Callable[[int], Any]]) -> dict[str, Any]:
    """Median milliseconds of each, and the median ratios of `copy` and `torch.compile` to ours."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS + 1):
        for name, run in contestants.items():
            start = time.thread_time()
            result = run(turn)
            seconds = time.thread_time() - start
            del result
            if turn > 0:
                times[name].append(seconds)
    ours = times["ours"]
    row: dict[str, Any] = {f"{name}_ms": round(statistics.median(t) * 1e3, 3) for name, t in times.items()}
    for name in contestants.keys() - {"ours"}:
        row[f"ours_over_{name}"] = round(statistics.median(a / b for a, b in zip(ours, times[name])), 3)
    return row


def measure(dtype: Any) -> dict[str, Any]:
    import torch

    import flagattn
    from bench import bench_activation, bench_norm, bench_rotary
    from bench.peers import compiled

    def matrices(*, gradient: bool = False) -> list[Any]:
        return [torch.randn(ROWS, COLS).to(dtype).requires_grad_(gradient) for _ in range(SETS)]

    def copy(units: int) -> Callable[[int], Any]:
        pairs = [(torch.randn(ROWS * COLS * units // 2).to(dtype), torch.empty(0)) for _ in range(2)]
        pairs = [(source, torch.empty_like(source)) for source, _ in pairs]
        return lambda turn: pairs[turn % 2][1].copy_(pairs[turn % 2][0])

    x, up, dy = matrices(gradient=True), matrices(gradient=True), matrices()
    heads = [t.detach().view(1, ROWS, HEADS, -1) for t in x]
    weight = torch.randn(COLS).to(dtype).requires_grad_()
    angles = torch.rand(ROWS, COLS // HEADS // 2) * 6.28
    cos, sin = angles.cos(), angles.sin()
    results = {}

    def norm(op: Any) -> Callable[[int], Any]:
        return lambda turn: op(x[turn % SETS], weight)

    def norm_both_ways(op: Any) -> Callable[[int], Any]:
        return lambda turn: torch.autograd.grad(op(x[turn % SETS], weight), (x[turn % SETS], weight), dy[turn % SETS])

    def swiglu(op: Any) -> Callable[[int], Any]:
        return lambda turn: op(x[turn % SETS], up[turn % SETS])

    def swiglu_backward(op: Any) -> Callable[[int], Any]:
        y = [op(a, b) for a, b in zip(x, up)]
        return lambda turn: torch.autograd.grad(
            y[turn % SETS], (x[turn % SETS], up[turn % SETS]), dy[turn % SETS], retain_graph=True
        )

    def rotary(op: Any) -> Callable[[int], Any]:
        return lambda turn: op(heads[turn % SETS], cos, sin)

    for name, units, thunk, ours, peer, gradient in (
        ("rms_norm forward", 2, norm, bench_norm.ours, bench_norm.plain, False),
        ("rms_norm forward + backward", 5, norm_both_ways, bench_norm.ours, bench_norm.plain, True),
        ("swiglu forward", 3, swiglu, flagattn.swiglu, bench_activation.plain, False),
        ("swiglu backward", 5, swiglu_backward, flagattn.swiglu, bench_activation.plain, True),
        ("rotary forward", 2, rotary, flagattn.apply_rotary, bench_rotary.plain, False),
    ):
        with torch.set_grad_enabled(gradient):
            contestants = {"copy": copy(units), "torch.compile": thunk(compiled(peer)), "ours": thunk(ours)}
            results[name] = race(contestants)
            print(dtype, name, results[name], flush=True)
    return results


def main(arguments: list[str]) -> int:
    if os.environ.get("GLIBC_TUNABLES") != machine.GLIBC_TUNABLES:  # read by the C library before Python starts
        os.environ["GLIBC_TUNABLES"] = machine.GLIBC_TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", "bench.study_fused_ops", *arguments])
    import torch

    torch.set_num_threads(1)
    machine.touch_heap()
    default = machine.ROOT / "bench" / "results" / machine.this_machine() / "studies" / "fused_ops.json"
    path = Path(arguments[0]) if arguments else default
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": COMMAND, "torch": torch.__version__, "threads": 1, "clock": "processor time of the thread"}
    rows = {str(dtype).removeprefix("torch."): measure(dtype) for dtype in (torch.float32, torch.bfloat16)}
    text = json.dumps({**facts, "rows": ROWS, "cols": COLS, "ops": rows, "call_us": call_costs()}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
