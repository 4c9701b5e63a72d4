"""FlagAttention's functions by their definition, and the weights that dropout keeps: to compare with in tests."""

from flagattn.compat.flag_attn.testing.dropout import recompute_mask
from flagattn.compat.flag_attn.testing.flash import attention as flash_attention
from flagattn.compat.flag_attn.testing.paged import attention as paged_attention
from flagattn.compat.flag_attn.testing.piecewise import attention as piecewise_attention

__all__ = ["flash_attention", "paged_attention", "piecewise_attention", "recompute_mask"]
