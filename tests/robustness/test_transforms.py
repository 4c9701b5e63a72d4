"""torch.func over our ops: grad, vjp and vmap give what loops and backward give; forward mode raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import flagattn

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: flagattn.flash_attn_func(x, x, 2 * x, causal=True),
    "piecewise": lambda x: flagattn.piecewise_attn_func(x, x, -x, x, x, 2),
    "rms_norm": lambda x: flagattn.rms_norm(x, torch.full((8,), 0.5)),
    "swiglu": lambda x: flagattn.swiglu(x, x + 1),
    "linear": lambda x: flagattn.batch_invariant_linear(x, torch.full((5, 8), 0.5), torch.full((5,), 0.1)),
    "rotary": lambda x: flagattn.apply_rotary(x, torch.full((4, 4), 0.6), torch.full((4, 4), 0.8)),
}
by_op = pytest.mark.parametrize("name", OPS)


def loss_of(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: OPS[name](x).square().sum()


def by_backward(name: str, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(loss_of(name)(leaf), leaf)[0]


@by_op
def test_grad(name: str) -> None:
    x = torch.randn(1, 4, 2, 8)
    assert torch.equal(torch.func.grad(loss_of(name))(x), by_backward(name, x))


@by_op
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_per_sample(name: str) -> None:
    samples = torch.randn(3, 1, 4, 2, 8)
    found = torch.func.vmap(torch.func.grad(loss_of(name)))(samples)
    torch.testing.assert_close(found, torch.stack([by_backward(name, sample) for sample in samples]))


@by_op
def test_forward_mode_raises(name: str) -> None:
    x = torch.randn(1, 4, 2, 8)
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(OPS[name], (x,), (x,))
    with forward_ad.dual_level():
        assert torch.equal(OPS[name](x), OPS[name](x))  # no tangent is asked for
        for leaf in (x, x.clone().requires_grad_()):
            with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
                OPS[name](forward_ad.make_dual(leaf, torch.ones_like(x)))
