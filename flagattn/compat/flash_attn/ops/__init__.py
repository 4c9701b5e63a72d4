"""Fused ops by FlashAttention-2's names."""
