"""Joins an op of the library to its gradient, cheaply: one call of a small op must not cost more than the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad

# What torch.library.register_autograd and autograd.Function do inside; all of it is older than torch 2.11.
below_autograd: Any = torch._C._AutoDispatchBelowAutograd
_any_requires_grad: Any = torch._C._any_requires_grad
are_transforms_active: Any = torch._C._are_functorch_transforms_active
are_modes_active: Any = torch._C._len_torch_dispatch_stack  # make_fx's, fake tensors', counters' of FLOPs
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled


def differentiable(
    op: Any,
    setup_context: Callable[[Any, Any, Any], None],
    backward: Callable[..., Any],
    *,
    eager: type[torch.autograd.Function] | None = None,
) -> Callable[..., Any]:
    """Register `backward` as op's gradient and return a function that calls op by the shortest way.

    The op itself becomes differentiable through torch.library.register_autograd, which torch.compile traces and opcheck
    tests. In eager mode that route costs tens of microseconds, so the returned function takes an autograd.Function of
    the same two functions when a gradient is wanted, and steps below autograd when none is. Arguments are positional.
    `eager` is another Function to take there, whose results are op's first ones. torch.func's transforms (grad, vjp,
    vmap) take a third way; forward-mode differentiation raises.
    """
    torch.library.register_autograd(op, backward, setup_context=setup_context)

    def forward(ctx: Any, *args: Any) -> Any:
        with below_autograd():
            output = op(*args)
        setup_context(ctx, args, output)
        return output

    function: Any = eager or type(
        f"{op._opname}_function",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(backward)},
    )
    # Function.apply looks at every argument for torch.func's wrappers; `call` asks once whether there can be any.
    apply = super(torch.autograd.Function, function).apply
    transformable: Any = type(
        f"{op._opname}_transformable",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(op),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(_refuse_forward_mode),
            "generate_vmap_rule": True,
        },
    )

    def call(*args: Any) -> Any:
        if _is_compiling():
            return op(*args)
        if are_transforms_active():
            return transformable.apply(*args)
        if _forward_ad._current_level >= 0 and any(_is_dual(arg) for arg in args):
            _refuse_forward_mode()
        if _is_grad_enabled() and _any_requires_grad(*args):
            return apply(*args)
        with below_autograd():
            return op(*args)

    return call


def is_forward_mode() -> bool:
    """Whether operands may be dual tensors."""
    return _forward_ad._current_level >= 0


def _is_dual(arg: Any) -> bool:
    return isinstance(arg, Tensor) and _forward_ad.unpack_dual(arg).tangent is not None


def _refuse_forward_mode(*ignored: Any) -> Any:
    raise NotImplementedError(
        "flagattn has no forward-mode derivatives (jvp, jacfwd, dual tensors); use reverse mode (grad, vjp, backward)"
    )


def not_differentiable(op: Any, why: str) -> Callable[..., Any]:
    """The same for an op without a gradient: its outputs may be part of a graph, but a backward through them raises."""

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(why)

    return differentiable(op, setup_context, backward)


def without_double_backward(op: Any) -> Callable[..., Any]:
    """The same for an op that is itself a gradient."""
    return not_differentiable(
        op,
        f"flagattn has no double backward: {op._opname} cannot be differentiated, so do not pass create_graph",
    )
