"""Counters of the kernels beside the main ones: what goes before and after attention, and rows that vectors do not fit.

Every kernel of the library has a test that holds what it reads, writes and multiplies (COUNTED_BY).
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from flagattn.testing import AttentionCase, make_inputs
from tests.attention.test_kvcache import Decode, make
from tests.host_exec import kernels, kernels_backward, kernels_fused, kernels_loss
from tests.host_exec.test_attention_backward_sm80 import backward_of
from tests.host_exec.test_attention_decode_sm80 import call_of

PTXAS = Path(__file__).parents[1] / "cuda" / "ptxas.json"
COUNTED_BY = {
    "forward_instance": "attention_forward_sm80.test_work_is_what_the_mask_leaves",
    "backward_instance": "attention_backward_sm80.test_work_is_what_the_mask_leaves",
    "backward_small_instance": "attention_backward_small_sm80.test_work_is_what_the_mask_leaves",
    "backward_rows_instance": "counts_sm80.test_rows_of_the_backward",
    "backward_bias_instance": "counts_sm80.test_gradient_of_a_bias",
    "backward_bias_small_instance": "counts_sm80.test_gradient_of_a_bias",
    "backward_sinks": "counts_sm80.test_gradient_of_sinks",
    "decode_instance": "attention_decode_sm80.test_work_is_what_the_mask_leaves",
    "merge_splits_kernel": "counts_sm80.test_splits_are_merged",
    "append_kernel": "append_sm80.test_bytes",
    "rms_norm_kernel<4,0>": "norm_sm80.test_forward_reads_and_writes_every_byte_once",
    "rms_norm_kernel<12,1>": "counts_sm80.test_wide_rows_of_a_norm",
    "rms_norm_backward_kernel": "norm_sm80.test_backward_reads_and_writes_every_byte_once",
    "weight_gradient_kernel": "norm_sm80.test_weight_gradient_reads_partial_sums_once",
    "rms_norm_element_kernel": "counts_sm80.test_odd_rows_of_a_norm",
    "rms_norm_backward_element_kernel": "counts_sm80.test_odd_rows_of_a_norm",
    "swiglu_kernel": "activation_sm80.test_every_byte_is_read_and_written_once",
    "swiglu_backward_kernel": "activation_sm80.test_every_byte_is_read_and_written_once",
    "swiglu_element_kernel": "counts_sm80.test_odd_rows_of_swiglu",
    "swiglu_backward_element_kernel": "counts_sm80.test_odd_rows_of_swiglu",
    "rotary_instance": "rotary_sm80.test_every_byte_is_read_and_written_once",
    "rotary": "counts_sm80.test_odd_heads_of_rotary",
    "cross_entropy_kernel": "loss_sm80.test_each_logit_is_read_once_and_written_once",
    "cross_entropy_backward_kernel": "loss_sm80.test_each_logit_is_read_once_and_written_once",
    "loss": "counts_sm80.test_total_of_a_loss",
}
GPUS = [(80, 64), (80, 256), (89, 256)]  # compute capability and head dim


def kernel_of(entry: str) -> str:
    """The kernel of an entry of the register table: what follows the colon, or the source without dtype and sizes."""
    source, _, kernel = entry.rpartition("/")[2].partition(":")
    return kernel.removesuffix("<BFloat16>").removesuffix("<Float16>") or re.sub("_(BF|F|f)loat.*", "", source)


def test_every_kernel_is_counted() -> None:
    entries = json.loads(PTXAS.read_text())["kernels"]
    assert {kernel_of(entry) for entry in entries} == set(COUNTED_BY)
    for test in COUNTED_BY.values():
        module, name = test.split(".")
        assert callable(getattr(import_module(f"tests.host_exec.test_{module}"), name))


def assert_counts(done: dict[str, Any], read: int, written: int, *, conflicts: int | None = 0) -> None:
    assert (done["global_bytes_read"], done["global_bytes_written"]) == (read, written)
    assert conflicts is None or done["bank_conflicts"] == conflicts


# ---- Attention


@pytest.mark.parametrize(("capability", "head_dim"), GPUS)
def test_rows_of_the_backward(capability: int, head_dim: int) -> None:
    """dO and O once, in whole sectors, and the LSE, which a row's sixteen lanes ask for at once.

    Two statistics of every row leave, and zeros for the counters of turns: one per warp and tile.
    """
    heads, seqlen = 2, 256
    case = AttentionCase("rows", seqlen, seqlen, heads_q=heads, heads_k=1, head_dim=head_dim)
    inputs = make_inputs(case, torch.bfloat16)
    kernels.set_schedule(compute_capability=capability)
    backward_of(case, inputs)
    done = kernels.counters(1)
    _, _, block_m, block_n, _ = kernels_backward.kernel_of(case, inputs, 163 << 10 if capability == 80 else 99 << 10)
    warps = 4 if block_n == 32 else 8
    turns = heads * (seqlen // block_m) + 2 * (seqlen // block_n)  # of dQ; of dK and dV, which two blocks add to
    rows = heads * seqlen
    assert_counts(done, rows * (2 * head_dim * 2 + 16 * 4), rows * 8 + turns * warps * 4)
    assert done["global_sectors_read"] == rows * 2 * head_dim * 2 // 32 + rows // 2  # two rows of a warp share one


@pytest.mark.parametrize(("capability", "head_dim"), GPUS)
def test_gradient_of_a_bias(capability: int, head_dim: int) -> None:
    """A pair of tiles reads its operands, statistics and bias once, and the LSE before each copy of a query row."""
    heads, seqlen, block = 2, 128, 32 if capability == 89 else 64
    case = AttentionCase("bias", seqlen, seqlen, heads_q=heads, heads_k=1, head_dim=head_dim, bias="bhqk")
    kernels.set_schedule(compute_capability=capability)
    backward_of(case, make_inputs(case, torch.bfloat16))
    done = kernels.counters()
    pairs, elements = heads * (seqlen // block) ** 2, heads * seqlen * seqlen
    width = 256 if head_dim > 128 else 128
    lanes = min(width // 8, 32 if block == 64 else 16)  # of a row that is copied
    of_pair = 4 * block * head_dim * 2 + 2 * block * 4 + 2 * block * lanes * 4
    assert_counts(done, pairs * of_pair + elements * 2, elements * 2, conflicts=None)  # but on the way out
    assert done["matrix_flops"] == 2 * 2 * elements * width


def test_gradient_of_sinks() -> None:
    heads, seqlen = 3, 200
    case = AttentionCase("sinks", seqlen, 90, heads_q=heads, heads_k=1, sinks=True)
    kernels.set_schedule()
    backward_of(case, make_inputs(case, torch.bfloat16))
    assert_counts(kernels.counters(), heads * seqlen * 4, heads * 4)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_splits_are_merged(head_dim: int) -> None:
    """Every split's output is read once and its LSE twice; outputs are written once."""
    tokens, heads_q, splits = 2, 8, 3
    problem = make(Decode("merged", (1300,), tokens, heads_q, 2, head_dim), torch.bfloat16)
    kernels.set_schedule()
    call_of(problem).run()
    done, rows = kernels.counters(), tokens * heads_q
    assert_counts(done, rows * splits * (head_dim * 4 + 2 * 4), rows * (head_dim * 2 + 4))
    assert done["global_sectors_read"] == rows * (splits * head_dim * 4 // 32 + 2) + merged_across_sectors(rows, splits)


def merged_across_sectors(rows: int, splits: int) -> int:
    """The LSEs of a row's splits lie side by side: those of some rows begin in one sector and end in the next."""
    crossing = sum(row * splits * 4 // 32 != ((row + 1) * splits * 4 - 1) // 32 for row in range(rows))
    return 2 * crossing


def test_piecewise_decode_reads_near_and_far_keys_once() -> None:
    """Of a tile on the border both; of values every tile once for each part that is seen in it."""
    head_dim, length, threshold, heads_q, heads_k = 64, 448, 128, 8, 2
    case = Decode("counted", (length,), 1, heads_q, heads_k, head_dim, dist_threshold=threshold)
    problem = make(case, torch.bfloat16)
    kernels.set_schedule()
    call_of(problem).run()
    done = kernels.counters()
    assert done["bank_conflicts"] == 0
    tile = 64
    near = range((length - threshold) // tile * tile, length, tile)
    far = range(0, length - threshold, tile)
    keys = sum(min(tile, length - first) for first in (*near, *far))
    assert done["global_bytes_read"] == heads_k * 2 * keys * head_dim * 2 + 2 * heads_q * head_dim * 2


# ---- Rows that vectors or registers do not fit


def test_wide_rows_of_a_norm() -> None:
    """x once and the weight once a row; what 512 threads' registers do not hold of a row, 16 columns here, twice."""
    rows, cols = 3, 512 * 12 * 4 + 16
    kernels.set_schedule()
    kernels_fused.rms_norm_forward(torch.randn(rows, cols), None, torch.ones(cols), 1e-5, 0.0, False)
    assert_counts(kernels.counters(), rows * 4 * (2 * cols + 16), rows * 4 * (cols + 1))


def test_odd_rows_of_a_norm() -> None:
    """Every reading is of a whole row, the second from the caches: x and the weight, or s, dy and the weight."""
    rows, cols = 64, 33
    x, weight, unit = torch.randn(rows, cols), torch.ones(cols), rows * cols * 4
    kernels.set_schedule()
    kernels_fused.rms_norm_forward(x, None, weight, 1e-5, 0.0, False)
    assert_counts(kernels.counters(), 3 * unit, unit + 4 * rows)
    kernels_fused.rms_norm_forward(x, x, weight, 1e-5, 0.0, False)
    assert_counts(kernels.counters(), 5 * unit, 2 * unit + 4 * rows)
    kernels_fused.rms_norm_backward(x, None, x, weight, torch.ones(rows), 0.0, False)
    lanes = 8  # of a row, all of which ask for its rstd
    assert_counts(kernels.counters(), 6 * unit + 4 * rows * lanes, unit)


def test_odd_rows_of_swiglu() -> None:
    gate = torch.randn(65, 59)
    unit = gate.numel() * 4
    kernels.set_schedule()
    kernels_fused.swiglu_forward(gate, gate)
    assert_counts(kernels.counters(), 2 * unit, unit)
    kernels_fused.swiglu_backward(gate, gate, gate)
    assert_counts(kernels.counters(), 3 * unit, 2 * unit)


def test_odd_heads_of_rotary() -> None:
    """x and y once; the angles of a row once for each head, from the caches."""
    rows, heads, head_dim, half_dim = 5, 3, 50, 23
    x, table = torch.randn(1, rows, heads, head_dim).bfloat16(), torch.randn(rows, half_dim)
    kernels.set_schedule()
    kernels_fused.apply_rotary(x, table, table)
    assert_counts(kernels.counters(), x.numel() * 2 + rows * heads * half_dim * 2 * 4, x.numel() * 2)


@pytest.mark.parametrize(("reduction", "of_row"), [("mean", 8 + 8), ("sum", 8)])
def test_total_of_a_loss(reduction: str, of_row: int) -> None:
    """A loss of a row, and for the mean its target."""
    logits, targets = torch.randn(300, 11), torch.arange(300) % 11
    kernels.set_schedule()
    kernels_loss.forward(logits, targets, None, -100, kernels_loss.REDUCTIONS[reduction], 0.0, 0.0, 0.0)
    assert_counts(kernels.counters(), 300 * of_row, 4)
