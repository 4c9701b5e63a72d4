"""Which document was in which step: a hash-chained file of steps and decisions, and what can be proved from it."""
