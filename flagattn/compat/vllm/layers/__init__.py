"""Layers by the names of vLLM's package."""
