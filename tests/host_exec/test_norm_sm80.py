"""The sm_80 RMSNorm kernels, executed on the CPU: oracle, layouts, bits, plans and counts."""

from __future__ import annotations

import functools
from itertools import product

import pytest
import torch
from torch import Tensor

from flagattn import reference
from flagattn.testing import check_against_oracle, run_with_gradients
from tests.host_exec import kernels, kernels_fused
from tests.norm.test_rms_norm import DTYPES, ROUNDINGS, operands
from tests.norm.test_rms_norm import SHAPES as CPU_SHAPES

# But for one column, where dx is what 1 - n^2 leaves: a few units of rstd's last place, and so a matter of luck.
SHAPES = tuple(shape for shape in CPU_SHAPES if shape != (1, 1))
# Beside the CPU's shapes: teams of part of a warp and of several, several rows per team; wider rows than registers
# hold, of which the last are read twice; widths that are no multiple of a team's.
OWN_SHAPES = ((3000, 128), (70, 1024), (9, 2056), (3, 8704), (2, 17416), (1, 50_184))
OPTIONS = tuple(product(ROUNDINGS, (False, True), (0.0, 1.0)))  # rounding, residual, offset
SCHEDULES = [{"seed": seed, "workers": workers} for seed, workers in ((0, 2), (1, 1), (2, 2), (3, 1))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(SHAPES + OWN_SHAPES)), ids=[str(s) for s in SHAPES + OWN_SHAPES])
def test_oracle(index: int, dtype: torch.dtype) -> None:
    """The CPU's options, each shape with as many of them as its size leaves time for, under a schedule of its own."""
    shape = (SHAPES + OWN_SHAPES)[index]
    elements = torch.Size(shape).numel()
    share = OPTIONS if elements < 1000 else OPTIONS[(3 * index) % len(OPTIONS) :][:: 5 if elements < 20_000 else 12]
    for number, (rounding, residual, offset) in enumerate(share):
        kernels.set_schedule(**SCHEDULES[(index + number) % len(SCHEDULES)])
        options = {"eps": 1e-3, "rounding": rounding, "offset": offset}
        check_against_oracle(
            functools.partial(kernels_fused.rms_norm, **options),
            functools.partial(reference.rms_norm, **options),
            operands(shape, dtype, residual=residual),
        )


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [70, 72])  # element by element, and by vectors
def test_weight_of_another_dtype(dtype: torch.dtype, weight_dtype: torch.dtype, cols: int) -> None:
    kernels.set_schedule()
    check_against_oracle(kernels_fused.rms_norm, reference.rms_norm, operands((40, cols), dtype, weight_dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype) -> None:
    """The CPU's: slices, transposed and expanded leading dimensions, unaligned starts; and aligned ones of the kind."""
    kernels.set_schedule(seed=1)
    generator = torch.Generator().manual_seed(0)
    buffer = torch.randn(4, 6, 5, 3, 48, generator=generator).to(dtype)
    for cols, first in ((33, 3), (32, 8)):
        weight = torch.randn(cols, generator=generator).to(dtype)
        views = (
            buffer[:, :, 1:4, 2, first : first + cols],
            buffer[1:, ::2, :, :, first : first + cols].transpose(0, 2),
            buffer[:1, :, 0, 0, :cols].expand(3, 6, cols),
        )
        for view in views:
            residual = torch.randn(view.shape, generator=generator).to(dtype)
            tensors = {"x": view, "weight": weight, "residual": residual}
            check_against_oracle(kernels_fused.rms_norm, reference.rms_norm, tensors)
            swapped = {**tensors, "x": residual, "residual": view}
            check_against_oracle(kernels_fused.rms_norm, reference.rms_norm, swapped)


@pytest.mark.parametrize("cols", [24, 1032, 37])
def test_bits_do_not_depend_on_the_schedule(cols: int) -> None:
    tensors = operands((150, cols), torch.bfloat16, residual=True)
    runs = []
    for schedule in SCHEDULES:
        kernels.set_schedule(**schedule)
        runs.append(run_with_gradients(kernels_fused.rms_norm, tensors))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize("cols", [24, 23])
def test_many_rows_keep_the_weight_gradient_exact(cols: int) -> None:
    kernels.set_schedule()
    check_against_oracle(kernels_fused.rms_norm, reference.rms_norm, operands((20_000, cols), torch.float32))


@pytest.mark.parametrize("cols", [48, 47])
def test_nan_stays_in_its_row(cols: int) -> None:
    kernels.set_schedule()
    tensors = operands((40, cols), torch.bfloat16)
    clean = run_with_gradients(kernels_fused.rms_norm, tensors)
    tensors["x"][3, 7] = torch.nan
    soiled = run_with_gradients(kernels_fused.rms_norm, tensors)
    others = [row for row in range(40) if row != 3]
    for name in ("output 0", "dx"):
        assert soiled[name][3].isnan().all() and torch.equal(soiled[name][others], clean[name][others])


def test_empty() -> None:
    kernels.set_schedule()
    for shape in ((0, 8), (3, 0, 8), (3, 0)):
        results = run_with_gradients(kernels_fused.rms_norm, operands(shape, torch.float32, residual=True))
        assert results["output 0"].shape == shape and torch.equal(results["dweight"], torch.zeros(shape[-1]))


def test_refuses_more_columns_than_it_counts() -> None:
    tag = kernels_fused.dtype_of(torch.empty(0))
    fields = {"dtype": tag, "weight_dtype": tag, "rows": 1, "cols": 2**30 + 1, "eps": 0.0, "offset": 0.0}
    nothing = dict.fromkeys(("x", "residual", "weight", "y", "summed", "rstd"))
    with pytest.raises(RuntimeError, match=r"x has 1073741825 columns; rms_norm on CUDA supports at most 2\^30"):
        kernels_fused.host_exec_module().rms_norm_sm80({**fields, **nothing, "round_normalised": False})


# ---- Counts. Units are bytes of x; see docs/kernels/fused_ops.md for the floors.


def counted() -> dict:
    done = kernels.counters()
    assert done["bank_conflicts"] == 0
    assert done["global_sectors_read"] * 32 == done["global_bytes_read"]
    return done


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_reads_and_writes_every_byte_once(dtype: torch.dtype, residual: bool) -> None:
    """x once, y once (with a residual four such), and the weight once per team."""
    rows, cols = 512, 512
    x, weight, *more = operands((rows, cols), dtype, residual=residual).values()
    kernels.set_schedule()
    kernels_fused.rms_norm_forward(x, more[0] if more else None, weight, 1e-5, 0.0, True)
    done, unit = counted(), x.numel() * x.element_size()
    plan = kernels_fused.host_exec_module().rms_norm_forward_plan_sm80(rows, cols, kernels_fused.dtype_of(x))
    assert done["global_bytes_written"] == unit * (2 if residual else 1) + 4 * rows
    assert done["global_bytes_read"] == unit * (2 if residual else 1) + rows // plan[2] * cols * weight.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_reads_and_writes_every_byte_once(dtype: torch.dtype) -> None:
    """dy, s and ds once; the partial sums of dweight, one fp32 row for up to 64 rows, are all there is beside them."""
    rows, cols = 2048, 64
    x, weight = operands((rows, cols), dtype).values()
    kernels.set_schedule()
    kernels_fused.rms_norm_backward(x, None, x, weight, torch.ones(rows), 0.0, False)
    done, unit = counted_of_rows(), x.numel() * x.element_size()
    lanes, _, rows_per_team = kernels_fused.host_exec_module().rms_norm_backward_plan_sm80(
        rows, cols, kernels_fused.dtype_of(x)
    )
    assert done["global_bytes_written"] == unit
    weights = rows // rows_per_team * weight.numel() * weight.element_size()
    assert done["global_bytes_read"] == 2 * unit + weights + 4 * rows * lanes


def counted_of_rows() -> dict:
    """Without the sectors: all threads of a team read one rstd."""
    done = kernels.counters()
    assert done["bank_conflicts"] == 0
    return done


def test_weight_gradient_reads_partial_sums_once() -> None:
    x, weight = operands((4000, 64), torch.float32).values()
    kernels.set_schedule()
    kernels_fused.rms_norm_backward(x, None, x, weight, torch.ones(4000), 0.0, True)
    done = counted()
    _, _, rows_per_team = kernels_fused.host_exec_module().rms_norm_backward_plan_sm80(
        4000, 64, kernels_fused.dtype_of(x)
    )
    assert done["global_bytes_read"] == -(-4000 // rows_per_team) * 64 * 4 and done["global_bytes_written"] == 64 * 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [8, 128, 512, 4096, 5120, 8192, 16_384])
@pytest.mark.parametrize("rows", [1, 100, 16_384, 1_000_000])
def test_plans(rows: int, cols: int, dtype: torch.dtype) -> None:
    """Threads, rows and, of the backward on large problems, the bytes of partial sums: at most 5 % of three units."""
    module = kernels_fused.host_exec_module()
    tag = kernels_fused.dtype_of(torch.empty(0, dtype=dtype))
    for lanes, teams, rows_per_team in (
        module.rms_norm_forward_plan_sm80(rows, cols, tag),
        module.rms_norm_backward_plan_sm80(rows, cols, tag),
    ):
        threads = lanes * teams
        assert threads <= 512 and (threads % 32 == 0) and rows_per_team >= 1
        assert lanes % 32 == 0 or 32 % lanes == 0
    # What the teams add to the floor: the weight's readings, and partial sums that are written and read.
    unit = rows * cols * dtype.itemsize
    if unit >= 64 << 20 and 4096 <= cols <= 8192:
        weights = -(-rows // module.rms_norm_forward_plan_sm80(rows, cols, tag)[2]) * cols * dtype.itemsize
        assert weights <= 0.05 * 2 * unit
        assert 2 * module.rms_norm_backward_scratch_sm80(rows, cols, tag) <= 0.05 * 3 * unit


def test_results_of_a_tensor_are_those_of_its_rows() -> None:
    kernels.set_schedule()
    tensors = operands((9, 65), torch.bfloat16)
    together = kernels_fused.rms_norm(**tensors)
    alone = torch.cat([kernels_fused.rms_norm(row, tensors["weight"]) for row in tensors["x"].split(1)])
    assert torch.equal(together, alone) and isinstance(together, Tensor)
