"""Fused attention, piecewise attention and transformer ops for PyTorch, with backward, on CPU and CUDA."""
