"""Every public function compiled by itself, all in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from tests.robustness.test_foreign_tensors import calls, merge


def copied(arguments: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: change(value.clone()) if isinstance(value, Tensor) else value for name, value in arguments.items()}


VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "shorter heads": lambda x: x[..., :8] if x.dim() >= 4 and x.shape[-1] == 16 else x,
    "with gradients": lambda x: x.requires_grad_() if x.is_floating_point() and x.dim() >= 4 else x,
}
TAKES_ALL = ("dense", "kvpacked", "piecewise")


@pytest.mark.filterwarnings("ignore")
def test_no_function_uses_up_the_recompilations_of_another() -> None:
    """Dynamo counts them, up to 8, by code object."""
    torch._dynamo.reset()
    compiled = 0
    for variant, change in VARIANTS.items():
        for name, (function, arguments) in calls().items():
            if function is merge:
                parts = list(arguments.values())
                function, arguments = flagattn.merge_attention_states, {"outs": parts[:2], "lses": parts[2:]}
            if variant != "plain" and name not in TAKES_ALL:
                continue
            expected = function(**copied(arguments, change))
            ours = torch.compile(function, fullgraph=True, backend="eager")(**copied(arguments, change))
            torch.testing.assert_close(ours, expected)
            compiled += 1
    assert compiled > 3 * torch._dynamo.config.recompile_limit
    torch._dynamo.reset()


def test_a_function_shows_under_its_own_name() -> None:
    names = {name: getattr(flagattn, name) for name in flagattn.__all__}
    wrapped = {name: function for name, function in names.items() if hasattr(function, "__wrapped__")}
    assert len(wrapped) >= 17
    for name, function in wrapped.items():
        assert function.__code__.co_name == name
