"""What FlashAttention-2 keeps as Triton kernels."""
