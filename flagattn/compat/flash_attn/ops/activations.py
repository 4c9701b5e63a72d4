"""Activations by FlashAttention-2's names."""

from flagattn.activation import swiglu

__all__ = ["swiglu"]
