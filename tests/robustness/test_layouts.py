"""Any operand in any memory layout gives the bits of the contiguous one: strides, offsets and overlap are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flagattn
from tests.robustness.reserved import reserved

fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def random_layout(data: st.DataObject, values: Tensor) -> Tensor:
    """`values` with the outer dimensions in any order of memory, gaps after each of them and before the first element.

    What lies in the gaps is NaN. A dimension of equal slices may have stride 0.
    """
    if values.dim() == 0:
        return values
    outer = list(range(values.dim() - 1))
    order = [*data.draw(st.permutations(outer)), values.dim() - 1]
    gaps = [data.draw(st.integers(0, 3)) for _ in order]
    offset = data.draw(st.integers(0, 9))
    expanded = {dim for dim in outer if data.draw(st.integers(0, 5)) == 0}
    sizes = [1 if dim in expanded else values.shape[dim] for dim in range(values.dim())]

    strides = [0] * values.dim()
    step = 1
    for dim, gap in zip(reversed(order), gaps, strict=True):
        strides[dim] = 0 if dim in expanded else step
        step *= sizes[dim] + gap
    storage = values.new_full((offset + step,), torch.nan)
    index = tuple(slice(0, size) for size in sizes)
    view = storage.as_strided(sizes, [stride or 1 for stride in strides], offset)
    view.copy_(values[index])
    return storage.as_strided(values.shape, strides, offset)


Op = Callable[..., Tensor | tuple[Tensor, ...]]


def results(op: Op, operands: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    leaves = [operand.detach().requires_grad_() for operand in operands]
    out = op(*leaves)
    outputs = (out,) if isinstance(out, Tensor) else out
    gradients = torch.autograd.grad(outputs, leaves, upstream[: len(outputs)])
    return [*(tensor.detach() for tensor in outputs), *gradients]


def check(data: st.DataObject, op: Op, operands: Sequence[Tensor], upstream: Sequence[Tensor]) -> None:
    strided = [random_layout(data, operand) for operand in operands]
    strided_upstream = [random_layout(data, gradient) for gradient in upstream]
    expected = results(
        op, [t.clone(memory_format=torch.contiguous_format) for t in strided], [t.clone() for t in strided_upstream]
    )
    for index, (ours, wanted) in enumerate(zip(results(op, strided, strided_upstream), expected, strict=True)):
        assert torch.equal(ours, wanted), f"result {index} depends on the layout"


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
lengths = st.one_of(st.integers(1, 12), st.integers(30, 140))
heads = st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)])
head_dims = st.sampled_from([8, 24, 64])


@fuzz
@given(st.data(), dtypes, lengths, lengths, heads, head_dims, st.booleans(), st.booleans())
def test_attention(data, dtype, seqlen_q, seqlen_k, heads, head_dim, causal: bool, is_piecewise: bool) -> None:
    q = random(2, seqlen_q, heads[0], head_dim, dtype=dtype)
    k = random(2, seqlen_k, heads[1], head_dim, dtype=dtype)
    v = random(2, seqlen_k, heads[1], head_dim + 8, dtype=dtype)
    dout = random(2, seqlen_q, heads[0], head_dim + 8, dtype=dtype)
    if is_piecewise:
        check(data, lambda *t: flagattn.piecewise_attn_func(*t, 7, causal=causal), (q, k, -q, -k, v), [dout])
    else:
        check(data, lambda *t: flagattn.flash_attn_func(*t, causal=causal), (q, k, v), [dout])


@fuzz
@given(st.data(), dtypes, st.lists(lengths, min_size=1, max_size=3), heads, head_dims)
def test_packed_attention(data, dtype, lengths, heads, head_dim) -> None:
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    total = sum(lengths)
    q = random(total, heads[0], head_dim, dtype=dtype)
    k, v = (random(total, heads[1], head_dim, dtype=dtype) for _ in range(2))

    def op(*operands: Tensor) -> Tensor:
        return flagattn.flash_attn_varlen_func(
            *operands, cu_seqlens, cu_seqlens, max(lengths), max(lengths), causal=True
        )

    check(data, op, (q, k, v), [random(total, heads[0], head_dim, dtype=dtype)])


@fuzz
@given(st.data(), dtypes, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 7, 64, 333]))
def test_rms_norm(data, dtype, batch, rows, size) -> None:
    shape = (batch, rows, size)
    x, residual, *upstream = (random(*shape, dtype=dtype) + index for index in range(4))
    weight = random(size, dtype=dtype)
    check(data, lambda x, r: flagattn.rms_norm(x, weight, residual=r), (x, residual), upstream)
    check(data, lambda x: flagattn.rms_norm(x, weight), (x,), upstream[:1])


@fuzz
@given(st.data(), dtypes, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 7, 64, 333]))
def test_swiglu(data, dtype, batch, rows, size) -> None:
    gate, up, dout = (random(batch, rows, size, dtype=dtype) + index for index in range(3))
    check(data, flagattn.swiglu, (gate, up), [dout])


@fuzz
@given(st.data(), dtypes, st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 7, 64, 333]))
def test_linear(data, dtype, rows, outputs, size) -> None:
    x, weight = random(2, rows, size, dtype=dtype), random(outputs, size, dtype=dtype)
    check(data, flagattn.batch_invariant_linear, (x, weight), [random(2, rows, outputs, dtype=dtype)])


@fuzz
@given(st.data(), dtypes, st.integers(1, 9), st.integers(1, 4), head_dims, st.booleans())
def test_rotary(data, dtype, seqlen, heads, head_dim, interleaved: bool) -> None:
    x, dout = (random(2, seqlen, heads, head_dim, dtype=dtype) + index for index in range(2))
    angles = torch.outer(torch.arange(seqlen), 0.1 + torch.arange(head_dim // 2) / head_dim)
    cos, sin = angles.cos(), angles.sin()
    check(data, lambda x: flagattn.apply_rotary(x, cos, sin, interleaved=interleaved), (x,), [dout])


def test_gaps_are_poisoned() -> None:
    """The fuzz's own layouts hold NaN where no element lies, or else it would prove little."""
    seen = []

    @settings(max_examples=20, derandomize=True, database=None)
    @given(st.data())
    def draw(data) -> None:
        view = random_layout(data, torch.ones(3, 4, 5))
        storage = torch.empty(0).set_(view.untyped_storage())
        assert (view == 1).all()
        seen.append(bool(storage.isnan().any()))

    draw()
    assert any(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offsets_beyond_32_bits(dtype: torch.dtype) -> None:
    """Rows so far apart that an element's number passes 2^32; only the touched pages take memory."""
    rows, heads, head_dim = 3, 2, 16
    row_stride = (1 << 31) // (rows - 1) * 2 + 64
    storage = reserved(row_stride * (rows - 1) + heads * head_dim, dtype)
    far = storage.as_strided((1, rows, heads, head_dim), (0, row_stride, head_dim, 1))
    near = random(1, rows, heads, head_dim, dtype=dtype)
    far.copy_(near)
    upstream = [random(1, rows, heads, head_dim, dtype=dtype)]
    attend: Op = lambda *t: flagattn.flash_attn_func(*t, causal=True)  # noqa: E731
    for ours, wanted in zip(results(attend, [far] * 3, upstream), results(attend, [near] * 3, upstream), strict=True):
        assert torch.equal(ours, wanted)
    flat, near_flat = far[0, :, 0], near[0, :, 0].contiguous()
    weight = torch.ones(head_dim, dtype=dtype)
    assert torch.equal(flagattn.rms_norm(flat, weight), flagattn.rms_norm(near_flat, weight))
    assert torch.equal(flagattn.swiglu(flat, flat), flagattn.swiglu(near_flat, near_flat))
