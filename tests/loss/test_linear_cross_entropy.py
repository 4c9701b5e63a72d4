"""linear_cross_entropy: loss and both gradients against the float64 oracle, blocks, options, memory, tracing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import flagattn
from flagattn import reference
from flagattn.testing import check_against_oracle, run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (rows, features, classes): one tile and several, in every direction, of both ways to cut the logits.
SHAPES = ((1, 1, 1), (3, 5, 7), (17, 8, 300), (40, 33, 2500), (700, 16, 1100), (390, 520, 130), (1100, 12, 5000))


def operands(shape: tuple[int, int, int], dtype: torch.dtype, *, scale: float = 3.0) -> dict[str, Tensor]:
    rows, features, classes = shape
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, features, generator=generator)
    weight = torch.randn(classes, features, generator=generator) * (scale * features**-0.5)
    return {"hidden": hidden.to(dtype), "weight": weight.to(dtype)}


def targets_of(rows: int, classes: int) -> Tensor:
    targets = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(rows))
    if rows > 2:
        targets[1::4] = -100
    return targets


def weights_of(rows: int) -> Tensor:
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(1)) + 0.25
    if rows > 3:
        weights[3::5] = 0.0
    return weights


def check(
    tensors: dict[str, Tensor], targets: Tensor, by: Callable[..., Any] = reference.linear_cross_entropy, **options: Any
) -> None:
    """The loss alone, whose gradients the forward takes, and the loss with lse, whose gradients the backward makes."""

    def plain(hidden: Tensor, weight: Tensor) -> Any:
        return by(hidden, weight, targets, **options)[0]

    def plain_both(hidden: Tensor, weight: Tensor) -> Any:
        return by(hidden, weight, targets, **options)

    check_against_oracle(lambda **x: flagattn.linear_cross_entropy(targets=targets, **x, **options), plain, tensors)
    check_against_oracle(
        lambda **x: flagattn.linear_cross_entropy(targets=targets, return_lse=True, **x, **options), plain_both, tensors
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(operands(shape, dtype), targets_of(shape[0], shape[2]))


def check_options(dtype: torch.dtype, reduction: str, by: Callable[..., Any] = reference.linear_cross_entropy) -> None:
    tensors, targets = operands((21, 40, 1200), dtype), targets_of(21, 1200)
    for softcap, z_loss, smoothing, weights in itertools.product((0.0, 5.0), (0.0, 1e-2), (0.0, 0.1), (False, True)):
        options = {"softcap": softcap, "z_loss": z_loss, "label_smoothing": smoothing}
        if weights:
            options["token_weights"] = weights_of(21)
        check(tensors, targets, by, reduction=reduction, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(cpu_level: str, dtype: torch.dtype, reduction: str) -> None:
    check_options(dtype, reduction)


@pytest.mark.parametrize("hidden_dtype,weight_dtype", tuple(itertools.permutations(DTYPES, 2)), ids=str)
def test_mixed_dtypes(hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    tensors, targets = operands((40, 24, 700), torch.float32), targets_of(40, 700)
    tensors = {"hidden": tensors["hidden"].to(hidden_dtype), "weight": tensors["weight"].to(weight_dtype)}
    check(tensors, targets)
    results = run_with_gradients(lambda **x: flagattn.linear_cross_entropy(targets=targets, **x), tensors)
    assert results["dhidden"].dtype == hidden_dtype and results["dweight"].dtype == weight_dtype


def test_one_operand_alone() -> None:
    for dtype, reduction in itertools.product((torch.float32, torch.bfloat16), ("mean", "none")):
        tensors, targets = operands((30, 24, 700), dtype), targets_of(30, 700)

        def loss(reduction: str = reduction, targets: Tensor = targets, **x: Tensor) -> Any:
            return flagattn.linear_cross_entropy(targets=targets, reduction=reduction, **x)

        both = run_with_gradients(loss, tensors)
        for name, other in (("hidden", "weight"), ("weight", "hidden")):
            alone = run_with_gradients(lambda **x: loss(**x, **{other: tensors[other]}), {name: tensors[name]})  # noqa: B023
            assert torch.equal(alone[f"d{name}"], both[f"d{name}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_are_left_out_are_not_looked_at(cpu_level: str, dtype: torch.dtype) -> None:
    tensors, targets, weights = operands((30, 24, 700), dtype), targets_of(30, 700), weights_of(30)
    left_out = (targets == -100) | (weights == 0)

    def loss(**x: Tensor) -> Any:
        return flagattn.linear_cross_entropy(targets=targets, token_weights=weights, **x)

    clean = run_with_gradients(loss, tensors)
    tensors["hidden"][left_out] = torch.nan
    soiled = run_with_gradients(loss, tensors)
    assert all(torch.equal(clean[name], soiled[name]) for name in clean)
    assert not soiled["dhidden"][left_out].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_learn(dtype: torch.dtype) -> None:
    tensors = operands((6, 24, 70), dtype)
    for targets, weights in ((torch.full((6,), -100), None), (torch.arange(6), torch.zeros(6))):
        for reduction in ("mean", "sum", "none"):
            results = run_with_gradients(
                lambda **x: flagattn.linear_cross_entropy(
                    targets=targets,  # noqa: B023
                    token_weights=weights,  # noqa: B023
                    reduction=reduction,  # noqa: B023
                    **x,
                ),
                tensors,
            )
            assert not any(result.any() for result in results.values())


def test_empty() -> None:
    for rows, features, classes in ((0, 8, 5), (3, 0, 5)):
        tensors = {"hidden": torch.randn(rows, features), "weight": torch.randn(classes, features)}
        targets = torch.zeros(rows, dtype=torch.int64)
        for dtype in (torch.float32, torch.bfloat16):
            results = run_with_gradients(
                lambda **x: flagattn.linear_cross_entropy(targets=targets, **x),  # noqa: B023
                {name: tensor.to(dtype) for name, tensor in tensors.items()},
            )
            assert not results["dweight"].any() and results["dhidden"].shape == (rows, features)
            assert results["output 0"].item() == pytest.approx(torch.tensor(5.0 if rows else 1.0).log().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, 3, 30, generator=generator).to(dtype)[..., 2:26].transpose(0, 2)
    weight = torch.randn(90, 40, generator=generator).to(dtype)
    targets = torch.randint(90, (3, 4, 5), generator=generator)
    check({"hidden": hidden, "weight": weight[:, 5:29]}, targets.transpose(0, 1).contiguous().transpose(0, 1))
    check({"hidden": hidden, "weight": weight[:24].contiguous().t()[:24]}, targets % 24)
    check({"hidden": hidden[0, 0, 0], "weight": weight[:1, :24].expand(6, 24)}, torch.tensor(3, dtype=torch.int32))


def test_same_bits_for_any_thread_count(cpu_level: str, set_threads) -> None:
    """One tile, and blocks and tiles of more than one; the weight's gradient too."""
    for shape, return_lse in itertools.product(((5, 40, 90), (700, 600, 1500)), (False, True)):
        tensors, targets = operands(shape, torch.float32), targets_of(shape[0], shape[2])
        runs = []
        for count in (1, 2, 5):
            set_threads(count)
            runs.append(
                run_with_gradients(
                    lambda **x: flagattn.linear_cross_entropy(targets=targets, return_lse=return_lse, **x),  # noqa: B023
                    tensors,
                )
            )
        assert all(torch.equal(run[name], runs[0][name]) for run in runs[1:] for name in run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_has_the_same_bits_with_and_without_gradients(cpu_level: str, dtype: torch.dtype) -> None:
    """The two ways to cut the logits, which differ from 4096 classes on."""
    tensors, targets = operands((530, 24, 9000), dtype), targets_of(530, 9000)

    def loss(**x: Tensor) -> Any:
        return flagattn.linear_cross_entropy(targets=targets, reduction="sum", return_lse=True, **x)

    with_gradients = loss(**{name: tensor.detach().requires_grad_() for name, tensor in tensors.items()})
    assert all(torch.equal(ours, other) for ours, other in zip(loss(**tensors), with_gradients, strict=True))


def test_second_backward_and_accumulation() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensors, targets = operands((30, 24, 700), dtype), targets_of(30, 700)
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        loss = flagattn.linear_cross_entropy(targets=targets, **leaves)
        first = torch.autograd.grad(loss, list(leaves.values()), torch.tensor(2.0), retain_graph=True)
        second = torch.autograd.grad(loss, list(leaves.values()), torch.tensor(2.0))
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b)


def test_the_weight_gradient_is_handed_over() -> None:
    """No copy of it is made: what the forward took is what the leaf gets."""
    tensors, targets = operands((30, 24, 700), torch.float32), targets_of(30, 700)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    loss = flagattn.linear_cross_entropy(targets=targets, **leaves)
    taken = loss.grad_fn.gradients[1].data_ptr()
    loss.backward()
    assert leaves["weight"].grad.data_ptr() == taken


@pytest.mark.parametrize("takes", [("hidden", "weight"), ("hidden",), ("weight",)], ids=str)
@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0])
def test_gradients_that_were_taken_on_the_way_are_scaled(upstream: float, takes: tuple[str, ...]) -> None:
    tensors, targets = operands((30, 24, 700), torch.float32), targets_of(30, 700)
    leaves = [tensors[name].requires_grad_() for name in takes]
    plain = torch.autograd.grad(flagattn.linear_cross_entropy(targets=targets, **tensors), leaves)
    gradients = torch.autograd.grad(
        flagattn.linear_cross_entropy(targets=targets, **tensors), leaves, torch.tensor(upstream)
    )
    for ours, unscaled in zip(gradients, plain, strict=True):
        assert torch.equal(ours, unscaled * upstream)


def test_nothing_waits_for_a_device() -> None:
    """Meta tensors have no values: asking for one raises."""
    leaves = [torch.randn(size, 24, device="meta", requires_grad=True) for size in (30, 700)]
    loss = flagattn.linear_cross_entropy(*leaves, torch.zeros(30, dtype=torch.int64, device="meta"))
    gradients = torch.autograd.grad(loss * 2, leaves)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]


def test_checkpointing() -> None:
    for dtype, reentrant in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        tensors, targets = operands((30, 24, 700), dtype), targets_of(30, 700)

        def head(hidden: Tensor, weight: Tensor, targets: Tensor = targets) -> Any:
            return flagattn.linear_cross_entropy(hidden.tanh(), weight, targets)

        plain = run_with_gradients(head, tensors)
        recomputed = (
            run_with_gradients(
                lambda hidden, weight: checkpoint(head, hidden, weight, use_reentrant=reentrant),  # noqa: B023
                tensors,
            )
            if not reentrant
            else _by_backward(head, tensors)
        )
        assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def _by_backward(head: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reentrant checkpointing knows backward() only; upstream as run_with_gradients draws it."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    loss = checkpoint(head, *leaves.values(), use_reentrant=True)
    upstream = torch.randn((), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(loss.dtype)
    loss.backward(upstream)
    return {"output 0": loss.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def test_autocast_changes_nothing() -> None:
    tensors, targets = operands((9, 16, 40), torch.float32), targets_of(9, 40)
    plain = run_with_gradients(lambda **x: flagattn.linear_cross_entropy(targets=targets, **x), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run_with_gradients(lambda **x: flagattn.linear_cross_entropy(targets=targets, **x), tensors)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_double_backward_raises() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight = (x.requires_grad_() for x in operands((9, 16, 40), dtype).values())
        loss = flagattn.linear_cross_entropy(hidden, weight, targets_of(9, 40))
        (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            gradient.sum().backward()


def test_functional_transforms() -> None:
    x, weight = operands((9, 16, 40), torch.float32).values()
    targets = targets_of(9, 40)

    def loss(x: Tensor) -> Any:
        return flagattn.linear_cross_entropy(x, weight, targets)

    gradient, value = torch.func.grad_and_value(loss)(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
    torch.testing.assert_close(value, loss(x))
    with pytest.raises(NotImplementedError, match="no forward-mode"):
        torch.func.jvp(loss, (x,), (x,))


def test_opcheck() -> None:
    hidden, weight = operands((6, 16, 40), torch.float32).values()
    targets, ops = targets_of(6, 40), torch.ops.flagattn
    for reduction, takes in ((1, True), (2, False), (0, False)):
        options = (-100, reduction, 2.0, 0.1, 0.1)
        leaves = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
        torch.library.opcheck(
            ops.linear_cross_entropy.default, (*leaves, targets, weights_of(6), *options, takes, takes)
        )
    lse_parts = ops.linear_cross_entropy(hidden, weight, targets, None, *options, False, False)[2]
    torch.library.opcheck(
        ops.linear_cross_entropy_backward.default,
        (torch.randn(6), torch.randn(6), hidden, weight, targets, None, lse_parts, *options, True, False),
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile(dtype: torch.dtype, dynamic: bool) -> None:
    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Any:
        return flagattn.linear_cross_entropy(hidden * 2, weight, targets, z_loss=1e-3) * 3

    traced = torch.compile(head, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (5, 8):
        tensors, targets = operands((rows, 16, 40), dtype), targets_of(rows, 40)
        ours = run_with_gradients(lambda **x: traced(targets=targets, **x), tensors)  # noqa: B023
        eager = run_with_gradients(lambda **x: head(targets=targets, **x), tensors)  # noqa: B023
        assert all(torch.equal(ours[name], eager[name]) for name in eager)


def test_agrees_with_torch() -> None:
    tensors, targets = operands((40, 33, 2500), torch.float32), targets_of(40, 2500)
    ours = run_with_gradients(lambda **x: flagattn.linear_cross_entropy(targets=targets, **x), tensors)
    torchs = run_with_gradients(lambda hidden, weight: F.cross_entropy(F.linear(hidden, weight), targets), tensors)
    for name in torchs:
        torch.testing.assert_close(ours[name], torchs[name])


def test_bad_input() -> None:
    h, w, t = torch.randn(4, 8), torch.randn(5, 8), torch.tensor([1, 2, 3, 4])
    for error, message, arguments in (
        (TypeError, "hidden is None", (None, w, t)),
        (TypeError, "weight is float64", (h, w.double(), t)),
        (ValueError, "weight is on meta", (h, w.to("meta"), t)),
        (ValueError, "hidden has shape (4, 8) and weight (5, 7)", (h, w[:, :7], t)),
        (ValueError, "hidden has shape (4, 8) and weight (8,)", (h, w[0], t)),
        (ValueError, "targets has shape (3,), but hidden has (4, 8)", (h, w, t[:3])),
        (RuntimeError, "targets holds 5 at position 3", (h, w, t + 1)),
    ):
        with pytest.raises(error, match=re.escape(message)):
            flagattn.linear_cross_entropy(*arguments)
    ops = torch.ops.flagattn
    with pytest.raises(RuntimeError, match="only where it is float32"):
        ops.linear_cross_entropy(h, w.bfloat16(), t, None, -100, 1, 0.0, 0.0, 0.0, True, True)
    with pytest.raises(RuntimeError, match="only of a reduced loss"):
        ops.linear_cross_entropy(h, w, t, None, -100, 0, 0.0, 0.0, 0.0, True, False)
