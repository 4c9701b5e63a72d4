"""The CUDA library registers its ops also where torch has no CUDA: it was built, linked and can be loaded."""

from __future__ import annotations

import pytest
import torch

from flagattn import _load

ATTENTION = ("attention_forward", "attention_backward", "piecewise_forward", "piecewise_backward")
CACHED = (
    "attention_kvcache",
    "attention_kvcache_varlen",
    "attention_kvcache_append",
    "piecewise_kvcache",
    "piecewise_kvcache_append",
)
FUSED = (
    "rms_norm",
    "add_rms_norm",
    "rms_norm_backward",
    "swiglu",
    "swiglu_backward",
    "apply_rotary",
    "apply_rotary_",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_backward_",
)


@pytest.mark.parametrize("op", [*ATTENTION, *CACHED, *FUSED])
def test_ops_are_registered(op: str) -> None:
    loaded = _load.load_cuda()
    if loaded.cuda is None:
        pytest.skip(f"the CUDA library is not here: {loaded.cuda_off}")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"flagattn::{op}", "CUDA")
