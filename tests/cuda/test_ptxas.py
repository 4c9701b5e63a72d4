"""What ptxas says of every kernel against the committed table: registers, stack, spills, and shared memory beside them.

FLAGATTN_UPDATE_PTXAS=1 rewrites tests/cuda/ptxas.json; a spill needs a reason under "exceptions" there.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from flagattn import _load
from tests.host_exec import kernels

TABLE = Path(__file__).with_name("ptxas.json")
ROOT = TABLE.parents[2]

FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)

Table = dict[str, dict[str, dict[str, int]]]


def named(source: str, functions: list[str]) -> dict[str, str]:
    """Entry function -> its name in the table: the source file, and the kernel where there are several in it.

    A kernel that a file has for both dtypes is named with its dtype.
    """
    if len(functions) == 1:
        return {functions[0]: source}
    names = {}
    for function in functions:
        kernel = re.search(r"\d([a-z_]+_kernel)", function)
        assert kernel is not None, function
        arguments = re.findall(r"L[ib](\d+)E", function)
        if sum(f"{kernel[1]}I" in other for other in functions) > 1 and not arguments:
            arguments = re.findall(r"B?Float16", function)
        names[function] = f"{source}:{kernel[1]}" + (f"<{','.join(arguments)}>" if arguments else "")
    return names


def measured() -> Table:
    """Kernel -> architecture -> numbers, from the logs that the build keeps."""
    compiler = _load.facts().get("cuda_compiler", "")
    if not compiler:
        pytest.skip(f"no CUDA kernels were compiled: {_load.facts().get('cuda_off', 'no CUDA compiler')}")
    logs = list(ROOT.glob("build/*/CMakeFiles/flagattn_*.dir/**/csrc/**/*.ptxas"))
    if not logs:
        pytest.skip("the build folder with ptxas's logs is not here")
    table: Table = {}
    for log in sorted(logs, key=lambda path: path.stat().st_mtime):  # where there are several builds, the latest counts
        source = str(log).split(".dir/")[1].split("csrc/", 1)[1].removesuffix(".cu.o.ptxas").replace("__", "_")
        functions = list(FUNCTION.finditer(log.read_text()))
        names = named(source, sorted({found["name"] for found in functions}))
        for found in functions:
            kernel = names[found["name"]]
            numbers = {name: int(found[name]) for name in ("registers", "stack", "stores", "loads")}
            table.setdefault(kernel, {})[found["arch"]] = {
                "registers": numbers["registers"],
                "stack_bytes": numbers["stack"],
                "spill_bytes": numbers["stores"] + numbers["loads"],
            }
    return table


def test_registers_and_spills_are_the_tables() -> None:
    table = measured()
    compiler = _load.facts()["cuda_compiler"]
    if os.environ.get("FLAGATTN_UPDATE_PTXAS"):
        old = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        shared = {kernel: {"shared_bytes": shared_bytes(kernel)} for kernel in table}
        new = {"compiler": compiler, "exceptions": old.get("exceptions", {}), "kernels": table, "launches": shared}
        TABLE.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n")
    committed = json.loads(TABLE.read_text())
    for kernel, archs in table.items():
        for arch, numbers in archs.items():
            if kernel not in committed["exceptions"]:
                assert numbers["spill_bytes"] == 0, f"{kernel} spills on {arch}: {numbers}"
    assert set(table) == set(committed["kernels"]), "kernels came or went: run with FLAGATTN_UPDATE_PTXAS=1"
    if compiler != committed["compiler"]:
        pytest.skip(f"no spills; the registers in the table are those of {committed['compiler']}, not of {compiler}")
    for kernel, archs in table.items():
        for arch, numbers in archs.items():
            assert arch in committed["kernels"][kernel], f"{kernel} on {arch} is new: run with FLAGATTN_UPDATE_PTXAS=1"
            assert numbers == committed["kernels"][kernel][arch], f"{kernel} on {arch}"


def shared_bytes(kernel: str) -> int:
    if kernel.startswith("loss/"):
        return int(kernels.host_exec_module().loss_shared_bytes_sm80(kernel.partition(":")[2] or "loss_total_kernel"))
    if kernel.startswith(("norm/", "activation/", "rotary/")):
        return int(
            kernels.host_exec_module().fused_shared_bytes_sm80(kernel.split(":")[-1].split("<")[0].split("/")[-1])
        )
    if kernel.startswith("attention/cuda/sm80/backward_rows_instance"):
        return 0
    if kernel == "attention/cuda/sm80/backward_sinks":
        return 256 * 4
    if kernel.startswith("attention/cuda/sm80/backward_bias_instance"):
        head_dim = int(kernel.rsplit("_", 1)[1])
        return int(kernels.host_exec_module().attention_bias_gradient_sm80_shared_bytes(head_dim, False))
    if kernel.startswith("attention/cuda/sm80/backward_instance"):
        _, head_dim, terms = kernel.rsplit("_", 2)
        return int(
            kernels.host_exec_module().attention_backward_sm80_shared_bytes(int(head_dim), terms == "true", False)
        )
    if kernel.startswith("attention/cuda/sm80/backward_small_instance"):
        head_dim = int(kernel.rsplit("_", 1)[1])
        return int(kernels.host_exec_module().attention_backward_sm80_shared_bytes(head_dim, True, True))
    if kernel.startswith("attention/cuda/sm80/backward_bias_small_instance"):
        return int(kernels.host_exec_module().attention_bias_gradient_sm80_shared_bytes(256, True))
    if kernel.startswith(("attention/cuda/sm80/decode:", "attention/cuda/sm80/append:")):
        return 0
    if kernel.startswith("attention/cuda/sm80/decode_instance"):
        return int(kernels.host_exec_module().attention_decode_sm80_tile(int(kernel.rsplit("_", 1)[1]))[2])
    assert kernel.startswith("attention/cuda/sm80/forward_instance"), f"say how much shared memory {kernel} takes"
    _, head_dim, terms = kernel.rsplit("_", 2)
    return kernels.host_exec_module().attention_forward_sm80_tile(int(head_dim), terms == "true")[2]


def test_shared_memory_is_the_tables_and_blocks_fit() -> None:
    """Two of all but the attention backward, which has one; on GPUs with less, one of all but its large tiles."""
    for kernel, launch in json.loads(TABLE.read_text())["launches"].items():
        assert launch["shared_bytes"] == shared_bytes(kernel)
        blocks = 1 if re.search("attention/cuda/sm80/backward_(bias_)?(small_)?instance", kernel) else 2
        assert blocks * (launch["shared_bytes"] + 1024) <= 164 * 1024  # of an A100's multiprocessor
        if not re.search("attention/cuda/sm80/backward_(bias_)?instance", kernel):
            assert launch["shared_bytes"] <= 99 * 1024  # of compute capability 8.6, 8.9 and 12
