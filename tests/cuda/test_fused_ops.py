"""The fused ops' CUDA kernels on a GPU: the CPU tests' cases against the oracle, layouts, streams, graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn import reference
from flagattn.testing import LAYOUTS, check_against_oracle, laid_out
from tests.activation import test_swiglu as swiglu_cases
from tests.cuda.moving import moved_to
from tests.host_exec.test_norm_sm80 import OPTIONS
from tests.host_exec.test_norm_sm80 import OWN_SHAPES as OWN_NORM_SHAPES
from tests.host_exec.test_norm_sm80 import SHAPES as NORM_SHAPES
from tests.host_exec.test_rotary_sm80 import OWN_SHAPES as OWN_ROTARY_SHAPES
from tests.norm import test_rms_norm as norm_cases
from tests.rotary import test_apply_rotary as rotary_cases

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.gpu


def on_gpu(op: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """op on copies on the GPU of its tensors, the layouts kept; its results come back."""

    def moved(value: Any) -> Any:
        return moved_to(value, "cuda") if isinstance(value, Tensor) else value

    def call(**tensors: Any) -> Any:
        result = op(**{name: moved(t) for name, t in tensors.items()}, **{n: moved(v) for n, v in options.items()})
        return result.cpu() if isinstance(result, Tensor) else tuple(part.cpu() for part in result)

    return call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", NORM_SHAPES + OWN_NORM_SHAPES, ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for rounding, residual, offset in OPTIONS:
        options: dict[str, Any] = {"eps": 1e-3, "rounding": rounding, "offset": offset}
        check_against_oracle(
            on_gpu(flagattn.rms_norm, **options),
            functools.partial(reference.rms_norm, **options),
            norm_cases.operands(shape, dtype, residual=residual),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (*swiglu_cases.SHAPES, (3, 8200)), ids=str)
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_against_oracle(on_gpu(flagattn.swiglu), reference.swiglu, swiglu_cases.operands(shape, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cols", [33, 48, 1032])
def test_layouts_of_rows(cols: int, layout: str) -> None:
    """Views of several strides and odd starts, of both operands."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    x, residual, weight = laid_out(random(2, 9, 3, cols), layout), random(2, 9, 3, cols), random(cols)
    norm = {"x": x, "weight": weight, "residual": residual}
    check_against_oracle(on_gpu(flagattn.rms_norm), reference.rms_norm, norm)
    check_against_oracle(on_gpu(flagattn.rms_norm), reference.rms_norm, {**norm, "x": residual, "residual": x})
    check_against_oracle(on_gpu(flagattn.swiglu), reference.swiglu, {"gate": x, "up": residual})
    check_against_oracle(on_gpu(flagattn.swiglu), reference.swiglu, {"gate": residual, "up": x})


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", rotary_cases.SHAPES + OWN_ROTARY_SHAPES, ids=str)
def test_apply_rotary(shape: tuple[int, ...], dtype: torch.dtype, interleaved: bool) -> None:
    batch, seqlen, heads, head_dim, rotary_dim = shape
    cos, sin = rotary_cases.angles(seqlen + 2, rotary_dim // 2)

    def plain(x: Tensor) -> Tensor:
        tables = (cos.double(), sin.double()) if x.dtype == torch.float64 else (cos, sin)
        return reference.apply_rotary(x, *tables, interleaved=interleaved)

    x = rotary_cases.random(batch, seqlen, heads, head_dim, dtype=dtype)
    check_against_oracle(on_gpu(flagattn.apply_rotary, cos=cos, sin=sin, interleaved=interleaved), plain, {"x": x})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [33, 48])
def test_rotary_in_place(head_dim: int, layout: str) -> None:
    cos, sin = (table.cuda() for table in rotary_cases.angles(9, head_dim // 4))
    x = laid_out(rotary_cases.random(2, 9, 3, head_dim).cuda(), layout)
    expected = flagattn.apply_rotary(x, cos, sin)
    assert flagattn.apply_rotary(x, cos, sin, inplace=True) is x and torch.equal(x, expected)


def test_wrong_positions_are_moved_into_the_tables() -> None:
    cos, sin = (table.cuda() for table in rotary_cases.angles(6, 16))
    x = rotary_cases.random(1, 4, 2, 32).cuda()
    wrong, inside = torch.tensor([0, -9, 6, 2**40], device="cuda"), torch.tensor([0, 0, 5, 5], device="cuda")
    assert torch.equal(
        flagattn.apply_rotary(x, cos, sin, positions=wrong), flagattn.apply_rotary(x, cos, sin, positions=inside)
    )


def layer(x: Tensor, residual: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    y, summed = flagattn.rms_norm(x, weight, residual=residual)
    gate, up = y.chunk(2, dim=-1)
    heads = flagattn.swiglu(gate, up).view(1, x.shape[0], -1, 128)
    return flagattn.apply_rotary(heads, cos, sin), summed


def layer_operands(rows: int, cols: int) -> list[Tensor]:
    cos, sin = rotary_cases.angles(rows, 64)
    tensors = [torch.randn(rows, cols), torch.randn(rows, cols), torch.randn(cols), cos, sin]
    return [tensor.cuda().bfloat16() for tensor in tensors]


def gradients(operands: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in operands[:3]]
    results = layer(*leaves, *operands[3:])
    return [*results, *torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results])]


def test_same_bits_every_time_on_any_stream() -> None:
    operands = layer_operands(3000, 4096)
    first = gradients(operands)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(10):
            assert all(torch.equal(a, b) for a, b in zip(gradients(operands), first))


def test_is_captured_in_a_graph() -> None:
    operands = layer_operands(300, 1024)
    expected = layer(*operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(*operands)
    for result in captured:
        result.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
