"""Fused attention, piecewise attention and transformer ops for PyTorch, with backward, on CPU and CUDA."""

from flagattn import _load as _load  # registers the ops, or says in one sentence why it cannot
from flagattn import compat as compat
from flagattn.activation import swiglu
from flagattn.attention import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from flagattn.build_info import build_info, cpu_level
from flagattn.column_sums import attention_column_sums
from flagattn.explain import Explanation, explain
from flagattn.kvcache import flash_attn_with_kvcache, piecewise_attn_with_kvcache
from flagattn.linear import batch_invariant_linear
from flagattn.loss import cross_entropy, linear_cross_entropy
from flagattn.merging import merge_attention_states
from flagattn.norm import rms_norm
from flagattn.piecewise import piecewise_attn_func, piecewise_attn_varlen_func
from flagattn.rotary import apply_rotary
from flagattn.sdpa import scaled_dot_product_attention

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "apply_rotary",
    "attention_column_sums",
    "batch_invariant_linear",
    "build_info",
    "cpu_level",
    "cross_entropy",
    "explain",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "linear_cross_entropy",
    "merge_attention_states",
    "piecewise_attn_func",
    "piecewise_attn_varlen_func",
    "piecewise_attn_with_kvcache",
    "rms_norm",
    "scaled_dot_product_attention",
    "swiglu",
]
