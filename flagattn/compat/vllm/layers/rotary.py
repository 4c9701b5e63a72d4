"""Rotary position embedding by the names of `vllm_flash_attn.layers.rotary`, which are FlashAttention-2's."""

from flagattn.compat.flash_attn.layers.rotary import (
    ApplyRotaryEmb,
    RotaryEmbedding,
    apply_rotary_emb,
    apply_rotary_emb_func,
    apply_rotary_emb_kv_,
    apply_rotary_emb_qkv_,
    apply_rotary_emb_torch,
    rotate_half,
)

__all__ = [
    "ApplyRotaryEmb",
    "RotaryEmbedding",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "apply_rotary_emb_torch",
    "rotate_half",
]
