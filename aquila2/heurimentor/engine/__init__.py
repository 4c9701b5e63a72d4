"""The adaptive training engine: ranks that share a step, and what decisions mean for it."""
