"""What the machine can do, and how much work an op is: FLOP and byte counts, and probes of the machine's rates."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.timing import Peer, rotation_count

SGEMM_SIZE = 1024
SGEMM_FLOPS = 2.0 * SGEMM_SIZE**3


# ------------------------------------------------------------------------------------------------------------ work


def visible_pairs(seqlen_q: int, seqlen_k: int, window_left: int = -1, window_right: int = -1) -> int:
    """How many (query, key) pairs a mask keeps: i + Sk - Sq - left <= j <= i + Sk - Sq + right; -1 lifts a side."""
    total = 0
    for row in range(seqlen_q):
        aligned = row + seqlen_k - seqlen_q
        first = 0 if window_left < 0 else max(0, aligned - window_left)
        last = seqlen_k - 1 if window_right < 0 else min(seqlen_k - 1, aligned + window_right)
        total += max(0, last - first + 1)
    return total


def attention_flops(
    batch: int, heads_q: int, pairs: int, head_dim: int, head_dim_v: int | None = None, *, backward: bool = False
) -> float:
    """Two products forward (q k^T, p v), five backward (q k^T again, dv, dp, dq, dk); a multiply-add counts two."""
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    per_pair = 3 * head_dim + 2 * head_dim_v if backward else head_dim + head_dim_v
    return 2.0 * batch * heads_q * pairs * per_pair


def attention_bytes(
    batch: int,
    seqlen_q: int,
    seqlen_k: int,
    heads_q: int,
    heads_k: int,
    head_dim: int,
    itemsize: int,
    *,
    backward: bool,
) -> float:
    """Every operand and result once; key/value heads count once however many query heads share them."""
    queries = batch * seqlen_q * heads_q * head_dim * itemsize
    keys = batch * seqlen_k * heads_k * head_dim * itemsize
    statistics = batch * heads_q * seqlen_q * 4
    if not backward:
        return float(2 * queries + 2 * keys + statistics)  # q, out; k, v; lse
    return float(4 * queries + 4 * keys + statistics)  # q, out, dout, dq; k, v, dk, dv; lse


def elementwise_bytes(elements: int, itemsize: int, reads: int, writes: int) -> float:
    return float(elements * itemsize * (reads + writes))


def roofline_seconds(flops: float, moved: float, flops_per_second: float, bytes_per_second: float) -> float:
    """The least time the work can take: at the machine's arithmetic rate or its copy bandwidth, whichever is longer."""
    return max(flops / flops_per_second if flops else 0.0, moved / bytes_per_second if moved else 0.0)


# ---------------------------------------------------------------------------------------------------------- probes


@functools.cache
def sgemm_probe() -> Peer:
    """torch.mm of two 1024 x 1024 fp32 matrices that are in the caches, run between our rounds."""

    def one() -> object:
        a, b, c = (torch.randn(SGEMM_SIZE, SGEMM_SIZE) for _ in range(3))
        return lambda: torch.mm(a, b, out=c)

    return Peer([one()], flops=SGEMM_FLOPS, warm=True)  # type: ignore[list-item]


@functools.cache
def copy_probe(moved: float) -> Peer:
    """`copy_` between fp32 buffers that reads and writes `moved` bytes together, run between our rounds."""
    elements = max(1, int(moved // 8))

    def one() -> object:
        source, target = torch.randn(elements), torch.zeros(elements)
        return lambda: target.copy_(source)

    return Peer([one() for _ in range(rotation_count(moved))], bytes=moved)  # type: ignore[misc]


@functools.cache
def read_probe(moved: float) -> Peer:
    """All of torch's threads read `moved` bytes once, a part each, run between our rounds."""
    # Without libraries of its own, OpenMP's names resolve to what torch has loaded.
    library = compiled_probe("read_rate.cpp", more_flags=["-fopenmp", "-nostdlib"])
    library.read_all.restype = ctypes.c_int64
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]

    def one() -> object:
        data = torch.randn(max(1, int(moved // 4)))
        return lambda: library.read_all(data.data_ptr(), data.nbytes, torch.get_num_threads())

    return Peer([one() for _ in range(rotation_count(moved))], bytes=moved)  # type: ignore[misc]


def compiled_probe(name: str, folder: Path | None = None, more_flags: Sequence[str] = ()) -> ctypes.CDLL:
    """A loop of this folder compiled for the running CPU and loaded; compiled once per source text and folder."""
    folder = folder or Path(tempfile.gettempdir()) / f"flagattn-bench-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name(name)
    library = folder / f"{source.stem}_{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if not library.exists():
        compiler = os.environ.get("CXX", "g++")
        partial = library.with_suffix(f".{os.getpid()}")
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", *more_flags]
        subprocess.run([compiler, *flags, str(source), "-o", str(partial)], check=True)
        partial.replace(library)
    return ctypes.CDLL(str(library))


def fma_peak_library(folder: Path | None = None) -> ctypes.CDLL:
    """The FMA loop."""
    loaded = compiled_probe("fma_peak.cpp", folder)
    loaded.fma_flops.restype = ctypes.c_double
    loaded.fma_flops.argtypes = [ctypes.c_long]
    return loaded


def fma_rate(threads: int, iterations: int = 20_000_000) -> float:
    """FLOP/s of multiply-adds in registers, on that many threads at once (ctypes releases the interpreter's lock)."""
    library = fma_peak_library()
    flops = [0.0] * threads

    def work(index: int) -> None:
        flops[index] = library.fma_flops(iterations)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(flops) / (time.perf_counter() - start)
