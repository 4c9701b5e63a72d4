"""How results of small problems that nobody chose are judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flagattn.testing import assert_all_close_to_oracle


def assert_close_in_small_problem(
    ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], ref64: Mapping[str, Tensor]
) -> None:
    """The rule, but for gradients in fp32: few rows of few keys leave plain by luck with next to no error there, and
    twice that is no measure of ours. They are held to 2e-5 instead."""
    by_rule = dict(ref64)
    for name in ref64:
        if name.startswith("d") and ours[name].dtype is torch.float32 and plain["out"].dtype is torch.float32:
            expected = by_rule.pop(name)
            torch.testing.assert_close(ours[name].double(), expected, rtol=2e-5, atol=2e-5, msg=name)
    assert_all_close_to_oracle({name: ours[name] for name in by_rule}, plain, by_rule)
