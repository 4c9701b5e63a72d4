"""`apply_rotary` by the name of `vllm_flash_attn.ops.triton.rotary`, which is FlashAttention-2's."""

from flagattn.compat.flash_attn.ops.triton.rotary import apply_rotary

__all__ = ["apply_rotary"]
