"""Keys and values of a wholly hidden tile are not touched: here their memory may not be read at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Keys and values lie in mapped memory, one row of all heads to a page; the pages of tiles that the mask hides are made
# inaccessible, so that the process ends with a fault where a kernel touches one.
PROGRAM = """
import ctypes, mmap, sys
import torch
import flagattn

kind, backward = sys.argv[1], sys.argv[2] == "backward"
ROWS, KEYS, TILE, DIM = 40, 1280, 128, 256
HEADS = mmap.PAGESIZE // (4 * DIM)  # one row of keys is one page of memory
seen = torch.zeros(KEYS // TILE, dtype=torch.bool)
seen[[1, 4, 8]] = True
keys = seen.repeat_interleave(TILE)
memory = [mmap.mmap(-1, KEYS * mmap.PAGESIZE) for _ in range(2)]
k, v = (torch.frombuffer(m, dtype=torch.float32).view(1, KEYS, HEADS, DIM) for m in memory)
k.normal_(), v.normal_()
q = torch.randn(1, ROWS, HEADS, DIM)
if kind == "rows":  # every row has holes of its own; the tiles are hidden from all of them
    mask = keys & (torch.rand(1, HEADS, ROWS, KEYS) < 0.7)
elif kind == "padding":
    mask = keys.view(1, 1, 1, KEYS)
else:
    mask = torch.randn(1, 1, ROWS, KEYS).masked_fill(~keys, -torch.inf)
operands = [t.transpose(1, 2) for t in (q, k, v)]

def run(operands):
    leaves = [t.detach().requires_grad_(backward) for t in operands]
    out = flagattn.scaled_dot_product_attention(*leaves, attn_mask=mask)
    return [out.detach(), *(torch.autograd.grad(out.square().sum(), leaves) if backward else ())]

expected = run([t.clone() for t in operands])
libc = ctypes.CDLL(None, use_errno=True)
for t in (k, v):
    for tile in torch.nonzero(~seen).flatten().tolist():
        address = t.data_ptr() + tile * TILE * mmap.PAGESIZE
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(TILE * mmap.PAGESIZE), 0) == 0
if sys.argv[3] == "touch":
    print(float(k[0, 0, 0, 0]))
for ours, wanted in zip(run(operands), expected):
    assert torch.equal(ours, wanted)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is protected as Linux does it")
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["rows", "padding", "bias"])
def test_hidden_tiles_are_not_read(kind: str, direction: str) -> None:
    done = run(kind, direction, "leave")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is protected as Linux does it")
def test_a_read_would_be_noticed() -> None:
    assert run("rows", "forward", "touch").returncode < 0
