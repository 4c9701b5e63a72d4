"""apply_rotary: results and gradients against the float64 oracle, positions, in place, layouts, bad input, tracing."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn import reference
from flagattn.testing import LAYOUTS, check_against_oracle, laid_out, run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (batch, seqlen, heads, head_dim, rotary_dim): whole and partial rotation, halves that end inside a vector, one pair.
SHAPES = (
    (1, 1, 1, 2, 2),
    (2, 5, 3, 64, 64),
    (1, 9, 4, 128, 128),
    (2, 7, 2, 80, 32),
    (1, 6, 5, 50, 46),
    (3, 4, 1, 9, 6),
)


def angles(rows: int, half: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    frequencies = 10_000.0 ** (-torch.arange(half) / max(1, half))
    turns = torch.arange(rows)[:, None] * frequencies
    return turns.cos().to(dtype), turns.sin().to(dtype)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def check(x: Tensor, cos: Tensor, sin: Tensor, **options) -> None:
    def plain(x: Tensor) -> Tensor:
        tables = (cos.double(), sin.double()) if x.dtype == torch.float64 else (cos, sin)
        return reference.apply_rotary(x, *tables, **options)

    check_against_oracle(lambda x: flagattn.apply_rotary(x, cos, sin, **options), plain, {"x": x})


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streamed_results(cpu_level: str, dtype: torch.dtype, interleaved: bool) -> None:
    """Outputs of 16 MiB and more take another way to memory; their parts, where they are smaller, the usual one."""
    rows = 4120 // dtype.itemsize
    for head_dim, rotary_dim in ((128, 128), (96, 96), (128, 64)):  # the first alone consists of whole lines
        x = random(1, rows, 4096 // head_dim + 1, head_dim, dtype=dtype)
        cos, sin = angles(rows, rotary_dim // 2)
        y = flagattn.apply_rotary(x, cos, sin, interleaved=interleaved)
        for part in torch.arange(rows).split(400):
            expected = flagattn.apply_rotary(x[:, part], cos[part], sin[part], interleaved=interleaved)
            assert torch.equal(y[:, part], expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, ...], dtype: torch.dtype, interleaved: bool) -> None:
    batch, seqlen, heads, head_dim, rotary_dim = shape
    for table_dtype in DTYPES:
        cos, sin = angles(seqlen + 2, rotary_dim // 2, table_dtype)
        check(random(batch, seqlen, heads, head_dim, dtype=dtype), cos, sin, interleaved=interleaved)
        check(random(seqlen, heads, head_dim, dtype=dtype), cos, sin, interleaved=interleaved)


@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64], ids=str)
def test_positions(cpu_level: str, position_dtype: torch.dtype) -> None:
    cos, sin = angles(50, 12)
    generator = torch.Generator().manual_seed(0)
    dense, packed = random(3, 7, 2, 30), random(21, 2, 30)
    for shape, x in (((3, 7), dense), ((7,), dense), ((21,), packed)):
        positions = torch.randint(50, shape, generator=generator).to(position_dtype)
        check(x, cos, sin, positions=positions)
        check(x, cos, sin, positions=positions, interleaved=True)
    one_row = torch.arange(7, dtype=position_dtype)[None]
    assert torch.equal(
        flagattn.apply_rotary(dense, cos, sin, positions=one_row), flagattn.apply_rotary(dense, cos, sin)
    )
    backwards = torch.arange(14, dtype=position_dtype)[::2].flip(0).expand(3, 7)
    check(dense, cos, sin, positions=backwards)


def test_a_table_per_sequence(cpu_level: str) -> None:
    cos, sin = (table.view(3, 10, 8) for table in angles(30, 8))
    x = random(3, 10, 2, 20)
    together = flagattn.apply_rotary(x, cos, sin)
    alone = [flagattn.apply_rotary(x[b : b + 1], cos[b], sin[b]) for b in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(flagattn.apply_rotary(x, cos[:1], sin[:1]), flagattn.apply_rotary(x, cos[0], sin[0]))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(cpu_level: str, layout: str, interleaved: bool) -> None:
    cos, sin = angles(9, 13)
    for dtype in DTYPES:
        for shape in ((2, 9, 3, 33), (9, 3, 33)):
            values = random(*shape, dtype=dtype)
            check(laid_out(values, layout), cos, sin, interleaved=interleaved)
    wide = torch.randn(9, 40)
    strided_tables = wide[:, 1:27:2], wide[:, 2:28:2]
    assert torch.equal(
        flagattn.apply_rotary(values, *strided_tables),
        flagattn.apply_rotary(values, *(table.contiguous() for table in strided_tables)),
    )


def test_rotation_is_orthogonal_and_relative(cpu_level: str) -> None:
    cos, sin = angles(40, 16)
    q, k = random(1, 1, 1, 32), random(1, 1, 1, 32, dtype=torch.float32).flip(-1)

    def score(i: int, j: int) -> float:
        rotated = (flagattn.apply_rotary(x, cos, sin, positions=torch.tensor([p])) for x, p in ((q, i), (k, j)))
        return float((next(rotated) * next(rotated)).sum())

    assert score(5, 3) == pytest.approx(score(30, 28), abs=1e-4)
    x = random(2, 9, 3, 32)
    torch.testing.assert_close(flagattn.apply_rotary(x, cos, sin).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place(cpu_level: str, layout: str, interleaved: bool) -> None:
    cos, sin = angles(9, 13)
    for dtype in DTYPES:
        values = random(2, 9, 3, 33, dtype=dtype)
        expected = flagattn.apply_rotary(values, cos, sin, interleaved=interleaved)
        x = laid_out(values, layout)
        frame = x._base if x._base is not None else x
        untouched = frame.isnan().sum()
        assert flagattn.apply_rotary(x, cos, sin, interleaved=interleaved, inplace=True) is x
        assert torch.equal(x, expected)
        assert frame.isnan().sum() == untouched


def test_in_place_and_autograd() -> None:
    cos, sin = angles(4, 4)
    x = random(1, 4, 2, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="inplace is True, but x requires gradient"):
        flagattn.apply_rotary(x, cos, sin, inplace=True)
    with torch.no_grad():
        flagattn.apply_rotary(x, cos, sin, inplace=True)
    saved = random(1, 4, 2, 8)
    weight = torch.ones(8, requires_grad=True)
    product = (saved * weight).sum()
    flagattn.apply_rotary(saved, cos, sin, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        y = random(1, 4, 2, 8)
        assert torch.equal(flagattn.apply_rotary(y.clone(), cos, sin, inplace=True), flagattn.apply_rotary(y, cos, sin))


def test_double_backward_is_exact() -> None:
    cos, sin = angles(4, 4)
    x = random(1, 4, 2, 8).double().float().requires_grad_()

    def second_order(rotate) -> Tensor:
        (dx,) = torch.autograd.grad(rotate(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    ours = second_order(functools.partial(flagattn.apply_rotary, cos=cos, sin=sin))
    torch.testing.assert_close(ours, second_order(functools.partial(reference.apply_rotary, cos=cos, sin=sin)))


@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("wrong", [-1, 6, 2**31 - 1])
def test_positions_out_of_range(wrong: int, position_dtype: torch.dtype) -> None:
    cos, sin = angles(6, 4)
    x = random(2, 3, 1, 8)
    positions = torch.tensor([[0, 1, 2], [5, wrong, 0]], dtype=position_dtype)
    before = x.clone()
    for inplace in (False, True):
        with pytest.raises(RuntimeError, match=f"positions holds {wrong} at row 1 of sequence 1; .* rows 0 to 5"):
            flagattn.apply_rotary(x, cos, sin, positions=positions, inplace=inplace)
    assert torch.equal(x, before)


def test_nan_stays_in_its_head(cpu_level: str) -> None:
    cos, sin = angles(5, 8)
    x = random(2, 5, 3, 16)
    clean = flagattn.apply_rotary(x, cos, sin)
    x[1, 2, 0, 3] = torch.nan
    soiled = flagattn.apply_rotary(x, cos, sin)
    there = torch.zeros_like(x, dtype=torch.bool)
    there[1, 2, 0, [3, 11]] = True
    assert soiled[there].isnan().all() and torch.equal(soiled[~there], clean[~there])


def test_empty(cpu_level: str) -> None:
    cos, sin = angles(5, 4)
    for shape in ((0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8), (0, 2, 8)):
        results = run_with_gradients(lambda x: flagattn.apply_rotary(x, cos, sin), {"x": torch.empty(shape)})
        assert all(result.shape == shape for result in results.values())
    x = random(2, 3, 2, 8)
    assert torch.equal(flagattn.apply_rotary(x, cos[:, :0], sin[:, :0]), x)


def test_opcheck() -> None:
    cos, sin = angles(5, 4)
    positions = torch.tensor([[0, 4, 2]])
    x = random(1, 3, 2, 10)
    ops = torch.ops.flagattn
    torch.library.opcheck(ops.apply_rotary.default, (x.clone().requires_grad_(), cos, sin, positions, False, False))
    torch.library.opcheck(ops.apply_rotary.default, (x[0], cos, sin, None, True, True))
    torch.library.opcheck(ops.apply_rotary_.default, (x.clone(), cos, sin, positions, True, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    cos, sin = angles(16, 4)

    def block(x: Tensor) -> Tensor:
        turned = flagattn.apply_rotary(x * 2, cos, sin, positions=torch.arange(x.shape[1])[None])
        return flagattn.apply_rotary(turned, cos, sin, interleaved=True) + 1

    def block_in_place(x: Tensor) -> Tensor:
        y = x * 2
        flagattn.apply_rotary(y, cos, sin, inplace=True)
        return y + 1

    traced = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    traced_in_place = torch.compile(block_in_place, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (5, 7):
        x = random(2, rows, 3, 8)
        ours, eager = run_with_gradients(traced, {"x": x}), run_with_gradients(block, {"x": x})
        assert all(torch.equal(ours[name], eager[name]) for name in eager)
        with torch.no_grad():
            assert torch.equal(traced_in_place(x), block_in_place(x))


def test_bad_input() -> None:
    x, (cos, sin) = random(2, 3, 2, 8), angles(5, 4)
    for error, message, arguments, options in (
        (TypeError, "x is of type str", ("x", cos, sin), {}),
        (TypeError, "cos is None", (x, None, sin), {}),
        (TypeError, "x is float64", (x.double(), cos, sin), {}),
        (TypeError, "sin is bfloat16", (x, cos, sin.bfloat16()), {}),
        (ValueError, "sin has shape (5, 3)", (x, cos, sin[:, :3]), {}),
        (ValueError, "x has shape (3, 8)", (x[0, :, 0], cos, sin), {}),
        (ValueError, "cos has shape (4,)", (x, cos[0], sin[0]), {}),
        (ValueError, "cos has shape (3, 5, 4)", (x, cos.expand(3, 5, 4), sin.expand(3, 5, 4)), {}),
        (ValueError, "cos has shape (2, 5, 4)", (x[0], cos.expand(2, 5, 4), sin.expand(2, 5, 4)), {}),
        (ValueError, "x has head_dim 7", (x[..., :7], cos, sin), {}),
        (ValueError, "x has 3 rows, but cos has 2", (x, cos[:2], sin[:2]), {}),
        (ValueError, "cos is on meta", (x, cos.to("meta"), sin.to("meta")), {}),
        (ValueError, "cos or sin requires gradient", (x, cos.clone().requires_grad_(), sin), {}),
        (TypeError, "positions is of type list", (x, cos, sin), {"positions": [0, 1, 2]}),
        (TypeError, "positions is torch.float32", (x, cos, sin), {"positions": torch.zeros(2, 3)}),
        (ValueError, "positions has shape (2,)", (x, cos, sin), {"positions": torch.zeros(2, dtype=torch.int64)}),
        (ValueError, "positions has shape (3, 3)", (x, cos, sin), {"positions": torch.zeros(3, 3, dtype=torch.int64)}),
        (
            ValueError,
            "positions has shape (1, 3)",
            (x[0], cos, sin),
            {"positions": torch.zeros(1, 3, dtype=torch.int64)},
        ),
        (ValueError, "its last dimension must be contiguous", (random(2, 3, 8, 2).mT, cos, sin), {"inplace": True}),
    ):
        with pytest.raises(error, match=re.escape(message)):
            flagattn.apply_rotary(*arguments, **options)
    with pytest.raises(RuntimeError, match="is expanded over dimension 0"):
        flagattn.apply_rotary(x[:1].expand(2, 3, 2, 8), cos, sin, inplace=True)
    op = torch.ops.flagattn.apply_rotary
    for message, arguments in (
        ("x has 3 rows, but cos and sin have 2 positions", (x, cos[:2], sin[:2], None)),
        ("cos rotates 8 channels, but x has 7", (x[..., :7], cos, sin, None)),
        ("positions has shape (3, 2)", (x, cos, sin, torch.zeros(3, 2, dtype=torch.int64))),
        ("positions is float32", (x, cos, sin, torch.zeros(2, 3))),
        ("positions is not contiguous", (x, cos, sin, torch.zeros(3, 2, dtype=torch.int64).t())),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            op(*arguments, False, False)
