"""The names other attention packages use, on this library's kernels.

    flash_attn     FlashAttention-2: its functions, bert_padding, layers.rotary, ops, losses
    flash_attn_3   FlashAttention-3's flash_attn_interface
    flag_attn      FlagAttention's four functions
    vllm           vLLM's flash_attn_varlen_func with its own argument order

Each is a package of its own, `from flagattn.compat import flash_attn`. `install` lets programs that say `import
flash_attn` find it without a change.
"""

from flagattn.compat.installing import install, installed, uninstall

__all__ = ["install", "installed", "uninstall"]
