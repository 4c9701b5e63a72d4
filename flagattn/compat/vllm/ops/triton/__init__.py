"""Ops that are Triton kernels in vLLM's package."""
