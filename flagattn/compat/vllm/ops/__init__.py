"""Ops by the names of vLLM's package."""
