"""What must hold for any sizes and masks: hypothesis draws them, identities and the reference judge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flagattn
from flagattn.reference import keep_mask
from flagattn.testing import (
    PIECEWISE_CASES,
    AttentionCase,
    attention_by_op,
    attention_by_reference,
    make_inputs,
)
from tests.attention.small_problems import assert_close_in_small_problem

seqlens = st.one_of(st.integers(0, 20), st.integers(30, 150))
windows = st.tuples(*[st.one_of(st.just(-1), st.integers(0, 12), st.integers(20, 200))] * 2)
thresholds = st.one_of(st.integers(-20, 20), st.integers(-200, 300))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def attend_to_positions(seqlen_q: int, seqlen_k: int, **options: object) -> torch.Tensor:
    """P itself: with v the identity, out[i, j] is the probability that row i gives to key j."""
    q = torch.zeros(1, seqlen_q, 1, 8)
    k = torch.zeros(1, seqlen_k, 1, 8)
    columns = []
    for begin in range(0, seqlen_k, 256):
        width = min(256, seqlen_k - begin)
        v = torch.zeros(1, seqlen_k, 1, width)
        v[0, begin : begin + width, 0] = torch.eye(width)
        columns.append(flagattn.flash_attn_func(q, k, v, **options)[0, :, 0])
    return torch.cat(columns, dim=1) if columns else torch.zeros(seqlen_q, 0)


@quick
@given(seqlens, seqlens, windows, st.booleans())
def test_exactly_the_visible_keys_are_attended(seqlen_q: int, seqlen_k: int, window: tuple, causal: bool) -> None:
    probabilities = attend_to_positions(seqlen_q, seqlen_k, window_size=window, causal=causal)
    keep = keep_mask(seqlen_q, seqlen_k, window_size=window, causal=causal)
    uniform = keep / keep.sum(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(probabilities, uniform.float(), rtol=1e-5, atol=0.0)
    assert torch.equal(probabilities > 0, keep)


@quick
@given(st.lists(st.tuples(seqlens, seqlens), min_size=2, max_size=4), windows, st.booleans(), st.booleans(), st.data())
def test_sequences_do_not_see_each_others_nan(lengths, window, causal: bool, is_piecewise: bool, data) -> None:
    poisoned = data.draw(st.integers(0, len(lengths) - 1))
    case = AttentionCase(
        f"poison {lengths}",
        lengths=tuple(lengths),
        heads_q=2,
        heads_k=1,
        head_dim=16,
        window_size=window,
        causal=causal,
        dist_threshold=9 if is_piecewise else None,
    )
    inputs = make_inputs(case, torch.float32)
    clean = attention_by_op(case, inputs)
    for name, operand in inputs.operands.items():
        cu_seqlens = inputs.cu_seqlens_q if name.startswith("q") else inputs.cu_seqlens_k
        operand[cu_seqlens[poisoned] : cu_seqlens[poisoned + 1]] = torch.nan
    for name, result in attention_by_op(case, inputs).items():
        cu_seqlens = inputs.cu_seqlens_k if name[:2] in ("dk", "dv") else inputs.cu_seqlens_q
        rows_first = (lambda t: t.T) if name == "lse" else (lambda t: t)
        for index in set(range(len(lengths))) - {poisoned}:
            rows = slice(cu_seqlens[index], cu_seqlens[index + 1])
            assert torch.equal(rows_first(result)[rows], rows_first(clean[name])[rows]), name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seqlens,
    seqlens,
    windows,
    st.booleans(),
    st.one_of(st.none(), thresholds),
    st.sampled_from([(1, 1), (2, 1), (3, 1), (6, 2)]),
    st.sampled_from([8, 24, 40, 64]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_problem_equals_the_reference(
    seqlen_q, seqlen_k, window, causal, threshold, heads, head_dim, dtype
) -> None:
    case = AttentionCase(
        f"{seqlen_q}x{seqlen_k}",
        seqlen_q,
        seqlen_k,
        heads_q=heads[0],
        heads_k=heads[1],
        head_dim=head_dim,
        window_size=window,
        causal=causal,
        dist_threshold=threshold,
        lse_gradient=True,
    )
    inputs = make_inputs(case, dtype)
    ours = attention_by_op(case, inputs)
    plain, ref64 = (attention_by_reference(case, inputs, kind) for kind in (dtype, torch.float64))
    assert_close_in_small_problem(ours, plain, ref64)


# ---- piecewise ----


def by_name(names: set[str]) -> list[AttentionCase]:
    return [case for case in PIECEWISE_CASES if case.name in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["aligned", "off_by_one", "full_mask", "one_near", "more_queries", "fewer_queries"])
def test_piecewise_equals_two_calls_merged(name: str, dtype: torch.dtype, cpu_level: str) -> None:
    """Near keys are a window of plain attention, far keys plain attention to shortened keys; the LSEs merge them."""
    (case,) = by_name({name})
    inputs = make_inputs(case, dtype)
    ours = attention_by_op(case, inputs)

    w = case.dist_threshold
    leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in inputs.operands.items()}
    q1, k1, v, q2, k2 = leaves.values()
    length = k1.shape[1] - w
    near = flagattn.flash_attn_func(q1, k1, v, window_size=(w - 1, 0 if case.causal else -1), return_lse=True)
    far = flagattn.flash_attn_func(q2, k2[:, :length], v[:, :length], causal=True, return_lse=True)
    out, lse = flagattn.merge_attention_states(*zip(near, far))
    outputs, gradients = [out], [inputs.dout]
    if inputs.dlse is not None:
        outputs.append(lse)
        gradients.append(inputs.dlse)
    merged = dict(zip(("out", "lse"), (out, lse)))
    merged |= zip([f"d{key}" for key in leaves], torch.autograd.grad(outputs, list(leaves.values()), gradients))
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    for key, expected in merged.items():
        torch.testing.assert_close(ours[key], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("threshold", [-1000, -7, 0, 1, 33, 64, 100, 131, 5000])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_equal_pairs_make_piecewise_plain(threshold: int, causal: bool, cpu_level: str) -> None:
    q, k, v = (torch.randn(1, n, h, 40) for n, h in ((100, 6), (131, 2), (131, 2)))
    dout = torch.randn(1, 100, 6, 40)
    plain_leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    plain, plain_lse = flagattn.flash_attn_func(*plain_leaves, causal=causal, return_lse=True)
    dq, dk, dv = torch.autograd.grad(plain, plain_leaves, dout)

    leaves = [t.clone().requires_grad_() for t in (q, k, q, k, v)]
    out, lse = flagattn.piecewise_attn_func(*leaves, threshold, causal=causal, return_lse=True)
    dq1, dk1, dq2, dk2, dv_piecewise = torch.autograd.grad(out, leaves, dout)
    for ours, expected in (
        (out, plain),
        (lse, plain_lse),
        (dq1 + dq2, dq),
        (dk1 + dk2, dk),
        (dv_piecewise, dv),
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_thresholds_at_their_limits_leave_one_pair() -> None:
    q1, k1, q2, k2, v = leaves = [torch.randn(1, 70, 2, 16).requires_grad_() for _ in range(5)]
    for threshold, pair, unused in ((0, (q2, k2), (0, 1)), (70, (q1, k1), (2, 3)), (-5, (q2, k2), (0, 1))):
        out = flagattn.piecewise_attn_func(*leaves, threshold, causal=True)
        torch.testing.assert_close(out, flagattn.flash_attn_func(*pair, v, causal=True), rtol=1e-5, atol=1e-6)
        gradients = torch.autograd.grad(out.sum(), leaves)
        assert all((gradients[index] == 0).all() for index in unused)


def test_scores_that_are_not_taken_may_be_nan() -> None:
    """Where a key is near its far score is not looked at, and the other way round."""
    w, length = 20, 90
    q1, k1, q2, k2, v = (torch.randn(1, length, 2, 16) for _ in range(5))
    clean = flagattn.piecewise_attn_func(q1, k1, q2, k2, v, w, causal=True)
    k2[:, length - w :] = torch.nan  # no row of a causal square is w or more behind these
    q2[:, :w] = torch.nan  # rows without far keys
    assert torch.equal(flagattn.piecewise_attn_func(q1, k1, q2, k2, v, w, causal=True), clean)


# ---- the LSE ----


def test_lse_gradient_is_the_probability() -> None:
    """d lse_i / d s_ij = p_ij: with q.k read off unit vectors, dq of the LSE is the mean key."""
    q, k = torch.randn(1, 9, 1, 16, requires_grad=True), torch.randn(1, 30, 1, 16)
    _, lse = flagattn.flash_attn_func(q, k, k, softmax_scale=1.0, return_lse=True)
    (dq,) = torch.autograd.grad(lse.sum(), q)
    mean_key = flagattn.flash_attn_func(q.detach(), k, k, softmax_scale=1.0)
    torch.testing.assert_close(dq, mean_key, rtol=1e-5, atol=1e-6)


def test_empty_rows_take_no_gradient_through_the_lse() -> None:
    q, k = torch.randn(1, 10, 2, 16, requires_grad=True), torch.randn(1, 4, 2, 16, requires_grad=True)
    out, lse = flagattn.flash_attn_func(q, k, k, causal=True, return_lse=True)
    assert torch.isneginf(lse[..., :6]).all() and (out[:, :6] == 0).all()
    dq, dk = torch.autograd.grad(lse, (q, k), torch.full_like(lse, math.nan).masked_fill(lse.isfinite(), 1.0))
    assert (dq[:, :6] == 0).all() and dq.isfinite().all() and dk.isfinite().all()
