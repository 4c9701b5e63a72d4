"""The attention backward on GPUs that give a block 99 KiB of shared memory (8.6, 8.9, 12.x), executed on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flagattn.testing import AttentionCase, make_inputs
from tests.host_exec import kernels, kernels_backward
from tests.host_exec.test_attention_backward_sm80 import (
    CASES,
    DTYPES,
    SCHEDULES,
    assert_oracle_agrees,
    backward_of,
    distances,
    seen_elements,
)

SMALL_GPU = 89
SMALL, LARGE = 99 << 10, 163 << 10  # what GPUs give a block

# Those whose tiles are others there, and some that take the kernel with score terms without having any.
OWN_CASES = (
    AttentionCase("terms_bias_gradient_256", 67, 130, heads_q=4, head_dim=256, bias="111k", softcap=4.0, causal=True),
    AttentionCase("bias_dropout", 70, 150, batch=2, head_dim=160, bias="11qk", dropout_p=0.2),
    AttentionCase("piecewise_dim_256", 90, 150, head_dim=256, dist_threshold=33, window_size=(80, 4)),
    AttentionCase("packed_256", lengths=((50, 60), (31, 20), (0, 9), (9, 0)), head_dim=256, causal=True, unused_rows=9),
    AttentionCase("parts_of_a_group_256", 40, 70, heads_q=8, heads_k=2, head_dim=256, window_size=(30, -1)),
)
NARROW = ("odd_square_causal", "more_queries_causal_has_empty_rows", "odd_lengths", "softcap", "no_keys")
SMALL_CASES = [case for case in CASES if max(case.head_dim, case.value_dim) > 64 or case.name in NARROW]
SMALL_CASES += OWN_CASES


@pytest.mark.parametrize("index", range(len(SMALL_CASES)), ids=[case.name for case in SMALL_CASES])
def test_matches_the_oracle(index: int) -> None:
    kernels.set_schedule(**SCHEDULES[index % len(SCHEDULES)], compute_capability=SMALL_GPU)
    assert_oracle_agrees(SMALL_CASES[index], DTYPES[index // 2 % len(DTYPES)])


@pytest.mark.parametrize("head_dim", [128, 256])
def test_bits_do_not_depend_on_the_schedule(head_dim: int) -> None:
    case = AttentionCase("schedules", 140, 200, heads_q=2, heads_k=1, head_dim=head_dim, causal=True)
    inputs = make_inputs(case, torch.bfloat16)
    results = []
    for workers, schedule in enumerate(SCHEDULES):
        kernels.set_schedule(**schedule, workers=1 + workers % 3, compute_capability=SMALL_GPU)
        results.append(backward_of(case, inputs))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@pytest.mark.parametrize("fields", [{}, {"alibi": "h"}, {"bias": "1hqk", "dropout_p": 0.1}], ids=str)
@pytest.mark.parametrize("head_dim", [8, 64, 72, 96, 128, 136, 192, 200, 256])
def test_every_gpu_has_a_kernel_that_fits(head_dim: int, fields: dict[str, Any]) -> None:
    """The smallest width that is made, in what a block may take; large tiles wherever they fit."""
    case = AttentionCase("fits", 3, 5, head_dim=head_dim, **fields)
    inputs = make_inputs(case, torch.bfloat16)
    for most in (SMALL, LARGE, 227 << 10):
        width, terms, rows, keys, shared = kernels_backward.kernel_of(case, inputs, most)
        is_small = most < LARGE
        widths = (64, 128, 256) if fields or is_small else (64, 96, 128, 192, 256)
        assert width == next(width for width in widths if head_dim <= width)
        assert terms == (bool(fields) or is_small)
        assert shared <= most
        if is_small:
            assert (rows, keys) == {64: (64, 128), 128: (64, 64), 256: (32, 32)}[width]


@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 120])
def test_no_launch_is_refused(capability: int) -> None:
    """Of the rows, the products, the bias and the sinks."""
    kernels.set_schedule(compute_capability=capability)
    for head_dim in (64, 96, 192):
        for fields in ({}, {"bias": "1hqk", "sinks": True}):
            case = AttentionCase("launched", 3, 5, head_dim=head_dim, **fields)
            assert backward_of(case, make_inputs(case, torch.bfloat16))["dq"].isfinite().all()


COUNTED = [(head_dim, mask) for head_dim in (128, 256) for mask in ({}, {"causal": True}, {"window_size": (40, 9)})]


@pytest.mark.parametrize(("head_dim", "mask"), COUNTED, ids=str)
@pytest.mark.parametrize("threshold", [None, 60], ids=["plain", "piecewise"])
def test_work_is_what_the_mask_leaves(head_dim: int, mask: dict, threshold: int | None) -> None:
    """Five products of every tile with a visible element and no other, and no bank conflicts, also without terms."""
    seqlen_q, seqlen_k, heads = 130, 200, 2
    case = AttentionCase(
        "counted", seqlen_q, seqlen_k, heads_q=heads, heads_k=1, head_dim=head_dim, dist_threshold=threshold, **mask
    )
    inputs = make_inputs(case, torch.bfloat16)
    kernels.set_schedule(compute_capability=SMALL_GPU)
    backward_of(case, inputs)
    done = kernels.counters()
    _, _, block_m, block_n, _ = kernels_backward.kernel_of(case, inputs, SMALL)
    seen = seen_elements(seqlen_q, seqlen_k, mask)
    far = distances(seqlen_q, seqlen_k) >= (seqlen_k + seqlen_q if threshold is None else threshold)
    tiles = sum(
        bool(part[m : m + block_m, n : n + block_n].any())
        for part in (seen & ~far, seen & far)
        for m in range(0, seqlen_q, block_m)
        for n in range(0, seqlen_k, block_n)
    )
    assert done["matrix_flops"] == heads * tiles * 5 * 2 * block_m * block_n * head_dim
    assert done["bank_conflicts"] == 0
