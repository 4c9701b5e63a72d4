"""rms_norm: results and gradients against the float64 oracle, determinism, layouts, bad input, tracing."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import flagattn
from flagattn import reference
from flagattn.testing import check_against_oracle, run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDINGS = ("llama", "gemma", "none")
# Fewer and more columns than a vector and than an unrolled step, odd ones; few and many rows per partial of dweight.
SHAPES = ((1, 1), (3, 5), (2, 3, 16), (7, 33), (5, 64), (33, 100), (100, 257), (2, 9, 768), (3, 2051))


def operands(
    shape: tuple[int, ...], dtype: torch.dtype, weight_dtype: torch.dtype | None = None, *, residual: bool = False
):
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    tensors = {"x": random(*shape).to(dtype), "weight": (1 + 0.3 * random(shape[-1])).to(weight_dtype or dtype)}
    if residual:
        tensors["residual"] = random(*shape).to(dtype)
    return tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for rounding in ROUNDINGS:
        for residual in (False, True):
            for offset in (0.0, 1.0):
                options = {"eps": 1e-3, "rounding": rounding, "offset": offset}
                check_against_oracle(
                    functools.partial(flagattn.rms_norm, **options),
                    functools.partial(reference.rms_norm, **options),
                    operands(shape, dtype, residual=residual),
                )


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_of_another_dtype(cpu_level: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    tensors = operands((40, 70), dtype, weight_dtype)
    check_against_oracle(flagattn.rms_norm, reference.rms_norm, tensors)
    results = run_with_gradients(flagattn.rms_norm, tensors)
    assert results["output 0"].dtype == dtype and results["dweight"].dtype == weight_dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_keep_the_weight_gradient_exact(dtype: torch.dtype) -> None:
    check_against_oracle(flagattn.rms_norm, reference.rms_norm, operands((20_000, 24), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streamed_results(cpu_level: str, dtype: torch.dtype) -> None:
    """Outputs of 16 MiB and more take another way to memory; their parts, where they are smaller, the usual one."""
    rows = 4100 // dtype.itemsize
    for cols in (4096, 4100):  # rows that start at cache lines, and rows that do not
        x, weight, residual = operands((rows, cols), dtype, residual=True).values()
        y, summed, rstd = torch.ops.flagattn.add_rms_norm(x, residual, weight, 1e-5, 0.0, True)
        ds, _ = torch.ops.flagattn.rms_norm_backward(x, residual, summed, weight, rstd, 0.0, True)
        for part in torch.arange(rows).split(400):
            part_y, part_summed = flagattn.rms_norm(x[part], weight, residual=residual[part])
            assert torch.equal(y[part], part_y) and torch.equal(summed[part], part_summed)
            part_ds, _ = torch.ops.flagattn.rms_norm_backward(
                x[part], residual[part], part_summed, weight, rstd[part], 0.0, True
            )
            assert torch.equal(ds[part], part_ds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cpu_level: str, dtype: torch.dtype) -> None:
    """Slices, transposed and expanded leading dimensions, unaligned starts, a strided last dimension."""
    generator = torch.Generator().manual_seed(0)
    buffer = torch.randn(4, 6, 5, 3, 41, generator=generator).to(dtype)
    weight = torch.randn(33, generator=generator).to(dtype)
    views = (
        buffer[:, :, 1:4, 2, 3:36],
        buffer[1:, ::2, :, :, 8:].transpose(0, 2),
        buffer[:1, :, 0, 0, :33].expand(3, 6, 33),
        buffer[0, 0, :, :, :33].transpose(-1, -2).contiguous().transpose(-1, -2),
    )
    for view in views:
        residual = torch.randn(view.shape, generator=generator).to(dtype)
        tensors = {"x": view, "weight": weight, "residual": residual}
        check_against_oracle(flagattn.rms_norm, reference.rms_norm, tensors)
        check_against_oracle(flagattn.rms_norm, reference.rms_norm, {**tensors, "x": residual, "residual": view})


def test_upstream_gradient_of_any_layout() -> None:
    tensors = {name: t.requires_grad_() for name, t in operands((6, 10), torch.float32).items()}
    y = flagattn.rms_norm(**tensors)
    upstream = torch.randn(10, 6).t()
    ours = torch.autograd.grad(y, list(tensors.values()), upstream, retain_graph=True)
    same = torch.autograd.grad(y, list(tensors.values()), upstream.contiguous(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, same))
    (dx,) = torch.autograd.grad(y.sum(), tensors["x"])  # an expanded scalar
    assert torch.isfinite(dx).all()


def test_agrees_with_torch() -> None:
    x, weight = operands((50, 384), torch.float32).values()
    torch.testing.assert_close(flagattn.rms_norm(x, weight, 1e-6, rounding="none"), F.rms_norm(x, (384,), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_llama_rounding_is_that_of_transformers(cpu_level: str, dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x, weight = operands((30, 256), dtype).values()
    norm = LlamaRMSNorm(256, eps=1e-5)
    norm.weight.data = weight
    ours, theirs = flagattn.rms_norm(x, weight, 1e-5), norm(x)
    # The sums of squares differ in their last bit, so that a value on the border may round the other way.
    assert (ours != theirs).float().mean() < (0.3 if dtype == torch.float32 else 0.01)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_thread_count(cpu_level: str, set_threads, dtype: torch.dtype) -> None:
    tensors = operands((300, 200), dtype, residual=True)
    runs = []
    for count in (1, 2, 5):
        set_threads(count)
        runs.append(run_with_gradients(flagattn.rms_norm, tensors))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_rows_do_not_know_their_batch(cpu_level: str) -> None:
    tensors = operands((90, 65), torch.bfloat16)
    together = flagattn.rms_norm(**tensors)
    alone = torch.cat([flagattn.rms_norm(row, tensors["weight"]) for row in tensors["x"].split(1)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_stay_in_their_row(cpu_level: str, dtype: torch.dtype) -> None:
    tensors = operands((8, 50), dtype)
    clean = run_with_gradients(flagattn.rms_norm, tensors)
    tensors["x"][3, 7] = torch.nan
    tensors["x"][5, 49] = torch.inf
    soiled = run_with_gradients(flagattn.rms_norm, tensors)
    others = [0, 1, 2, 4, 6, 7]
    for name in ("output 0", "dx"):
        assert soiled[name][3].isnan().all()
        assert torch.equal(soiled[name][others], clean[name][others])
    assert soiled["output 0"][5, 49].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_nan_of_the_weight_reaches_the_output(cpu_level: str, dtype: torch.dtype) -> None:
    """Also those whose bits are all ones, which rounding to a narrower dtype could carry over into a number."""
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int64).to(torch.int32)
    weight = torch.ones(40)
    weight[10:14] = bits.view(torch.float32)
    y = flagattn.rms_norm(torch.randn(4, 40).to(dtype), weight)
    assert y[:, 10:14].isnan().all() and not y[:, :10].isnan().any() and not y[:, 14:].isnan().any()


def test_empty(cpu_level: str) -> None:
    for shape in ((0, 8), (3, 0, 8), (3, 0)):
        results = run_with_gradients(flagattn.rms_norm, operands(shape, torch.float32, residual=True))
        assert results["output 0"].shape == shape and results["dx"].shape == shape
        assert torch.equal(results["dweight"], torch.zeros(shape[-1]))


def test_results_that_are_not_used() -> None:
    tensors = {name: t.requires_grad_() for name, t in operands((9, 20), torch.float32, residual=True).items()}
    y, summed = flagattn.rms_norm(**tensors)
    dx, dweight, dresidual = torch.autograd.grad(
        summed.sum(), list(tensors.values()), retain_graph=True, allow_unused=True
    )
    assert torch.equal(dx, torch.ones_like(dx)) and torch.equal(dresidual, dx) and dweight is None
    only_y = torch.autograd.grad(y.sum(), list(tensors.values()))
    expected = torch.autograd.grad(reference.rms_norm(**tensors)[0].sum(), list(tensors.values()))
    for ours, theirs in zip(only_y, expected):
        torch.testing.assert_close(ours, theirs)


def test_frozen_weight_and_frozen_input() -> None:
    tensors = operands((9, 20), torch.float32)
    both = run_with_gradients(flagattn.rms_norm, tensors)
    x, weight = tensors["x"], tensors["weight"]
    dx = run_with_gradients(lambda x: flagattn.rms_norm(x, weight), {"x": x})["dx"]
    dweight = run_with_gradients(lambda weight: flagattn.rms_norm(x, weight), {"weight": weight})["dweight"]
    assert torch.equal(dx, both["dx"]) and torch.equal(dweight, both["dweight"])


def test_double_backward_raises() -> None:
    x, weight = (t.requires_grad_() for t in operands((3, 8), torch.float32).values())
    (dx,) = torch.autograd.grad(flagattn.rms_norm(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


def test_autocast_widens_the_narrower_operand() -> None:
    x, weight, residual = operands((4, 16), torch.float32, residual=True).values()
    with torch.autocast("cpu", torch.bfloat16):
        y, summed = flagattn.rms_norm(x.bfloat16(), weight, residual=residual)
    assert y.dtype == summed.dtype == torch.float32
    assert torch.equal(summed, x.bfloat16().float() + residual)


def test_checkpointing() -> None:
    tensors = operands((5, 24), torch.float32, residual=True)
    plain = run_with_gradients(flagattn.rms_norm, tensors)
    again = run_with_gradients(
        lambda x, weight, residual: checkpoint(
            lambda *args: flagattn.rms_norm(*args[:2], residual=args[2]), x, weight, residual, use_reentrant=False
        ),
        tensors,
    )
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_opcheck() -> None:
    x, weight, residual = operands((2, 3, 40), torch.float32, residual=True).values()
    with_gradient = [t.clone().requires_grad_() for t in (x, residual, weight)]
    ops = torch.ops.flagattn
    torch.library.opcheck(ops.rms_norm.default, (with_gradient[0], with_gradient[2], 1e-5, 0.0, True))
    torch.library.opcheck(ops.add_rms_norm.default, (*with_gradient, 1e-5, 1.0, False))
    _, rstd = ops.rms_norm(x, weight, 1e-5, 0.0, True)
    for dsummed, needs_dweight in ((None, True), (residual, False)):
        torch.library.opcheck(ops.rms_norm_backward.default, (x, dsummed, x, weight, rstd, 0.0, needs_dweight))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def block(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        y, summed = flagattn.rms_norm(x * 2, weight, residual=residual)
        return flagattn.rms_norm(y, weight, rounding="gemma", offset=1.0) + 1, summed

    traced = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 6):
        tensors = operands((rows, 32), torch.float32, residual=True)
        ours, eager = run_with_gradients(traced, tensors), run_with_gradients(block, tensors)
        assert all(torch.equal(ours[name], eager[name]) for name in eager)


def test_bad_input() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8)
    for error, message, arguments, options in (
        (TypeError, "x is of type list", ([1.0], weight), {}),
        (TypeError, "weight is None", (x, None), {}),
        (TypeError, "x is float64", (x.double(), weight), {}),
        (TypeError, "weight is int64", (x, weight.long()), {}),
        (ValueError, "weight has shape (7,)", (x, weight[:7]), {}),
        (ValueError, "weight has shape (1, 8)", (x, weight[None]), {}),
        (ValueError, "weight has shape (8,)", (x[0, 0], weight), {}),
        (ValueError, "eps is -1", (x, weight, -1.0), {}),
        (ValueError, "rounding is 'hf'", (x, weight), {"rounding": "hf"}),
        (TypeError, "residual is of type int", (x, weight), {"residual": 3}),
        (TypeError, "residual is bfloat16", (x, weight), {"residual": x.bfloat16()}),
        (ValueError, "residual has shape (4, 7)", (x, weight), {"residual": x[:, :7]}),
        (ValueError, "weight is on meta", (x, weight.to("meta")), {}),
    ):
        with pytest.raises(error, match=re.escape(message)):
            flagattn.rms_norm(*arguments, **options)


def test_the_op_checks_for_itself() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8)
    op = torch.ops.flagattn.rms_norm
    for message, arguments in (
        ("x is float64", (x.double(), weight)),
        ("its last dimension must be contiguous", (x.t().contiguous().t(), weight)),
        ("weight has shape (4,)", (x, weight[:4])),
        ("weight of shape (8,) has strides (2,)", (x, torch.randn(16)[::2])),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            op(*arguments, 1e-5, 0.0, True)
    _, rstd = op(x, weight, 1e-5, 0.0, True)
    with pytest.raises(RuntimeError, match="rstd has shape"):
        torch.ops.flagattn.rms_norm_backward(x, None, x, weight, rstd[:3], 0.0, True)
    with pytest.raises(RuntimeError, match="dy is bfloat16"):
        torch.ops.flagattn.rms_norm_backward(x.bfloat16(), None, x, weight, rstd, 0.0, True)
