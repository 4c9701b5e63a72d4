"""What an A100 should reach with the sm_80 attention kernels, by their machine code: a prediction, not a measurement.

    python -m bench.static_model build/linux-x86_64 bench/predictions/a100.json

reads the object files of a build. docs/kernels/static_model.md says how the model counts and what it leaves out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import sass

TABLE = Path(__file__).resolve().parents[1] / "tests" / "cuda" / "ptxas.json"
SEQLENS = (2048, 4096, 8192, 16384)
BATCH_TOKENS, WIDTH = 16384, 2048  # batch * seqlen, heads * head dim


@dataclass(frozen=True)
class Gpu:
    """Rates of the CUDA programming guide and the data sheet, per multiprocessor and clock where not said otherwise."""

    name: str = "A100"
    multiprocessors: int = 108
    clock_ghz: float = 1.41
    schedulers: int = 4
    registers: int = 65536
    shared_bytes: int = 164 * 1024
    warps: int = 64
    matrix_flops: int = 2048  # bf16 and fp16 with fp32 sums
    shared_bytes_per_clock: int = 128
    l2_bytes_per_clock: float = 5120 / 108


# Lanes per multiprocessor and clock, and the instructions that the unit executes.
UNITS = {
    "fma": (64, ("FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2")),
    "alu": (
        64,
        ("IADD3", "LOP3", "FMNMX", "ISETP", "FSETP", "SEL", "FSEL", "PRMT", "SHF", "LEA", "IMNMX", "PLOP3", "MOV"),
    ),
    "special": (16, ("MUFU",)),
    "conversion": (16, ("F2FP", "F2F", "I2F", "F2I")),
    "shuffle": (32, ("SHFL",)),
}
SHARED_BYTES = {"LDSM": 512, "LDS": 128, "STS": 128, "LDS.64": 256, "STS.64": 256, "LDS.128": 512, "STS.128": 512}
COPIED_BYTES = 512  # of a warp's LDGSTS of 16 bytes a lane


@dataclass(frozen=True)
class Tile:
    """A step of the main loop: rows of queries against keys, by the warps of a block."""

    rows: int
    keys: int
    warps: int
    products: int  # of matrices: 2 forward, 5 backward
    registers: int
    shared_bytes: int


def blocks_per_multiprocessor(tile: Tile, gpu: Gpu) -> int:
    """By registers (dealt in units of 8 a thread), shared memory (1 KiB a block is the system's) and warps."""
    registers = math.ceil(tile.registers / 8) * 8 * 32 * tile.warps
    return min(gpu.registers // registers, gpu.shared_bytes // (tile.shared_bytes + 1024), gpu.warps // tile.warps)


def step_clocks(count: Counter[str], tile: Tile, blocks: int, gpu: Gpu) -> dict[str, float]:
    """Clocks that each resource of a multiprocessor is busy while every block there does one step."""
    warps = tile.warps * blocks
    clocks = {"matrix": warps * count["HMMA"] * 4096 / gpu.matrix_flops}
    clocks["issue"] = warps * sum(count.values()) / gpu.schedulers
    for unit, (lanes, names) in UNITS.items():
        clocks[unit] = warps * sum(count[name] for name in names) * 32 / lanes
    accessed = sum(count[name] * size for name, size in SHARED_BYTES.items()) + count["LDGSTS"] * COPIED_BYTES
    clocks["shared memory"] = warps * accessed / gpu.shared_bytes_per_clock
    global_bytes = COPIED_BYTES * (count["LDGSTS"] + count["LDG"] + count["STG"])
    clocks["L2"] = warps * global_bytes / gpu.l2_bytes_per_clock
    return clocks


def one_warp_clocks(count: Counter[str], gpu: Gpu) -> float:
    """A warp by itself: products at the rate of its scheduler's matrix unit, everything else one after the other."""
    products = count["HMMA"] * 4096 / (gpu.matrix_flops / gpu.schedulers)
    others = sum(count.values()) - count["HMMA"]
    waiting = sum(count[name] * (32 * gpu.schedulers / lanes - 1) for lanes, names in UNITS.values() for name in names)
    return products + others + waiting


def visited_steps(seqlen: int, tile: Tile, causal: bool) -> int:
    """Pairs of tiles that some row and key of meet, of one head."""
    if not causal:
        return math.ceil(seqlen / tile.rows) * math.ceil(seqlen / tile.keys)
    ends = (min(first + tile.rows, seqlen) for first in range(0, seqlen, tile.rows))
    return sum(math.ceil(end / tile.keys) for end in ends)


def predicted(count: Counter[str], tile: Tile, head_dim: int, gpu: Gpu) -> dict[str, Any]:
    blocks = blocks_per_multiprocessor(tile, gpu)
    clocks = step_clocks(count, tile, blocks, gpu)
    limit = max(clocks, key=lambda name: clocks[name])
    alone = one_warp_clocks(count, gpu)
    flops = 2.0 * tile.products * tile.rows * tile.keys * head_dim * blocks  # of a multiprocessor's step
    peak = flops * gpu.multiprocessors * gpu.clock_ghz / 1000
    shapes = []
    for seqlen in SEQLENS:
        for causal in (False, True):
            heads = WIDTH // head_dim * (BATCH_TOKENS // seqlen)
            useful = 2.0 * tile.products * seqlen**2 * head_dim * heads / (2 if causal else 1)
            done = 2.0 * tile.products * tile.rows * tile.keys * head_dim * heads * visited_steps(seqlen, tile, causal)
            share = useful / done
            shapes.append(
                {
                    "seqlen": seqlen,
                    "causal": causal,
                    "useful_share": round(share, 3),
                    "tflops_at_most": round(peak / clocks[limit] * share, 1),
                    "tflops": round(peak / max(clocks[limit], alone) * share, 1),
                }
            )
    return {
        "instructions_per_warp": sum(count.values()),
        "instructions": dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))),
        "registers": tile.registers,
        "shared_bytes": tile.shared_bytes,
        "blocks_per_multiprocessor": blocks,
        "clocks_per_step": {name: round(value) for name, value in clocks.items()} | {"one warp alone": round(alone)},
        "limit": limit,
        "shapes": shapes,
    }


def tile_of(kernel: str, head_dim: int, registers: int, shared_bytes: int) -> Tile:
    """As heuristics.h and backward_tiles.h choose for kernels without score terms."""
    if kernel == "forward":
        rows, keys = (64, 32) if head_dim > 128 else (128, 64)
        return Tile(rows, keys, 4, 2, registers, shared_bytes)
    rows, keys = (64, 64) if head_dim > 128 else (128 if head_dim <= 64 else 64, 128)
    return Tile(rows, keys, 8, 5, registers, shared_bytes)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="folder of a build with CUDA")
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    table = json.loads(TABLE.read_text())
    gpu = Gpu()
    kernels = {}
    for kernel in ("forward", "backward"):
        for head_dim in (64, 96, 128, 192, 256):
            source = f"attention/cuda/sm80/{kernel}_instance_BFloat16_{head_dim}_false"
            stem = Path(source).name.replace("16_", "16__")
            objects = list(options.build.glob(f"**/{stem}.cu.o"))
            assert len(objects) == 1, f"{options.build} has {len(objects)} object files {stem}.cu.o"
            (instructions,) = sass.functions_of(sass.disassembled(objects[0])).values()
            tile = tile_of(
                kernel,
                head_dim,
                table["kernels"][source]["sm_80"]["registers"],
                table["launches"][source]["shared_bytes"],
            )
            kernels[f"{kernel}_{head_dim}"] = predicted(sass.counts(sass.plain_step(instructions)), tile, head_dim, gpu)
    report = {
        "what": f"a prediction for an {gpu.name} from machine code; no GPU was measured",
        "command": "python -m bench.static_model " + " ".join(str(path) for path in (options.build, options.output)),
        "compiler": table["compiler"],
        "gpu": vars(gpu),
        "kernels": kernels,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
