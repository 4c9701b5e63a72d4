"""The oracle: every op of flagattn in plain PyTorch, for reading, in any floating dtype, differentiable by autograd.

Called with float64 tensors these functions are the oracle (`ref64`); called with a test's own tensors they are
`plain`, the same mathematics in that dtype with an fp32 softmax, against whose error the kernels' error is measured.
They run on any device and import nothing but torch.
"""

from flagattn.reference.activation import swiglu
from flagattn.reference.attention import (
    attention,
    attention_column_sums,
    attention_varlen,
    merge_attention_states,
    piecewise_attention,
    piecewise_attention_varlen,
)
from flagattn.reference.dropout import dropout_keep_mask, philox
from flagattn.reference.kvcache import attention_with_kvcache
from flagattn.reference.linear import batch_invariant_linear
from flagattn.reference.loss import cross_entropy, linear_cross_entropy
from flagattn.reference.masks import far_mask, keep_mask, signed_distance
from flagattn.reference.norm import rms_norm
from flagattn.reference.rotary import apply_rotary

__all__ = [
    "apply_rotary",
    "attention",
    "attention_column_sums",
    "attention_varlen",
    "attention_with_kvcache",
    "batch_invariant_linear",
    "cross_entropy",
    "dropout_keep_mask",
    "far_mask",
    "keep_mask",
    "linear_cross_entropy",
    "merge_attention_states",
    "philox",
    "piecewise_attention",
    "piecewise_attention_varlen",
    "rms_norm",
    "signed_distance",
    "swiglu",
]
