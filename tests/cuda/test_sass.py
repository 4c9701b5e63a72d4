"""What the compiled CUDA library is made of: instructions, instantiations, size; and how bench/sass.py reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from bench import sass, static_model
from flagattn import _load

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "flagattn" / "_C_cuda.so"
MOST_INSTANTIATIONS, MOST_BYTES = 80, 35 << 20
PREDICTION = ROOT / "bench" / "predictions" / "a100.json"

# Kernels with matrix products: all of them load fragments by ldmatrix and tiles by cp.async.
WITH_PRODUCTS = re.compile(r"attention_(forward|decode|backward|bias_gradient)_kernel")


@pytest.fixture(scope="module")
def functions() -> dict[str, list[sass.Instruction]]:
    if not _load.facts().get("cuda_compiler") or not LIBRARY.exists():
        pytest.skip(f"no CUDA kernels were compiled: {_load.facts().get('cuda_off', 'no CUDA compiler')}")
    if sass.cuobjdump() is None:
        pytest.skip("there is no cuobjdump, neither of the CUDA toolkit nor of Triton")
    return sass.functions_of(sass.disassembled(LIBRARY))


def test_products_fragments_and_copies_are_the_machines_own(functions: dict[str, list[sass.Instruction]]) -> None:
    with_products = [name for name in functions if WITH_PRODUCTS.search(name)]
    assert len(with_products) >= 50
    for name, instructions in functions.items():
        counts = sass.counts(instructions)
        assert counts["LDL"] == counts["STL"] == 0, f"{name} keeps something in local memory"
        if name in with_products:
            assert all(counts[opcode] > 0 for opcode in ("HMMA", "LDSM", "LDGSTS")), f"{name}: {counts}"
            shapes = {one.opcode for one in instructions if one.name == "HMMA"}
            assert all("16816" in shape and "F32" in shape for shape in shapes), f"{name}: {shapes}"
        else:
            assert counts["HMMA"] == 0


def test_main_loops_multiply_what_their_tiles_ask(functions: dict[str, list[sass.Instruction]]) -> None:
    """Not one product more or less, and a fragment from shared memory for every two of them at least up to 128."""
    seen = set()
    for name, instructions in functions.items():
        found = re.search(r"attention_(forward|backward)_kernel.*Traits\w*?Float16ELi(\d+)ELb0E", name)
        if found is None:
            continue
        kernel, head_dim = found[1], int(found[2])
        tile = static_model.tile_of(kernel, head_dim, registers=255, shared_bytes=0)
        counts = sass.counts(sass.plain_step(instructions))
        products = tile.products * tile.rows * tile.keys * head_dim // (16 * 8 * 16)
        assert counts["HMMA"] == products // tile.warps, name
        if head_dim <= 128:
            assert counts["LDSM"] <= counts["HMMA"] // 2, name
        seen.add((kernel, head_dim))
    assert seen == {(kernel, width) for kernel in ("forward", "backward") for width in (64, 96, 128, 192, 256)}


def test_the_prediction_is_of_these_kernels(functions: dict[str, list[sass.Instruction]]) -> None:
    report = json.loads(PREDICTION.read_text())
    if report["compiler"] != _load.facts()["cuda_compiler"]:
        pytest.skip(f"the prediction was made from code of {report['compiler']}")
    for name, instructions in functions.items():
        found = re.search(r"attention_(forward|backward)_kernel.*Traits\w*?BFloat16ELi(\d+)ELb0E", name)
        if found is not None:
            counted = report["kernels"][f"{found[1]}_{found[2]}"]["instructions"]
            assert counted == dict(sass.counts(sass.plain_step(instructions))), f"run {report['command']}"


def test_instantiations_are_few() -> None:
    lists = (ROOT / "csrc").rglob("instances.cmake")
    lines = [
        line for path in lists for line in path.read_text().splitlines() if line.startswith("flagattn_instantiate(")
    ]
    assert 0 < len(lines) <= MOST_INSTANTIATIONS


def test_the_stripped_library_can_travel(tmp_path: Path) -> None:
    if not LIBRARY.exists():
        pytest.skip("the CUDA library was not built")
    stripped = tmp_path / "stripped.so"
    strip = shutil.which("strip")
    if strip is None or subprocess.run([strip, "-o", str(stripped), str(LIBRARY)]).returncode != 0:
        stripped = LIBRARY  # larger, if anything
    assert stripped.stat().st_size <= MOST_BYTES


# ---- The reader and the model, on a few lines

LISTING = """
\t\tFunction : _Z6kernelv
\t.headerflags\t@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/              @!P0 BRA 0x50 ;
        /*0030*/                   MUFU.TANH R3, R3 ;
        /*0040*/                   FMUL R3, R3, R4 ;
        /*0050*/               @P1 BRA 0x70 ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R5], [R6.64] ;
        /*0070*/                   HMMA.16816.F32.BF16 R8, R4, R12, R8 ;
        /*0080*/                   LDS.128 R4, [R2] ;
        /*0090*/               @P2 BRA 0x10 ;
        /*00a0*/                   EXIT ;
"""


def test_a_step_skips_options_but_no_copies() -> None:
    ((name, instructions),) = sass.functions_of(LISTING).items()
    assert name == "_Z6kernelv" and len(instructions) == 11
    assert sass.main_loop(instructions) == (1, 9)
    assert sass.counts(sass.plain_step(instructions)) == Counter(
        {"BRA": 3, "LDSM": 1, "LDGSTS": 1, "HMMA": 1, "LDS.128": 1}
    )


def test_a_step_skips_copies_behind_a_barrier_of_their_own() -> None:
    fetches = LISTING.replace("FMUL R3, R3, R4 ;", "LDGSTS.E.BYPASS.128 [R5], [R6.64] ;")
    ((_, needed),) = sass.functions_of(fetches).items()
    ((_, option),) = sass.functions_of(fetches.replace("MUFU.TANH R3, R3", "BAR.SYNC 0x0")).items()
    assert sass.counts(sass.plain_step(needed))["LDGSTS"] == 2
    assert sass.counts(sass.plain_step(option))["LDGSTS"] == 1


def test_occupancy_by_registers_and_shared_memory() -> None:
    def blocks(warps: int, registers: int, shared_bytes: int) -> int:
        tile = static_model.Tile(128, 64, warps, 2, registers, shared_bytes)
        return static_model.blocks_per_multiprocessor(tile, static_model.Gpu())

    assert blocks(4, 255, 80 * 1024) == 2  # 65536 / (256 * 128)
    assert blocks(4, 128, 80 * 1024) == 2  # 164 / 81
    assert blocks(4, 128, 10 * 1024) == 4
    assert blocks(8, 253, 160 * 1024) == 1


@pytest.mark.parametrize("seqlen", [64, 200, 1024])
def test_steps_are_the_tiles_with_a_visible_key(seqlen: int) -> None:
    tile = static_model.Tile(128, 64, 4, 2, 255, 0)
    seen = sum(
        any(key <= row for row in range(m, min(m + 128, seqlen)) for key in (n,))
        for m in range(0, seqlen, 128)
        for n in range(0, seqlen, 64)
    )
    assert static_model.visited_steps(seqlen, tile, causal=True) == seen
    assert static_model.visited_steps(seqlen, tile, causal=False) == -(-seqlen // 128) * -(-seqlen // 64)
