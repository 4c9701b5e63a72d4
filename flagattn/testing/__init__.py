"""What tests and benches share: case lists, seeded inputs, the reference's results and the comparison rule."""

from flagattn.testing.attention_cases import (
    DENSE_CASES,
    PIECEWISE_CASES,
    SCORE_CASES,
    VARLEN_CASES,
    AttentionCase,
)
from flagattn.testing.attention_runs import AttentionInputs, attention_by_op, attention_by_reference, make_inputs
from flagattn.testing.caches import Cache, make_cache
from flagattn.testing.cpu_levels import available_cpu_levels, set_cpu_level
from flagattn.testing.layouts import LAYOUTS, laid_out
from flagattn.testing.op_runs import check_against_oracle, run_with_gradients
from flagattn.testing.tolerance import assert_all_close_to_oracle, assert_close_to_oracle

__all__ = [
    "DENSE_CASES",
    "LAYOUTS",
    "PIECEWISE_CASES",
    "SCORE_CASES",
    "VARLEN_CASES",
    "AttentionCase",
    "AttentionInputs",
    "Cache",
    "assert_all_close_to_oracle",
    "assert_close_to_oracle",
    "attention_by_op",
    "attention_by_reference",
    "available_cpu_levels",
    "check_against_oracle",
    "laid_out",
    "make_cache",
    "make_inputs",
    "run_with_gradients",
    "set_cpu_level",
]
