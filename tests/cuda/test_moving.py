"""What tests on a GPU move there keeps its layout (moving.py)."""

from __future__ import annotations

import pytest
import torch

from flagattn.testing import LAYOUTS, laid_out
from tests.cuda.moving import moved_to


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_layout_and_gradient(layout: str, requires_grad: bool) -> None:
    here = laid_out(torch.randn(2, 5, 3, 8), layout).requires_grad_(requires_grad)
    there = moved_to(here, "cpu")
    assert there.untyped_storage().data_ptr() != here.untyped_storage().data_ptr()
    assert there.stride() == here.stride() and there.storage_offset() == here.storage_offset()
    assert torch.equal(there, here) and there.requires_grad == requires_grad
    if requires_grad:
        (gradient,) = torch.autograd.grad((there * 3).sum(), here)
        assert torch.equal(gradient, torch.full_like(gradient, 3))


def test_shared_elements() -> None:
    here = torch.randn(1, 4, requires_grad=True)
    there = moved_to(here.expand(3, 4), "cpu")
    assert torch.equal(there, here.expand(3, 4)) and there.requires_grad
