"""Downstream probes: questions of local task files in lm_eval's form, scored while a run trains."""
