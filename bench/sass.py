"""Machine code of our CUDA kernels, as cuobjdump prints it: functions, their main loops, and what these execute."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)
_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")

# What a step of a main loop never leaves out: a branch over none of these is taken to skip work for edges and options.
_NEEDED = {"HMMA", "LDGSTS", "LDG", "STG"}


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    opcode: str  # with its modifiers
    target: int | None = None  # of a branch

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]


def cuobjdump() -> str | None:
    """The tool, from the toolkit or from Triton's package, or None; it looks for nvdisasm beside itself and in PATH."""
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found is not None:
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


def disassembled(library: Path, arch: str = "sm_80") -> str:
    tool = cuobjdump()
    assert tool is not None
    done = subprocess.run(
        [tool, "-sass", "-arch", arch, str(library)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert done.returncode == 0, f"cuobjdump ended with {done.returncode} on {library}"
    return done.stdout


def functions_of(text: str) -> dict[str, list[Instruction]]:
    """Entry function -> its instructions in order."""
    pieces = _FUNCTION.split(text)[1:]
    return {name: _instructions(body) for name, body in zip(pieces[::2], pieces[1::2], strict=True)}


def _instructions(body: str) -> list[Instruction]:
    found = []
    for address, predicate, opcode, operands in _INSTRUCTION.findall(body):
        target = _TARGET.search(operands) if opcode.split(".")[0] == "BRA" else None
        found.append(Instruction(int(address, 16), bool(predicate), opcode, int(target[1], 16) if target else None))
    return found


def main_loop(instructions: list[Instruction]) -> tuple[int, int]:
    """The indices of the first and the last instruction of the innermost loop that has most matrix products."""
    at = {instruction.address: index for index, instruction in enumerate(instructions)}
    best = (0, 0, 0)
    for index, instruction in enumerate(instructions):
        if instruction.target is None or instruction.target > instruction.address:
            continue
        first = at[instruction.target]
        products = sum(one.name == "HMMA" for one in instructions[first : index + 1])
        if products > best[0] or (products == best[0] > 0 and index - first < best[2] - best[1]):
            best = (products, first, index)
    assert best[0] > 0, "no loop has matrix products"
    return best[1], best[2]


def plain_step(instructions: list[Instruction]) -> list[Instruction]:
    """What one pass of the main loop executes on a tile that no mask cuts, without options.

    Branches forward are followed where they skip neither matrix products nor copies, and where copies wait at a barrier
    that is skipped with them: a tile that is fetched once more. Loops inside are passed once.
    """
    first, last = main_loop(instructions)
    at = {instruction.address: index for index, instruction in enumerate(instructions)}
    executed, index = [], first
    while index <= last:
        instruction = instructions[index]
        executed.append(instruction)
        target = at.get(instruction.target) if instruction.target is not None else None
        if target is not None and index < target <= last:
            skipped = instructions[index + 1 : target]
            names = {one.name for one in skipped}
            fetches_again = "BAR" in names and "HMMA" not in names
            if not instruction.predicated or fetches_again or not names & _NEEDED:
                index = target
                continue
        index += 1
    return executed


def counts(instructions: list[Instruction]) -> Counter[str]:
    """Opcodes without modifiers, but shared-memory accesses with their width: LDS.128."""
    total: Counter[str] = Counter()
    for instruction in instructions:
        width = next((part for part in instruction.opcode.split(".")[1:] if part in ("64", "128")), "")
        is_wide = instruction.name in ("LDS", "STS") and width
        total[f"{instruction.name}.{width}" if is_wide else instruction.name] += 1
    return total
