"""vLLM's attention functions on this library's kernels, in the argument order of its own flash-attention package.

`flash_attn_varlen_func` there takes the maximal lengths before the cumulative ones and knows paged keys, `out` and
sinks; the sparse functions read chosen keys only. All are inference only. After
`flagattn.compat.install("vllm_flash_attn")`, `import vllm_flash_attn` finds this package.
"""

from flagattn.compat.vllm.flash_attn_interface import (
    fa_version_unsupported_reason,
    flash_attn_varlen_func,
    get_scheduler_metadata,
    is_fa_version_supported,
    sparse_attn_func,
    sparse_attn_varlen_func,
)

# The version whose functions and arguments are mirrored.
__version__ = "2.7.2.post1"

__all__ = [
    "fa_version_unsupported_reason",
    "flash_attn_varlen_func",
    "get_scheduler_metadata",
    "is_fa_version_supported",
    "sparse_attn_func",
    "sparse_attn_varlen_func",
]
