"""Losses by FlashAttention-2's names."""
