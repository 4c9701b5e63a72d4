"""Ways for other libraries to call this one: `integrations.transformers` and `integrations.torch_sdpa`.

Nothing is switched on by an import.
"""
