"""swiglu: results and gradients against the float64 oracle, layouts, extremes, bad input, tracing."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from flagattn import reference
from flagattn.testing import check_against_oracle, run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1,), (7,), (3, 5), (2, 3, 16), (7, 33), (5, 64), (33, 257), (2, 40, 1408), (1, 70_001))


def operands(shape: tuple[int, ...], dtype: torch.dtype, *, scale: float = 2.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(shape[-1])
    gate, up = (torch.randn(shape, generator=generator).mul(scale).to(dtype) for _ in range(2))
    return {"gate": gate, "up": up}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_against_oracle(flagattn.swiglu, reference.swiglu, operands(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_gates(cpu_level: str, dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e4, -300.0, -104.0, -88.8, -87.0, -17.0, -1e-6, -0.0, 0.0, 1e-6, 17.0, 88.0, 104.0, 1e4])
    tensors = {"gate": gate.to(dtype), "up": torch.ones(14, dtype=dtype)}
    check_against_oracle(flagattn.swiglu, reference.swiglu, tensors)
    results = run_with_gradients(flagattn.swiglu, tensors)
    assert all(torch.isfinite(result).all() for result in results.values())
    if dtype != torch.float16:  # whose largest value is smaller
        assert flagattn.swiglu(torch.tensor([-1e38], dtype=dtype), torch.ones(1, dtype=dtype)).item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_where_it_is(cpu_level: str, dtype: torch.dtype) -> None:
    for name in ("gate", "up"):
        tensors = operands((6, 50), dtype)
        clean = run_with_gradients(flagattn.swiglu, tensors)
        tensors[name][2, 33] = torch.nan
        soiled = run_with_gradients(flagattn.swiglu, tensors)
        there = torch.zeros(6, 50, dtype=torch.bool)
        there[2, 33] = True
        assert soiled["output 0"][there].isnan().all() and soiled["dgate"][there].isnan().all()
        for result in clean:
            assert torch.equal(soiled[result][~there], clean[result][~there])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streamed_results(cpu_level: str, dtype: torch.dtype) -> None:
    """Outputs of 16 MiB and more take another way to memory; their parts, where they are smaller, the usual one."""
    rows = 4120 // dtype.itemsize
    gate, up = operands((rows, 4099), dtype).values()
    y = flagattn.swiglu(gate, up)
    dgate, dup = torch.ops.flagattn.swiglu_backward(up, gate, up)
    for part in torch.arange(rows).split(400):
        part_gate, part_up = gate[part], up[part]
        assert torch.equal(y[part], flagattn.swiglu(part_gate, part_up))
        part_dgate, part_dup = torch.ops.flagattn.swiglu_backward(part_up, part_gate, part_up)
        assert torch.equal(dgate[part], part_dgate) and torch.equal(dup[part], part_dup)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cpu_level: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(3, 7, 2 * 70, generator=generator).to(dtype)
    gate, up = fused.chunk(2, dim=-1)
    check_against_oracle(flagattn.swiglu, reference.swiglu, {"gate": gate, "up": up})
    check_against_oracle(flagattn.swiglu, reference.swiglu, {"gate": gate, "up": up.contiguous()})
    buffer = torch.randn(4, 6, 5, 41, generator=generator).to(dtype)
    check_against_oracle(
        flagattn.swiglu,
        reference.swiglu,
        {"gate": buffer[..., 3:36].transpose(0, 2), "up": buffer[..., :33].transpose(0, 2).contiguous()},
    )
    check_against_oracle(
        flagattn.swiglu,
        reference.swiglu,
        {"gate": buffer[0, :, :, 0].t(), "up": buffer[:1, :5, 0, :6].expand(1, 5, 6)[0]},
    )


def test_halves_of_one_projection_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up = torch.randn(4, 32).chunk(2, dim=-1)
    monkeypatch.setattr(Tensor, "contiguous", lambda self: pytest.fail("an operand was copied"))
    torch.testing.assert_close(flagattn.swiglu(gate, up), F.silu(gate) * up)


def test_same_bits_for_any_thread_count(cpu_level: str, set_threads) -> None:
    tensors = operands((100, 1000), torch.bfloat16)
    runs = []
    for count in (1, 2, 5):
        set_threads(count)
        runs.append(run_with_gradients(flagattn.swiglu, tensors))
    assert all(torch.equal(run[name], runs[0][name]) for run in runs[1:] for name in run)


def test_empty(cpu_level: str) -> None:
    for shape in ((0, 8), (3, 0), (0,)):
        results = run_with_gradients(flagattn.swiglu, operands(shape, torch.float32))
        assert all(result.shape == shape for result in results.values())


def test_double_backward_raises() -> None:
    gate, up = (t.requires_grad_() for t in operands((3, 8), torch.float32).values())
    (dgate,) = torch.autograd.grad(flagattn.swiglu(gate, up).sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dgate.sum().backward()


def test_autocast_widens_the_narrower_operand() -> None:
    gate, up = operands((4, 16), torch.float32).values()
    with torch.autocast("cpu", torch.bfloat16):
        assert flagattn.swiglu(gate.bfloat16(), up).dtype == torch.float32
        assert flagattn.swiglu(gate.bfloat16(), up.bfloat16()).dtype == torch.bfloat16


def test_opcheck() -> None:
    gate, up = operands((2, 3, 20), torch.float32).values()
    ops = torch.ops.flagattn
    torch.library.opcheck(ops.swiglu.default, (gate.clone().requires_grad_(), up.clone().requires_grad_()))
    torch.library.opcheck(ops.swiglu_backward.default, (up, gate, up))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def block(gate: Tensor, up: Tensor) -> Tensor:
        return flagattn.swiglu(gate * 2, up) + 1

    traced = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 6):
        tensors = operands((rows, 32), torch.float32)
        ours, eager = run_with_gradients(traced, tensors), run_with_gradients(block, tensors)
        assert all(torch.equal(ours[name], eager[name]) for name in eager)


def test_bad_input() -> None:
    x = torch.randn(4, 8)
    for error, message, arguments in (
        (TypeError, "gate is of type float", (1.0, x)),
        (TypeError, "up is None", (x, None)),
        (TypeError, "gate is float64", (x.double(), x.double())),
        (TypeError, "up is bfloat16", (x, x.bfloat16())),
        (ValueError, "up has shape (4, 7)", (x, x[:, :7])),
        (ValueError, "up is on meta", (x, x.to("meta"))),
        (ValueError, "gate has no dimension", (x[0, 0], x[0, 0])),
    ):
        with pytest.raises(error, match=re.escape(message)):
            flagattn.swiglu(*arguments)
    with pytest.raises(RuntimeError, match="up has shape"):
        torch.ops.flagattn.swiglu(x, x[:3])
    with pytest.raises(RuntimeError, match="last dimension must be contiguous"):
        torch.ops.flagattn.swiglu(x.t(), x.t())
