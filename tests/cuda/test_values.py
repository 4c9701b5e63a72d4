"""FLAGATTN_CHECK=1: wrong values in CUDA tensors are refused with the sentences of the CPU's ops."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
import flagattn

x = torch.randn(70, 4, 64, dtype=torch.bfloat16, device="cuda")
cache = torch.zeros(2, 16, 4, 64, dtype=torch.bfloat16, device="cuda")
q = torch.randn(2, 1, 4, 64, dtype=torch.bfloat16, device="cuda")


def ints(*values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def varlen(offsets, longest):
    return flagattn.flash_attn_varlen_func(x, x, x, ints(*offsets), ints(0, 40, 70), longest, 40)


def decode(seqlens, table=None):
    return flagattn.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=ints(*seqlens), block_table=table)


angles = torch.zeros(8, 32, device="cuda")
CALLS = {
    "right": lambda: (varlen((0, 40, 70), 40), decode((3, 16))),
    "cu_seqlens_q falls from 40 to 20": lambda: varlen((0, 40, 20), 40),
    "but its max_seqlen is 32": lambda: varlen((0, 40, 70), 32),
    "cache_seqlens[1] is 17": lambda: decode((3, 17)),
    "block_table[1][0] is 2": lambda: decode((3, 4), ints(0, 2)[:, None]),
    "positions holds 8": lambda: flagattn.apply_rotary(x[:2], angles, angles, positions=ints(7, 8)),
    "targets holds 9": lambda: flagattn.cross_entropy(torch.zeros(1, 9, device="cuda"), ints(9).long()),
}
for sentence, call in CALLS.items():
    try:
        call()
        print("took:", sentence)
    except RuntimeError as error:
        print("refused:" if sentence in str(error) else f"other words ({error}):", sentence)
torch.cuda.synchronize()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("checks", [False, True])
def test_wrong_values(checks: bool) -> None:
    environment = os.environ | {"FLAGATTN_CHECK": "1" if checks else "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "took: right"
    assert len(others) == 6 and all(line.startswith("refused:" if checks else "took:") for line in others), done.stdout
