"""Times on a GPU: calls are queued behind a pause, so that a time holds the kernels and not the calls from Python."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[int], object]
CYCLES_PER_SECOND = 2e9  # of the GPU's clock, or less: then the pause is longer
BUFFERS = 3  # call(i) takes buffer i % 3, so that inputs are not in L2


def queued_times_ms(call: Call, repeats: int, cuda: Any = torch.cuda) -> list[float]:
    """Milliseconds of each of `repeats` calls, by events. Nothing waits for the GPU before all have been queued."""
    for i in range(BUFFERS):
        call(i)
    cuda.synchronize()
    start = time.perf_counter()
    call(0)
    seconds_to_queue = (time.perf_counter() - start) * repeats
    cuda.synchronize()
    events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(repeats)]
    cuda._sleep(int((2.0 * seconds_to_queue + 1e-3) * CYCLES_PER_SECOND))
    for i, (begin, end) in enumerate(events):
        begin.record()
        call(i)
        end.record()
    cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def median_ms(call: Call, repeats: int = 20) -> float:
    return statistics.median(queued_times_ms(call, repeats))


def compared_ms(calls: Mapping[str, Call], rounds: int = 3, repeats: int = 10) -> dict[str, float | str]:
    """Medians by name, all calls in turn so that a clock that drifts meets each; of one that fails, why."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, float | str] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            if name in errors:
                continue
            try:
                times[name] += queued_times_ms(call, repeats)
            except RuntimeError as error:
                errors[name] = f"{type(error).__name__}: {error}"[:300]
    return {name: statistics.median(values) for name, values in times.items() if name not in errors} | errors


def machine_rates() -> dict[str, float]:
    """What the same GPU copies and multiplies in this run."""
    copies = [[torch.empty(1 << 29, device="cuda", dtype=torch.uint8) for _ in range(2)] for _ in range(BUFFERS)]
    factors = [[torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2)] for _ in range(BUFFERS)]
    copied = median_ms(lambda i: copies[i % BUFFERS][0].copy_(copies[i % BUFFERS][1]))
    multiplied = median_ms(lambda i: torch.matmul(*factors[i % BUFFERS]))
    return {"copy_GBps": 2 * (1 << 29) / copied / 1e6, "matmul_tflops": 2 * 8192**3 / multiplied / 1e9}
