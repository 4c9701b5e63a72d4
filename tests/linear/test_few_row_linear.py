"""few_row_linear, the product of layers in generation: against the float64 oracle, and its bits."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flagattn import reference
from flagattn.linear import few_row_linear
from flagattn.testing import assert_close_to_oracle, available_cpu_levels, set_cpu_level

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows, in and out features on both sides of a vector, a step, a group of columns and an item.
SHAPES = ((1, 1, 1), (1, 40, 33), (2, 7, 5), (3, 300, 17), (4, 256, 16), (5, 257, 96), (8, 64, 97), (1, 5000, 30))


def operands(rows: int, features: int, outputs: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + features + outputs)
    tensors = {"x": torch.randn(rows, features, generator=generator)}
    tensors["weight"] = torch.randn(outputs, features, generator=generator) / features**0.5
    tensors["bias"] = torch.randn(outputs, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def of_one(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return few_row_linear(x, [weight], [] if bias is None else [bias])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias = operands(*shape, dtype).values()
    for tensors in ((x, weight), (x, weight, bias)):
        plain = reference.batch_invariant_linear(*tensors)
        ref64 = reference.batch_invariant_linear(*(tensor.double() for tensor in tensors))
        assert_close_to_oracle(of_one(*tensors), plain, ref64)


@pytest.mark.parametrize("level", available_cpu_levels())
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    features=st.integers(1, 600),
    outputs=st.integers(1, 230),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_an_element_does_not_know_its_neighbours(
    rows: int, features: int, outputs: int, dtype: torch.dtype, level: str, data: st.DataObject
) -> None:
    """Neither rows nor columns nor other maps nor threads change a bit."""
    x, weight, bias = operands(rows, features, outputs, dtype).values()
    cut = data.draw(st.integers(0, outputs), label="cut")
    before = torch.get_num_threads()
    try:
        with set_cpu_level(level):
            torch.set_num_threads(1)
            together = of_one(x, weight, bias)
            for threads in (2, 3, 8):
                torch.set_num_threads(threads)
                assert torch.equal(of_one(x, weight, bias), together)
            assert torch.equal(torch.cat([of_one(row, weight, bias) for row in x.split(1)]), together)
            parts = few_row_linear(x, list(weight.split([cut, outputs - cut])), list(bias.split([cut, outputs - cut])))
            assert torch.equal(parts, together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cpu_level: str, dtype: torch.dtype) -> None:
    """Rows may lie anywhere; what lies between them is not read into results."""
    buffer = torch.full((40, 90), torch.nan, dtype=dtype)
    x, weight, bias = operands(3, 37, 20, dtype).values()
    buffer[:3, :37], buffer[10:30, :37] = x, weight
    wanted = of_one(x, weight, bias)
    assert torch.equal(of_one(buffer[:3, :37], buffer[10:30, :37], bias), wanted)
    assert torch.equal(of_one(x.view(1, 3, 37), weight, bias), wanted.view(1, 3, 20))
    assert torch.equal(of_one(x.view(3, 1, 1, 37), weight, bias), wanted.view(3, 1, 1, 20))


def test_nothing(cpu_level: str) -> None:
    assert of_one(torch.randn(0, 8), torch.randn(4, 8)).shape == (0, 4)
    assert few_row_linear(torch.randn(2, 8), [torch.randn(0, 8), torch.randn(3, 8)], []).shape == (2, 3)
    bias = torch.randn(4)
    assert torch.equal(of_one(torch.randn(3, 0), torch.randn(4, 0), bias), bias.expand(3, 4))


def test_opcheck() -> None:
    x, weight, bias = operands(3, 40, 18, torch.float32).values()
    op = torch.ops.flagattn.few_row_linear.default
    for arguments in ((x, [weight], [bias]), (x, [weight, weight[:5], weight[2:7]], [])):
        torch.library.opcheck(op, arguments)


def test_the_op_checks_for_itself() -> None:
    x, weight, bias = torch.randn(4, 8), torch.randn(3, 8), torch.randn(3)
    for message, arguments in (
        ("x is float64", (x.double(), [weight], [])),
        ("x has shape (8,); it must have two to four dimensions", (x[0], [weight], [])),
        ("it must be contiguous", (x.view(2, 2, 8).transpose(0, 1), [weight], [])),
        ("weights has 0 tensors", (x, [], [])),
        ("weights has 5 tensors", (x, [weight] * 5, [])),
        ("weights is bfloat16, but x is float32", (x, [weight, weight.bfloat16()], [])),
        ("weights has shape (3, 7)", (x, [weight[:, :7]], [])),
        ("its last dimension must be contiguous", (x, [torch.randn(8, 3).t()], [])),
        ("its last dimension must be contiguous", (torch.randn(8, 4).t(), [weight], [])),
        ("biases has 1 tensors, but weights has 2", (x, [weight, weight], [bias])),
        ("biases has shape (2,)", (x, [weight], [bias[:2]])),
        ("biases is float16, but x is float32", (x, [weight], [bias.half()])),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.ops.flagattn.few_row_linear(*arguments)
