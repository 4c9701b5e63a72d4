"""Tokenised segments, and the arithmetic that says which of their rows stands at which place of a run."""
