"""FlagAttention's four functions on this library's kernels: `from flagattn.compat import flag_attn`.

Operands are (batch, heads, seqlen, head_dim), with any strides. Unlike there, head dims need not be powers of two,
piecewise attention takes grouped heads, and the log normaliser is differentiable. `flag_attn.testing` has the same
functions by their definition, in plain PyTorch.
"""

from flagattn.compat.flag_attn import testing as testing
from flagattn.compat.flag_attn.flash import flash_attention
from flagattn.compat.flag_attn.paged import paged_attention
from flagattn.compat.flag_attn.piecewise import piecewise_attention
from flagattn.compat.flag_attn.split_kv import flash_attention_split_kv

# The version whose functions and arguments are mirrored.
__version__ = "0.2"

__all__ = ["flash_attention", "flash_attention_split_kv", "paged_attention", "piecewise_attention"]
