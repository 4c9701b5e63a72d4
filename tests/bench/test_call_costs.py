"""What bench/call_costs.py measures: every call runs, and has a gradient where it says so."""

from __future__ import annotations

import pytest
import torch

from bench import call_costs


@pytest.mark.parametrize("gradient", [False, True])
def test_the_calls(gradient: bool) -> None:
    for name, call in call_costs._calls(gradient=gradient).items():
        result = call()
        first = result if isinstance(result, torch.Tensor) else result[0]
        assert first.requires_grad is gradient, name


def test_the_calls_without_gradient() -> None:
    for name, call in call_costs._calls_without_gradient().items():
        result = call()
        assert result.isfinite().all() and not result.requires_grad, name
