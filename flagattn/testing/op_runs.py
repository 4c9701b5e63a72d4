"""Any differentiable op against its reference: results and gradients, by the numerics contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flagattn.testing.tolerance import assert_all_close_to_oracle

Op = Callable[..., Any]


def run_with_gradients(op: Op, operands: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """op's results by index, and its gradient by each operand for upstream gradients that depend on `seed` alone."""
    leaves = {name: operand.detach().requires_grad_() for name, operand in operands.items()}
    result = op(**leaves)
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(out.shape, generator=generator).to(torch.bfloat16).to(out.dtype) for out in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    results = {f"output {index}": out.detach() for index, out in enumerate(outputs)}
    return results | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def check_against_oracle(op: Op, reference: Op, operands: Mapping[str, Tensor]) -> None:
    """op(**operands) and its gradients within the contract of what `reference` gives in float64.

    Both run on the operands as they are, so in their dtypes and layouts. The upstream gradients are bfloat16 numbers,
    which every dtype but float16 at its ends represents exactly.
    """
    ours = run_with_gradients(op, operands)
    plain = run_with_gradients(reference, operands)
    ref64 = run_with_gradients(reference, {name: operand.double() for name, operand in operands.items()})
    assert_all_close_to_oracle(ours, plain, ref64)
