"""The sm_80 SwiGLU kernels, executed on the CPU: oracle, layouts, extremes, bits and counts."""

from __future__ import annotations

import pytest
import torch

from flagattn import reference
from flagattn.testing import check_against_oracle, run_with_gradients
from tests.activation.test_swiglu import DTYPES, SHAPES, operands
from tests.host_exec import kernels, kernels_fused

# Beside the CPU's shapes: several blocks, pieces that wrap from row to row inside a block, a last block not full.
OWN_SHAPES = ((70, 24), (3, 8200), (600, 8))
SCHEDULES = [{"seed": seed, "workers": workers} for seed, workers in ((0, 2), (1, 1), (2, 2))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(SHAPES + OWN_SHAPES)), ids=[str(s) for s in SHAPES + OWN_SHAPES])
def test_oracle(index: int, dtype: torch.dtype) -> None:
    kernels.set_schedule(**SCHEDULES[index % len(SCHEDULES)])
    check_against_oracle(kernels_fused.swiglu, reference.swiglu, operands((SHAPES + OWN_SHAPES)[index], dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [14, 16])  # element by element, and by vectors
def test_extreme_gates(dtype: torch.dtype, count: int) -> None:
    kernels.set_schedule()
    values = [-1e4, -300.0, -104.0, -88.8, -87.0, -17.0, -1e-6, -0.0, 0.0, 1e-6, 17.0, 88.0, 104.0, 1e4, -1.0, 1.0]
    tensors = {"gate": torch.tensor(values[:count]).to(dtype), "up": torch.ones(count, dtype=dtype)}
    check_against_oracle(kernels_fused.swiglu, reference.swiglu, tensors)
    results = run_with_gradients(kernels_fused.swiglu, tensors)
    assert all(torch.isfinite(result).all() for result in results.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype) -> None:
    kernels.set_schedule(seed=1)
    generator = torch.Generator().manual_seed(0)
    for half in (70, 72):
        gate, up = torch.randn(3, 7, 2 * half, generator=generator).to(dtype).chunk(2, dim=-1)
        check_against_oracle(kernels_fused.swiglu, reference.swiglu, {"gate": gate, "up": up})
        check_against_oracle(kernels_fused.swiglu, reference.swiglu, {"gate": gate, "up": up.contiguous()})
    buffer = torch.randn(4, 6, 5, 48, generator=generator).to(dtype)
    for first, cols in ((3, 33), (8, 32)):
        gate = buffer[..., first : first + cols].transpose(0, 2)
        up = buffer[..., :cols].transpose(0, 2).contiguous()
        check_against_oracle(kernels_fused.swiglu, reference.swiglu, {"gate": gate, "up": up})


def test_bits_do_not_depend_on_the_schedule() -> None:
    runs = []
    for schedule in SCHEDULES:
        kernels.set_schedule(**schedule)
        runs.append(run_with_gradients(kernels_fused.swiglu, operands((40, 1000), torch.bfloat16)))
    assert all(torch.equal(run[name], runs[0][name]) for run in runs[1:] for name in run)


def test_empty() -> None:
    for shape in ((0, 8), (3, 0), (0,)):
        results = run_with_gradients(kernels_fused.swiglu, operands(shape, torch.float32))
        assert all(result.shape == shape for result in results.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_byte_is_read_and_written_once(dtype: torch.dtype) -> None:
    """Three units forward and five backward, in whole sectors, also of the halves of one projection."""
    kernels.set_schedule()
    gate, up = torch.randn(65, 2 * 1408).to(dtype).chunk(2, dim=-1)
    unit = gate.numel() * gate.element_size()
    kernels_fused.swiglu_forward(gate, up)
    done = [kernels.counters()]
    kernels_fused.swiglu_backward(gate.contiguous(), gate, up)
    done.append(kernels.counters())
    for counts, read, written in zip(done, (2, 3), (1, 2)):
        assert (counts["global_bytes_read"], counts["global_bytes_written"]) == (read * unit, written * unit)
        assert counts["global_sectors_read"] * 32 == read * unit
        assert counts["global_sectors_written"] * 32 == written * unit
        assert counts["bank_conflicts"] == 0 and counts["barrier_waits"] == 0
