"""The training-state monitor: what is measured in every step, and what it tells."""
