"""The sm_80 rotary kernels, executed on the CPU: oracle, positions, in place, layouts, bits and counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flagattn import reference
from flagattn.testing import LAYOUTS, check_against_oracle, laid_out
from tests.host_exec import kernels, kernels_fused
from tests.rotary.test_apply_rotary import DTYPES, SHAPES, angles, random

# Beside the CPU's shapes: vectors with channels behind the rotated ones, several rows per block, many heads,
# halves whose angles wrap the banks.
OWN_SHAPES = ((2, 9, 1, 64, 32), (1, 3, 40, 128, 128), (2, 40, 2, 32, 16), (1, 2, 3, 288, 256))
SCHEDULES = [{"seed": seed, "workers": workers} for seed, workers in ((0, 2), (1, 1), (2, 2))]


def check(x: Tensor, cos: Tensor, sin: Tensor, **options) -> None:
    def plain(x: Tensor) -> Tensor:
        tables = (cos.double(), sin.double()) if x.dtype == torch.float64 else (cos, sin)
        return reference.apply_rotary(x, *tables, **options)

    check_against_oracle(lambda x: kernels_fused.apply_rotary(x, cos, sin, **options), plain, {"x": x})


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(SHAPES + OWN_SHAPES)), ids=[str(s) for s in SHAPES + OWN_SHAPES])
def test_oracle(index: int, dtype: torch.dtype, interleaved: bool) -> None:
    batch, seqlen, heads, head_dim, rotary_dim = (SHAPES + OWN_SHAPES)[index]
    kernels.set_schedule(**SCHEDULES[index % len(SCHEDULES)])
    for table_dtype in DTYPES:
        cos, sin = angles(seqlen + 2, rotary_dim // 2, table_dtype)
        check(random(batch, seqlen, heads, head_dim, dtype=dtype), cos, sin, interleaved=interleaved)
    check(random(seqlen, heads, head_dim, dtype=dtype), cos, sin, interleaved=interleaved)


@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("head_dim", [30, 32])
def test_positions(head_dim: int, position_dtype: torch.dtype) -> None:
    kernels.set_schedule(seed=1)
    cos, sin = angles(50, head_dim // 4 * 2)
    generator = torch.Generator().manual_seed(0)
    dense, packed = random(3, 7, 2, head_dim), random(21, 2, head_dim)
    for shape, x in (((3, 7), dense), ((7,), dense), ((21,), packed), ((1, 7), dense)):
        positions = torch.randint(50, shape, generator=generator).to(position_dtype)
        check(x, cos, sin, positions=positions)
        check(x, cos, sin, positions=positions, interleaved=True)


@pytest.mark.parametrize("head_dim", [20, 32])
def test_a_table_per_sequence(head_dim: int) -> None:
    kernels.set_schedule()
    cos, sin = (table.view(3, 10, 8) for table in angles(30, 8))
    x = random(3, 10, 2, head_dim)
    together = kernels_fused.apply_rotary(x, cos, sin)
    alone = [kernels_fused.apply_rotary(x[b : b + 1], cos[b], sin[b]) for b in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [33, 48])
def test_layouts_and_in_place(head_dim: int, layout: str, interleaved: bool) -> None:
    kernels.set_schedule()
    cos, sin = angles(9, head_dim // 4 if head_dim % 2 else 16)
    for dtype in DTYPES:
        for shape in ((2, 9, 3, head_dim), (9, 3, head_dim)):
            values = random(*shape, dtype=dtype)
            check(laid_out(values, layout), cos, sin, interleaved=interleaved)
            expected = kernels_fused.apply_rotary(values, cos, sin, interleaved=interleaved)
            x = laid_out(values, layout)
            frame = x._base if x._base is not None else x
            untouched = frame.isnan().sum()
            kernels_fused.apply_rotary(x, cos, sin, interleaved=interleaved, inplace=True)
            assert torch.equal(x, expected) and frame.isnan().sum() == untouched


@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("head_dim", [30, 32])
def test_wrong_positions_are_moved_into_the_tables(head_dim: int, position_dtype: torch.dtype) -> None:
    kernels.set_schedule()
    cos, sin = angles(6, head_dim // 4 * 2)
    x = random(2, 3, 1, head_dim)
    largest = torch.iinfo(position_dtype).max
    wrong = torch.tensor([[0, -1, 2], [5, 6, largest]], dtype=position_dtype)
    inside = torch.tensor([[0, 0, 2], [5, 5, 5]], dtype=position_dtype)
    assert torch.equal(
        kernels_fused.apply_rotary(x, cos, sin, positions=wrong),
        kernels_fused.apply_rotary(x, cos, sin, positions=inside),
    )


def test_bits_do_not_depend_on_the_schedule() -> None:
    cos, sin = angles(40, 32)
    x, results = random(2, 40, 3, 64, dtype=torch.bfloat16), []
    for schedule in SCHEDULES:
        kernels.set_schedule(**schedule)
        results.append(kernels_fused.apply_rotary(x, cos, sin))
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_empty_and_refusal() -> None:
    cos, sin = angles(5, 4)
    for shape in ((0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8), (0, 2, 8)):
        assert kernels_fused.apply_rotary(torch.empty(shape), cos, sin).shape == shape
    x = random(2, 3, 2, 8)
    assert torch.equal(kernels_fused.apply_rotary(x, cos[:, :0], sin[:, :0]), x)
    with pytest.raises(RuntimeError, match="cos has no rows; every row of x needs one"):
        kernels_fused.apply_rotary(x, cos[:0], sin[:0], positions=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(32, 128), (8, 64)])
def test_every_byte_is_read_and_written_once(heads: int, head_dim: int, dtype: torch.dtype, interleaved: bool) -> None:
    """x, y and each row's angles, all in whole sectors, without a bank conflict and with one barrier."""
    kernels.set_schedule()
    rows = 16
    cos, sin = angles(rows, head_dim // 2)
    x = random(1, rows, heads, head_dim, dtype=dtype)
    kernels_fused.apply_rotary(x, cos, sin, interleaved=interleaved)
    done, unit = kernels.counters(), x.numel() * x.element_size()
    tables = 2 * cos.numel() * 4
    assert (done["global_bytes_read"], done["global_bytes_written"]) == (unit + tables, unit)
    assert done["global_sectors_read"] * 32 == unit + tables and done["global_sectors_written"] * 32 == unit
    assert done["bank_conflicts"] == 0
