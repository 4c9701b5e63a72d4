"""The fuzz of test_layouts.py for the losses."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flagattn
from tests.robustness.test_layouts import check, dtypes, random, random_layout

fuzz = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large, HealthCheck.too_slow],
)


@fuzz
@given(
    st.data(),
    dtypes,
    st.integers(1, 9),
    st.sampled_from([1, 7, 64, 333, 1100]),
    st.sampled_from(["mean", "sum", "none"]),
    st.booleans(),
)
def test_losses(data, dtype, count, classes, reduction: str, of_hidden: bool) -> None:
    targets = torch.arange(2 * count).view(count, 2).t() % classes  # strided themselves
    weights = random_layout(data, random(2, count, dtype=torch.float32).abs() + 0.1)
    options: dict[str, Any] = {"reduction": reduction, "token_weights": weights, "z_loss": 1e-2, "return_lse": True}
    upstream = [torch.tensor(1.5) if reduction != "none" else random(2, count, dtype=torch.float32)]
    upstream.append(random(2, count, dtype=torch.float32))
    if reduction != "none":
        options.pop("return_lse")  # the gradients that the forward takes
    if of_hidden:
        hidden, weight = random(2, count, 24, dtype=dtype), random(classes, 24, dtype=dtype)
        loss: Any = lambda h, w: flagattn.linear_cross_entropy(h, w, targets, **options)  # noqa: E731
        check(data, loss, (hidden, weight), upstream)
    else:
        logits = random(2, count, classes, dtype=dtype)
        check(data, lambda x: flagattn.cross_entropy(x, targets, **options), (logits,), upstream)
