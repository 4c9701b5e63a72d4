"""The counts every rate in the reports is made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import roofline
from bench.cases import AttentionShape
from bench.study_attention_parts import issue_rate_library, rate
from flagattn.reference import keep_mask

lengths = st.integers(min_value=0, max_value=24)
sides = st.integers(min_value=-1, max_value=26)


@settings(deadline=None)
@given(lengths, lengths, sides, sides)
def test_visible_pairs_counts_the_reference_mask(seqlen_q: int, seqlen_k: int, left: int, right: int) -> None:
    expected = int(keep_mask(seqlen_q, seqlen_k, window_size=(left, right)).sum())
    assert roofline.visible_pairs(seqlen_q, seqlen_k, left, right) == expected


def test_attention_flops_are_those_of_the_matrix_products() -> None:
    batch, heads, seqlen, head_dim, head_dim_v = 2, 3, 5, 8, 16
    pairs = seqlen * seqlen
    assert roofline.attention_flops(batch, heads, pairs, head_dim, head_dim_v) == 2 * batch * heads * pairs * (8 + 16)
    assert roofline.attention_flops(1, 1, 1, 8, 8, backward=True) == 2.5 * roofline.attention_flops(1, 1, 1, 8, 8)


def test_causal_counts_half_and_the_diagonal() -> None:
    full, causal = AttentionShape(64, 64, "fp32"), AttentionShape(64, 64, "fp32", causal=True)
    assert full.pairs == 64 * 64
    assert causal.pairs == 64 * 65 // 2


def test_attention_bytes_count_shared_heads_once() -> None:
    one, six = (AttentionShape(32, 8, "bf16", group=group).bytes() for group in (1, 6))
    row = 32 * 8 * 2
    assert one == 4 * 12 * row + 12 * 32 * 4
    assert six == 2 * 12 * row + 2 * 2 * row + 12 * 32 * 4


@pytest.mark.parametrize(
    ("flops", "moved", "expected"), [(10.0, 0.0, 2.0), (0.0, 30.0, 3.0), (10.0, 30.0, 3.0), (20.0, 30.0, 4.0)]
)
def test_the_roofline_is_the_slower_of_the_two_rates(flops: float, moved: float, expected: float) -> None:
    assert roofline.roofline_seconds(flops, moved, 5.0, 10.0) == expected


def test_the_copy_probe_moves_what_it_says() -> None:
    probe = roofline.copy_probe(8000.0)
    result = probe.buffers[0]()
    assert 2 * result.numel() * result.element_size() == probe.bytes == 8000


def test_the_sgemm_probe_multiplies() -> None:
    result = roofline.sgemm_probe().buffers[0]()
    assert result.shape == (1024, 1024)
    assert torch.isfinite(result).all()


def test_the_fma_loop_counts_its_operations() -> None:
    library = roofline.fma_peak_library()
    assert library.fma_flops(10) == 10 * library.fma_flops(1) > 0
    assert roofline.fma_rate(2, 1000) > 0


def test_the_issue_loops_count_their_instructions() -> None:
    library = issue_rate_library()
    assert library.no_ops(10) == library.dependent_additions(10) == 640
    assert rate(library.no_ops, 1000) > rate(library.dependent_additions, 1000) > 0
