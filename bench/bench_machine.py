"""What this machine can do: copy bandwidth, matrix product rate, multiply-add peak. The others are seen against it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.roofline import SGEMM_FLOPS, SGEMM_SIZE, fma_rate
from bench.timing import Case, race


@pytest.mark.parametrize("threads", [1, 2])
def bench_copy(benchmark: Any, threads: int) -> None:
    elements = (64 << 20) // 4 if benchmark.enabled else 1024
    torch.set_num_threads(threads)
    pairs = [(torch.randn(elements), torch.zeros(elements)) for _ in range(2)]
    thunks = [lambda source=source, target=target: target.copy_(source) for source, target in pairs]
    case = Case("machine", "copy 64 MiB", f"{threads} threads", bytes=8.0 * elements)
    result = race(benchmark, case, thunks, {})
    assert any(torch.equal(result, source) for source, _ in pairs)


@pytest.mark.parametrize("threads", [1, 2])
def bench_sgemm(benchmark: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    a, b, c = (torch.randn(SGEMM_SIZE, SGEMM_SIZE) for _ in range(3))
    case = Case("machine", "sgemm 1024", f"{threads} threads", flops=SGEMM_FLOPS)
    result = race(benchmark, case, [lambda: torch.mm(a, b, out=c)], {})
    assert torch.allclose(result[0].double(), a[0].double() @ b.double(), atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2])
def bench_fma(benchmark: Any, threads: int) -> None:
    iterations = 20_000_000 if benchmark.enabled else 1000
    rate = fma_rate(threads, iterations)  # compiles on first use, outside the measurement
    assert rate > 0
    lanes_and_chains = 2.0 * 12 * _vector_lanes()
    case = Case("machine", "fma in registers", f"{threads} threads", flops=lanes_and_chains * iterations * threads)
    race(benchmark, case, [lambda: fma_rate(threads, iterations)], {})


def _vector_lanes() -> int:
    from bench.roofline import fma_peak_library

    return int(fma_peak_library().fma_flops(1) / (2 * 12))
