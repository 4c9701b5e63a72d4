"""batch_invariant_linear: results and gradients against the float64 oracle, bits over batches and threads."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flagattn
from flagattn import reference
from flagattn.testing import available_cpu_levels, check_against_oracle, run_with_gradients, set_cpu_level

ROOT = Path(flagattn.__file__).parents[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows, in and out features on both sides of a vector, a micro-tile, a block and a chain.
SHAPES = ((1, 1, 1), (1, 40, 33), (3, 7, 5), (4, 300, 17), (5, 256, 16), (6, 257, 96), (13, 64, 97), (150, 520, 200))


def operands(rows: int, features: int, outputs: int, dtype: torch.dtype, *, bias: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + features + outputs)
    tensors = {"x": torch.randn(rows, features, generator=generator)}
    tensors["weight"] = torch.randn(outputs, features, generator=generator) / features**0.5
    if bias:
        tensors["bias"] = torch.randn(outputs, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def alone(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.cat([flagattn.batch_invariant_linear(row, weight, bias) for row in x.split(1)])


# --------------------------------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for bias in (False, True):
        tensors = operands(*shape, dtype, bias=bias)
        check_against_oracle(flagattn.batch_invariant_linear, reference.batch_invariant_linear, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cpu_level: str, dtype: torch.dtype) -> None:
    """Transposed, sliced, expanded and strided operands, and upstream gradients of such layouts."""
    generator = torch.Generator().manual_seed(0)
    buffer = torch.randn(60, 90, 2, generator=generator).to(dtype)
    bias = buffer[0, :50, 0].contiguous()
    views = (buffer[:, :, 0], buffer[:50, 3:80:2, 1], buffer[:50, :60, 1].t(), buffer[:1, :33, 0].expand(50, 33))
    for x in views:
        for weight in (torch.randn(50, x.shape[1], generator=generator).to(dtype), x[:50]):
            wanted = run_with_gradients(
                flagattn.batch_invariant_linear, {"x": x.clone(), "weight": weight.contiguous(), "bias": bias}
            )
            for upstream_bias in (bias, buffer[0, :50, 0]):
                tensors = {"x": x, "weight": weight, "bias": upstream_bias}
                given_as_is = run_with_gradients(flagattn.batch_invariant_linear, tensors)
                assert all(torch.equal(given_as_is[name], wanted[name]) for name in wanted)


def test_leading_dimensions() -> None:
    x, weight, bias = operands(24, 10, 7, torch.float32).values()
    flat = flagattn.batch_invariant_linear(x, weight, bias)
    assert torch.equal(flagattn.batch_invariant_linear(x[0], weight, bias), flat[0])
    assert torch.equal(flagattn.batch_invariant_linear(x.view(2, 3, 4, 10), weight, bias), flat.view(2, 3, 4, 7))
    turned = x.view(4, 6, 10).transpose(0, 1)
    assert torch.equal(flagattn.batch_invariant_linear(turned, weight, bias), flat.view(4, 6, 7).transpose(0, 1))


def test_sums_of_one_sign_stay_exact() -> None:
    """Chains keep the error of a long sum far below that of one running total."""
    ones = torch.full((2, 200_000), 0.1)
    y = flagattn.batch_invariant_linear(ones, torch.ones(3, 200_000))
    torch.testing.assert_close(
        y.double(), torch.full((2, 3), 200_000 * float(ones[0, 0]), dtype=torch.float64), rtol=2e-5, atol=0
    )


# ------------------------------------------------------------------------------------------------------------ same bits

same_bits = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.mark.parametrize("level", available_cpu_levels())
@same_bits
@given(
    rows=st.integers(1, 300),
    features=st.integers(1, 600),
    outputs=st.integers(1, 230),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_a_row_does_not_know_its_batch(
    rows: int, features: int, outputs: int, dtype: torch.dtype, level: str, data: st.DataObject
) -> None:
    """Any rows, in any order and number, on any number of threads, give the bits that they give alone."""
    x, weight, bias = operands(rows, features, outputs, dtype).values()
    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=20), label="rows")
    before = torch.get_num_threads()
    try:
        with set_cpu_level(level):
            torch.set_num_threads(1)
            together = flagattn.batch_invariant_linear(x, weight, bias)
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                assert torch.equal(flagattn.batch_invariant_linear(x, weight, bias), together)
                assert torch.equal(flagattn.batch_invariant_linear(x[chosen], weight, bias), together[chosen])
            assert torch.equal(alone(x[chosen], weight, bias), together[chosen])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_have_the_same_bits(cpu_level: str, set_threads, dtype: torch.dtype) -> None:
    tensors = operands(300, 130, 200, dtype)
    runs = []
    for count in (1, 2, 3, 8):
        set_threads(count)
        runs.append(run_with_gradients(flagattn.batch_invariant_linear, tensors))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)
    x, upstream = tensors["x"].clone().requires_grad_(), torch.randn(300, 200).to(dtype)
    (dx,) = torch.autograd.grad(flagattn.batch_invariant_linear(x, tensors["weight"]), x, upstream)
    for part in (slice(0, 1), slice(7, 11), slice(100, 280)):
        y = flagattn.batch_invariant_linear(x[part], tensors["weight"])
        (dx_part,) = torch.autograd.grad(y, x, upstream[part])
        assert torch.equal(dx_part[part], dx[part])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_do_not_know_their_neighbours(cpu_level: str, dtype: torch.dtype) -> None:
    """So that projections may be joined."""
    x, weight, _ = operands(40, 90, 211, dtype).values()
    together = flagattn.batch_invariant_linear(x, weight)
    parts = [flagattn.batch_invariant_linear(x, part) for part in weight.split([1, 16, 100, 94])]
    assert torch.equal(torch.cat(parts, dim=1), together)


def test_nan_stays_in_its_row_and_column(cpu_level: str) -> None:
    x, weight, bias = operands(21, 50, 70, torch.float32).values()
    clean = flagattn.batch_invariant_linear(x, weight, bias)
    x[3, 7], weight[11, 2] = torch.nan, torch.inf
    soiled = flagattn.batch_invariant_linear(x, weight, bias)
    rows, cols = [i for i in range(21) if i != 3], [j for j in range(70) if j != 11]
    assert soiled[3].isnan().all() and not soiled[rows, 11].isfinite().any()
    assert torch.equal(soiled[rows][:, cols], clean[rows][:, cols])


def test_denormal_bf16_is_zero_in_tiles(cpu_level: str) -> None:
    """As docs/numerics.md tells: denormal operands, and denormal products of normal ones."""
    ones = torch.ones(1, 64, dtype=torch.bfloat16)
    for x, weight in ((1e-39, 1.0), (1e-20, 5e-20)):
        y = flagattn.batch_invariant_linear(ones * x, ones * weight)
        exact = (ones * x).double() @ (ones * weight).double().T
        wanted = torch.zeros(1, 1, dtype=torch.float64) if cpu_level == "amx" else exact
        torch.testing.assert_close(y.double(), wanted, rtol=2**-8, atol=0.0)
        assert exact > torch.finfo(torch.bfloat16).tiny  # a normal number


# ------------------------------------------------------------------------------------------------------------- in torch


def test_empty(cpu_level: str) -> None:
    for shape in ((0, 8, 4), (3, 8, 0), (0, 8, 0)):
        results = run_with_gradients(flagattn.batch_invariant_linear, operands(*shape, torch.float32))
        assert results["output 0"].shape == (shape[0], shape[2])
        assert torch.equal(results["dweight"], torch.zeros(shape[2], shape[1]))
    x, weight, bias = torch.randn(3, 0), torch.randn(4, 0), torch.randn(4)
    assert torch.equal(flagattn.batch_invariant_linear(x, weight, bias), bias.expand(3, 4))


def test_frozen_operands() -> None:
    tensors = operands(9, 20, 11, torch.float32)
    every = run_with_gradients(flagattn.batch_invariant_linear, tensors)
    for name, tensor in tensors.items():
        rest = {key: value for key, value in tensors.items() if key != name}
        one = run_with_gradients(functools.partial(flagattn.batch_invariant_linear, **rest), {name: tensor})
        assert torch.equal(one[f"d{name}"], every[f"d{name}"])


def test_double_backward() -> None:
    x, weight, bias = (t.double().float().requires_grad_() for t in operands(5, 6, 4, torch.float32).values())

    def second(op) -> tuple[Tensor, ...]:
        (dx,) = torch.autograd.grad(op(x, weight, bias).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, weight, bias))

    for ours, theirs in zip(second(flagattn.batch_invariant_linear), second(nn.functional.linear), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_autocast_casts_like_linear() -> None:
    x, weight, bias = operands(4, 16, 8, torch.float32).values()
    with torch.autocast("cpu", torch.bfloat16):
        y = flagattn.batch_invariant_linear(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, flagattn.batch_invariant_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))


def test_checkpointing() -> None:
    tensors = operands(5, 24, 9, torch.float32)
    plain = run_with_gradients(flagattn.batch_invariant_linear, tensors)
    again = run_with_gradients(
        lambda x, weight, bias: checkpoint(flagattn.batch_invariant_linear, x, weight, bias, use_reentrant=False),
        tensors,
    )
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_opcheck() -> None:
    x, weight, bias = (t.requires_grad_() for t in operands(3, 40, 18, torch.float32).values())
    op = torch.ops.flagattn.batch_invariant_linear.default
    for arguments in ((x, weight, bias), (x, weight, None), (x.detach().t().contiguous().t(), weight, None)):
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return flagattn.batch_invariant_linear((x * 2).view(2, -1, x.shape[-1]), weight, bias).relu()

    traced = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 6):
        tensors = operands(rows, 32, 16, torch.float32)
        ours, eager = run_with_gradients(traced, tensors), run_with_gradients(block, tensors)
        assert all(torch.equal(ours[name], eager[name]) for name in eager)


def test_explain(cpu_level: str) -> None:
    x, weight = torch.randn(2, 2, 8), torch.randn(5, 8)
    assert "where it lies" in flagattn.explain("batch_invariant_linear", x, weight).details["weight"]
    assert "packed" in flagattn.explain("batch_invariant_linear", torch.randn(5, 8), weight).details["weight"]
    assert "torch's BLAS" in str(flagattn.explain(flagattn.batch_invariant_linear, x, weight))
    told = flagattn.explain("batch_invariant_linear", x.bfloat16(), weight.bfloat16()).details
    in_tiles = cpu_level == "amx"
    assert ("tile products" in told["sums"]) == in_tiles and ("chains of 128" in told["sums"]) != in_tiles
    assert ("packed" in told["weight"]) == in_tiles and ("where it lies" in told["weight"]) != in_tiles


def test_the_length_of_a_chain_is_the_kernel_s_wherever_it_is_told() -> None:
    (length,) = re.findall(r"kLinearDepth = (\d+);", (ROOT / "csrc/linear/cpu/linear_isa.h").read_text())
    sums = flagattn.explain("batch_invariant_linear", torch.randn(2, 8), torch.randn(5, 8)).details["sums"]
    assert re.findall(r"\d+", sums)[0] == length
    assert f"chains of {length} multiply-adds" in flagattn.batch_invariant_linear.__doc__
    assert f"A chain holds {length} neighbouring k" in (ROOT / "docs/ops/linear.md").read_text()
    assert f"一条链包含 {length} 个相邻的 k" in (ROOT / "docs/zh/ops/linear.md").read_text()


def test_bad_input() -> None:
    x, weight, bias = torch.randn(4, 8), torch.randn(3, 8), torch.randn(3)
    for error, message, arguments in (
        (TypeError, "x is of type list", ([1.0], weight)),
        (TypeError, "weight is None", (x, None)),
        (TypeError, "x is float64", (x.double(), weight)),
        (TypeError, "weight is torch.bfloat16, but x is torch.float32", (x, weight.bfloat16())),
        (TypeError, "bias is torch.float16, but x is torch.float32", (x, weight, bias.half())),
        (TypeError, "bias is of type int", (x, weight, 3)),
        (ValueError, "weight has shape (3, 7)", (x, weight[:, :7])),
        (ValueError, "weight has shape (8,)", (x, weight[0])),
        (ValueError, "but x has ()", (x[0, 0], weight)),
        (ValueError, "bias has shape (2,)", (x, weight, bias[:2])),
        (ValueError, "bias has shape (1, 3)", (x, weight, bias[None])),
        (ValueError, "weight is on meta", (x, weight.to("meta"))),
    ):
        with pytest.raises(error, match=re.escape(message)):
            flagattn.batch_invariant_linear(*arguments)


def test_the_op_checks_for_itself() -> None:
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    op = torch.ops.flagattn.batch_invariant_linear
    for message, arguments in (
        ("x is float64", (x.double(), weight, None)),
        ("weight is bfloat16, but x is float32", (x, weight.bfloat16(), None)),
        ("it must be a matrix", (x[None], weight, None)),
        ("weight has shape (3, 7)", (x, weight[:, :7], None)),
        ("bias has shape (4,)", (x, weight, torch.randn(4))),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            op(*arguments)
