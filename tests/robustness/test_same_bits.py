"""Row-wise ops and losses give a row the same bits in any batch and order, on any number of threads, both ways."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flagattn
from flagattn.testing import available_cpu_levels, set_cpu_level

THREADS = (1, 2, 3, 8)
same_bits = settings(max_examples=30, deadline=None, derandomize=True)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
levels = st.sampled_from(available_cpu_levels())
sizes = st.sampled_from([1, 2, 7, 8, 15, 33, 64, 257, 1030])
row_counts = st.sampled_from([1, 2, 5, 40, 333])

# Rows of the operands, and of an upstream gradient per result, to rows of the results and of the operands' gradients.
RowWise = Callable[..., tuple[Tensor, ...]]


def both_ways(op: Callable[..., Tensor | tuple[Tensor, ...]], count: int) -> RowWise:
    """op of the first `count` tensors, and its gradients for the others as upstream ones."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[:count]]
        result = op(*leaves)
        outputs = (result,) if isinstance(result, Tensor) else result
        gradients = torch.autograd.grad(outputs, leaves, tensors[count:])
        return *(output.detach() for output in outputs), *gradients

    return call


def check(data: st.DataObject, level: str, op: RowWise, rows: tuple[Tensor, ...]) -> None:
    count = rows[0].shape[0]
    chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12), label="rows")
    before = torch.get_num_threads()
    try:
        with set_cpu_level(level):
            torch.set_num_threads(1)
            whole = op(*rows)
            parts = [(chosen, whole), ([chosen[0]], whole), (list(range(count)), whole)]
            for threads in THREADS:
                torch.set_num_threads(threads)
                for part, expected in parts:
                    for ours, theirs in zip(op(*(row[part] for row in rows)), expected, strict=True):
                        assert torch.equal(ours, theirs[part])
    finally:
        torch.set_num_threads(before)


def random(count: int, *shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@same_bits
@given(st.data(), levels, dtypes, row_counts, sizes, st.sampled_from(["llama", "gemma"]))
def test_rms_norm(data, level, dtype, count, size, rounding) -> None:
    weight = random(size, dtype=dtype, seed=9)
    tensors = tuple(random(count, size, dtype=dtype, seed=seed) for seed in range(4))
    alone = both_ways(lambda x: flagattn.rms_norm(x, weight, rounding=rounding), 1)
    check(data, level, alone, tensors[:2])
    check(data, level, both_ways(lambda x, r: flagattn.rms_norm(x, weight, residual=r, rounding=rounding), 2), tensors)


@same_bits
@given(st.data(), levels, dtypes, row_counts, sizes)
def test_swiglu(data, level, dtype, count, size) -> None:
    tensors = tuple(random(count, size, dtype=dtype, seed=seed) for seed in range(3))
    check(data, level, both_ways(flagattn.swiglu, 2), tensors)


@same_bits
@given(st.data(), levels, dtypes, row_counts, st.sampled_from([2, 6, 16, 40, 128]), st.booleans())
def test_rotary(data, level, dtype, count, head_dim, interleaved) -> None:
    """Rows carry their positions; heads, positions' order and the table's length make no difference either."""
    angles = torch.outer(torch.arange(64), 0.1 + torch.arange(head_dim // 2) / head_dim)
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(50, (count,), generator=torch.Generator().manual_seed(count))

    def op(x: Tensor, dy: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        length = int(places.max()) + 1
        tables = {"cos": cos[:length], "sin": sin[:length], "positions": places}
        rotate = functools.partial(flagattn.apply_rotary, **tables, interleaved=interleaved)
        return both_ways(rotate, 1)(x, dy)

    tensors = tuple(random(count, 3, head_dim, dtype=dtype, seed=seed) for seed in range(2))
    check(data, level, op, (*tensors, positions))


@same_bits
@given(st.data(), levels, dtypes, row_counts, sizes, st.sampled_from([0.0, 5.0]))
def test_cross_entropy(data, level, dtype, count, size, softcap) -> None:
    targets = torch.randint(size, (count,), generator=torch.Generator().manual_seed(size))

    def op(logits: Tensor, dloss: Tensor, dlse: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        options = {"reduction": "none", "softcap": softcap, "return_lse": True}
        loss = functools.partial(flagattn.cross_entropy, targets=targets, **options)
        return both_ways(loss, 1)(logits, dloss, dlse)

    upstream = (random(count, dtype=torch.float32, seed=seed) for seed in (1, 2))
    check(data, level, op, (random(count, size, dtype=dtype, seed=0) * 3, *upstream, targets))


@settings(same_bits, max_examples=20)
@given(
    st.data(),
    levels,
    dtypes,
    st.sampled_from([1, 2, 17, 40, 333, 700]),
    st.sampled_from([1, 24, 257, 530]),
    st.sampled_from([7, 255, 600, 1030, 9000]),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from(["none", "sum"]),
)
def test_linear_cross_entropy(data, level, dtype, count, features, classes, softcap, reduction) -> None:
    """A row's loss, lse and hidden gradient, taken in the forward ("sum", fp32) or from logits made again."""
    features = min(features, 24) if classes == 9000 else features  # tiles of several segments, in seconds
    weight = random(classes, features, dtype=dtype, seed=9) / features**0.5
    targets = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(classes))
    targets[3::7] = -100

    def op(hidden: Tensor, dloss: Tensor, dlse: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        options = {"reduction": reduction, "softcap": softcap, "return_lse": True}
        loss = functools.partial(flagattn.linear_cross_entropy, weight=weight, targets=targets, **options)
        if reduction == "none":
            return both_ways(loss, 1)(hidden, dloss, dlse)
        leaf = hidden.detach().requires_grad_()
        total, lse = loss(leaf)
        return lse.detach(), torch.autograd.grad(total, leaf)[0]

    upstream = (random(count, dtype=torch.float32, seed=seed) for seed in (1, 2))
    check(data, level, op, (random(count, features, dtype=dtype, seed=0) * 3, *upstream, targets))
