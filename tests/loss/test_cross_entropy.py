"""cross_entropy: losses, log-sum-exps and gradients against the float64 oracle, options, layouts, extremes, tracing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flagattn
from flagattn import reference
from flagattn.testing import check_against_oracle, run_with_gradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 2), (2, 5, 7), (5, 33), (7, 64), (4, 1000), (3, 1024), (2, 1025), (9, 4099), (2, 70_001))
OPTIONS: tuple[dict[str, Any], ...] = tuple(
    {"reduction": reduction, "softcap": softcap, "z_loss": z_loss, "label_smoothing": smoothing}
    for reduction, softcap, z_loss, smoothing in itertools.product(
        ("mean", "sum", "none"), (0.0, 5.0), (0.0, 1e-2), (0.0, 0.1)
    )
)


def logits_of(shape: tuple[int, ...], dtype: torch.dtype, *, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(shape[-1])
    return torch.randn(shape, generator=generator).mul(scale).to(dtype)


def targets_of(shape: tuple[int, ...], *, ignored: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    targets = torch.randint(shape[-1], shape[:-1], generator=generator)
    if ignored and targets.numel() > 2:
        targets.view(-1)[1::3] = -100
    return targets


def weights_of(targets: Tensor) -> Tensor:
    weights = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) + 0.25
    if weights.numel() > 3:
        weights.view(-1)[3::4] = 0.0
    return weights


def check(logits: Tensor, targets: Tensor, **options: Any) -> None:
    """Loss and lse with upstream gradients at both."""
    check_against_oracle(
        lambda logits: flagattn.cross_entropy(logits, targets, return_lse=True, **options),
        lambda logits: reference.cross_entropy(logits, targets, **options),
        {"logits": logits},
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_oracle(cpu_level: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(logits_of(shape, dtype), targets_of(shape))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(cpu_level: str, options: dict[str, Any]) -> None:
    for dtype in DTYPES:
        logits, targets = logits_of((3, 5, 1100), dtype), targets_of((3, 5, 1100))
        check(logits, targets, **options)
        check(logits, targets, token_weights=weights_of(targets), **options)


def test_reference_is_torchs() -> None:
    logits, targets = logits_of((6, 30), torch.float64), targets_of((6, 30))
    for reduction, smoothing in itertools.product(("mean", "sum", "none"), (0.0, 0.2)):
        loss, _ = reference.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
        torch.testing.assert_close(
            loss, F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
        )


def test_loss_alone_gives_the_gradient_of_the_loss() -> None:
    logits, targets = logits_of((6, 30), torch.float32), targets_of((6, 30))
    ours = run_with_gradients(lambda logits: flagattn.cross_entropy(logits, targets), {"logits": logits})
    torchs = run_with_gradients(lambda logits: F.cross_entropy(logits, targets), {"logits": logits})
    for name in torchs:
        torch.testing.assert_close(ours[name], torchs[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(cpu_level: str, dtype: torch.dtype) -> None:
    for offset in (-3e4, 3e4):
        check(logits_of((4, 130), dtype) + offset, targets_of((4, 130)))
    check(logits_of((4, 130), dtype, scale=1e3), targets_of((4, 130)))
    check(logits_of((4, 130), dtype, scale=1e3), targets_of((4, 130)), softcap=30.0)


def test_classes_of_minus_infinity(cpu_level: str) -> None:
    logits, targets = logits_of((5, 3000), torch.float32), torch.tensor([3, 9, 0, 1, 4])
    logits[:, 1000:2100] = -torch.inf
    logits[0, :1] = -torch.inf
    logits[1, 10:] = -torch.inf
    check(logits, targets)
    check(logits, targets, z_loss=1e-3)


def test_confident_rows_keep_their_small_losses(cpu_level: str) -> None:
    logits = torch.zeros(3, 50)
    logits[torch.arange(3), torch.tensor([4, 8, 49])] = torch.tensor([8.0, 12.0, 14.0])
    for offset in (0.0, 1000.0):
        check(logits + offset, torch.tensor([4, 8, 49]), reduction="none")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ignored_rows_are_not_looked_at(cpu_level: str, dtype: torch.dtype) -> None:
    logits, targets = logits_of((6, 70), dtype), targets_of((6, 70))
    weights = weights_of(targets)

    def loss(logits: Tensor) -> Any:
        return flagattn.cross_entropy(logits, targets, token_weights=weights, return_lse=True)

    clean = run_with_gradients(loss, {"logits": logits})
    left_out = (targets == -100) | (weights == 0)
    logits[left_out] = torch.nan
    soiled = run_with_gradients(loss, {"logits": logits})
    assert all(torch.equal(clean[name], soiled[name]) for name in clean)
    assert not soiled["dlogits"][left_out].any() and not soiled["output 1"][left_out].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_shows_in_its_row_only(cpu_level: str, dtype: torch.dtype) -> None:
    logits, targets = logits_of((4, 2100), dtype), targets_of((4, 2100), ignored=False)
    logits[2, 1500] = torch.nan
    results = run_with_gradients(
        lambda logits: flagattn.cross_entropy(logits, targets, reduction="none", return_lse=True), {"logits": logits}
    )
    there = torch.tensor([False, False, True, False])
    for result in results.values():
        assert result[there].isnan().all() and not result[~there].isnan().any()


def test_nothing_to_learn() -> None:
    logits = logits_of((3, 8), torch.float32).requires_grad_()
    for targets, weights in (
        (torch.full((3,), -100), None),
        (torch.tensor([1, 2, 3]), torch.zeros(3)),
    ):
        for reduction in ("mean", "sum", "none"):
            loss = flagattn.cross_entropy(logits, targets, token_weights=weights, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            assert not loss.any() and not gradient.any()


def test_ignore_index_may_be_a_class() -> None:
    logits, targets = logits_of((5, 8), torch.float32), torch.tensor([0, 1, 2, 1, 7])
    check(logits, targets, ignore_index=1)
    torch.testing.assert_close(
        flagattn.cross_entropy(logits, targets, ignore_index=1), F.cross_entropy(logits, targets, ignore_index=1)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(cpu_level: str, dtype: torch.dtype) -> None:
    buffer = logits_of((4, 6, 5, 41), dtype)
    targets = targets_of((5, 6, 4, 33))
    check(buffer[..., 3:36].transpose(0, 2), targets)
    check(buffer.permute(1, 3, 2, 0)[..., :3], targets_of((6, 41, 5, 3)))
    check(buffer[:1, 0, 0].expand(3, 41), targets_of((3, 41)))
    check(buffer[0, 0, 0], torch.tensor(7))
    strided = torch.stack([targets, targets], dim=-1)[..., 0]
    weights = torch.stack([weights_of(targets)] * 2, dim=-1)[..., 0]
    check(buffer[..., 3:36].transpose(0, 2), strided.to(torch.int32), token_weights=weights.double())


def test_inplace_backward(cpu_level: str) -> None:
    for dtype in DTYPES:
        logits, targets = logits_of((6, 1500), dtype), targets_of((6, 1500))
        (expected,) = torch.autograd.grad(
            flagattn.cross_entropy(leaf := logits.clone().requires_grad_(), targets), leaf
        )
        leaf = logits.clone().requires_grad_()
        produced = leaf * 1  # its backward does not need it
        loss = flagattn.cross_entropy(produced, targets, inplace_backward=True)
        (gradient,) = torch.autograd.grad(loss, produced, retain_graph=True)
        assert torch.equal(gradient, expected) and gradient.data_ptr() == produced.data_ptr()
        with pytest.raises(RuntimeError, match="overwritten by their gradient"):
            loss.backward()
    strided = logits_of((6, 80), torch.float32)[:, :50].requires_grad_()
    before = strided.detach().clone()
    flagattn.cross_entropy(strided, targets_of((6, 50)), inplace_backward=True).backward()
    assert torch.equal(strided, before)


def test_inplace_backward_is_known_to_whoever_else_needs_the_logits() -> None:
    """Overwritten logits that another node of the graph saved are torch's error, never a wrong gradient."""
    targets = targets_of((6, 50))
    uses: list[Callable[[Tensor, bool], Tensor]] = [
        lambda z, inplace: (
            flagattn.cross_entropy(z, targets, inplace_backward=inplace) + flagattn.cross_entropy(z, targets)
        ),
        lambda z, inplace: 2 * flagattn.cross_entropy(z, targets, inplace_backward=inplace) + (z * z).sum(),
        lambda z, inplace: (z * z).sum() + flagattn.cross_entropy(z, targets, inplace_backward=inplace),
        lambda z, inplace: flagattn.cross_entropy(z.tanh(), targets, inplace_backward=inplace),
    ]
    told = 0
    for use in uses:
        leaf = logits_of((6, 50), torch.float32).requires_grad_()
        (expected,) = torch.autograd.grad(use(leaf * 1, False), leaf)
        try:
            (gradient,) = torch.autograd.grad(use(leaf * 1, True), leaf)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            told += 1
        else:  # the other node had its turn first
            torch.testing.assert_close(gradient, expected)
    assert told >= 2


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.view(2, 3, 50), lambda x: x.view(300)[50:].view(5, 50)])
def test_the_gradient_of_a_leaf_has_its_own_memory(view: Callable[[Tensor], Tensor]) -> None:
    leaf = logits_of((6, 50), torch.float32).requires_grad_()
    before = leaf.detach().clone()
    logits = view(leaf)
    flagattn.cross_entropy(logits, targets_of(tuple(logits.shape)), inplace_backward=True).backward()
    assert torch.equal(leaf, before)
    assert leaf.grad is not None and not torch.equal(leaf.grad, before)


def test_same_bits_for_any_thread_count(cpu_level: str, set_threads) -> None:
    logits, targets = logits_of((300, 700), torch.bfloat16), targets_of((300, 700))
    runs = []
    for count in (1, 2, 5):
        set_threads(count)
        runs.append(run_with_gradients(lambda x: flagattn.cross_entropy(x, targets, return_lse=True), {"x": logits}))
    assert all(torch.equal(run[name], runs[0][name]) for run in runs[1:] for name in run)


def test_empty(cpu_level: str) -> None:
    for shape in ((0, 8), (2, 0, 8), (0, 0)):
        logits = torch.randn(shape).requires_grad_()
        for reduction in ("mean", "none"):
            loss = flagattn.cross_entropy(logits, torch.zeros(shape[:-1], dtype=torch.int64), reduction=reduction)
            assert not loss.any()
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            assert gradient.shape == shape


def test_double_backward_raises() -> None:
    logits, targets = logits_of((4, 8), torch.float32).requires_grad_(), targets_of((4, 8))
    for inplace in (False, True):
        loss = flagattn.cross_entropy(logits * 1, targets, inplace_backward=inplace)
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            gradient.sum().backward()


def test_functional_transforms() -> None:
    x, targets = logits_of((9, 40), torch.float32), targets_of((9, 40))

    def loss(x: Tensor) -> Any:
        return flagattn.cross_entropy(x, targets, inplace_backward=True)

    gradient, value = torch.func.grad_and_value(loss)(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
    torch.testing.assert_close(value, loss(x))
    with pytest.raises(NotImplementedError, match="no forward-mode"):
        torch.func.jvp(loss, (x,), (x,))


def test_opcheck() -> None:
    logits, targets = logits_of((2, 3, 20), torch.float32), targets_of((2, 3, 20))
    ops, options = torch.ops.flagattn, (-100, 1, 2.0, 0.1, 0.1)
    lse_parts = ops.cross_entropy(logits, targets, None, *options)[2]
    for weights in (None, weights_of(targets)):
        torch.library.opcheck(ops.cross_entropy.default, (logits.clone().requires_grad_(), targets, weights, *options))
    upstream = (torch.ones(()), torch.randn(2, 3))
    torch.library.opcheck(ops.cross_entropy_backward.default, (*upstream, logits, targets, None, lse_parts, *options))
    torch.library.opcheck(
        ops.cross_entropy_backward_.default, (*upstream, logits.clone(), targets, None, lse_parts, *options)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def block(logits: Tensor, targets: Tensor) -> Any:
        return flagattn.cross_entropy(logits * 2, targets, z_loss=1e-2, inplace_backward=True, return_lse=True)

    traced = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 6):
        logits, targets = logits_of((rows, 32), torch.float32), targets_of((rows, 32))
        ours = run_with_gradients(lambda x: traced(x, targets), {"x": logits})  # noqa: B023
        eager = run_with_gradients(lambda x: block(x, targets), {"x": logits})  # noqa: B023
        assert all(torch.equal(ours[name], eager[name]) for name in eager)


def test_autocast_changes_nothing() -> None:
    logits, targets = logits_of((4, 16), torch.float32), targets_of((4, 16))
    plain = flagattn.cross_entropy(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flagattn.cross_entropy(logits, targets), plain)


def test_bad_input() -> None:
    x, t = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    for error, message, arguments, options in (
        (TypeError, "logits is of type float", (1.0, t), {}),
        (TypeError, "logits is float64", (x.double(), t), {}),
        (ValueError, "logits has no dimension", (x[0, 0], t[0]), {}),
        (TypeError, "targets is of type list", (x, [1, 2, 3, 4]), {}),
        (TypeError, "targets is float32", (x, t.float()), {}),
        (ValueError, "targets has shape (3,)", (x, t[:3]), {}),
        (ValueError, "targets is on meta", (x, t.to("meta")), {}),
        (TypeError, "token_weights is of type float", (x, t), {"token_weights": 1.0}),
        (TypeError, "token_weights is int64", (x, t), {"token_weights": t}),
        (ValueError, "token_weights has shape (2,)", (x, t), {"token_weights": torch.ones(2)}),
        (ValueError, "token_weights requires a gradient", (x, t), {"token_weights": torch.ones(4).requires_grad_()}),
        (ValueError, "reduction is 'max'", (x, t), {"reduction": "max"}),
        (ValueError, "softcap is -1", (x, t), {"softcap": -1.0}),
        (ValueError, "z_loss is nan", (x, t), {"z_loss": torch.nan}),
        (ValueError, "label_smoothing is 1.5", (x, t), {"label_smoothing": 1.5}),
        (TypeError, "ignore_index is None", (x, t), {"ignore_index": None}),
        (RuntimeError, "softcap is 1e-50; it must be 0 (off), or positive and finite", (x, t), {"softcap": 1e-50}),
        (RuntimeError, "softcap is 1e+300; it must be 0 (off), or positive and finite", (x, t), {"softcap": 1e300}),
        (RuntimeError, "z_loss is 1e+300; it must be finite in fp32", (x, t), {"z_loss": 1e300}),
        (RuntimeError, "targets holds 8 at position 2; it must be from 0 to 7", (x, torch.tensor([1, 2, 8, 4])), {}),
        (RuntimeError, "targets holds 1 at position 0; it must be where there are no classes", (x[:, :0], t), {}),
        (RuntimeError, "targets holds -1 at position 0", (x, torch.tensor([-1, 2, 8, 4])), {}),
    ):
        with pytest.raises(error, match=re.escape(message)):
            flagattn.cross_entropy(*arguments, **options)
