"""The public functions around the op: layouts, packed forms, results, and torch's own attention as a peer."""

from __future__ import annotations

import inspect

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import flagattn
from flagattn import reference
from flagattn.testing import assert_close_to_oracle


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


def cu_seqlens(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


FA2_TAIL = ["dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes", "deterministic"]
FA2_TAIL += ["return_attn_probs"]
PACKING = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
SIGNATURES = {
    "flash_attn_func": ["q", "k", "v", *FA2_TAIL],
    "flash_attn_kvpacked_func": ["q", "kv", *FA2_TAIL],
    "flash_attn_qkvpacked_func": ["qkv", *FA2_TAIL],
    "flash_attn_varlen_func": ["q", "k", "v", *PACKING, *FA2_TAIL, "block_table"],
    "flash_attn_varlen_kvpacked_func": ["q", "kv", *PACKING, *FA2_TAIL],
    "flash_attn_varlen_qkvpacked_func": ["qkv", "cu_seqlens", "max_seqlen", *FA2_TAIL],
}
FA2_DEFAULTS = [0.0, None, False, (-1, -1), 0.0, None, False, False]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_flash_attention_2s(name: str) -> None:
    parameters = inspect.signature(getattr(flagattn, name)).parameters
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == SIGNATURES[name]
    assert [parameters[p].default for p in FA2_TAIL] == FA2_DEFAULTS
    assert {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY} == {
        "sinks": None,
        "return_lse": False,
    }


def test_results_by_flags() -> None:
    q = randn(1, 5, 2, 8)
    out = flagattn.flash_attn_func(q, q, q)
    assert isinstance(out, torch.Tensor) and out.shape == (1, 5, 2, 8)
    out, lse = flagattn.flash_attn_func(q, q, q, return_lse=True)
    assert lse.shape == (1, 2, 5) and lse.dtype == torch.float32
    out, lse, probabilities = flagattn.flash_attn_func(q, q, q, return_attn_probs=True)
    assert lse.shape == (1, 2, 5) and probabilities is None


def test_packed_forms_equal_the_separate_ones_with_their_gradients() -> None:
    qkv = randn(2, 33, 3, 4, 16, grad=True)
    q, k, v = (part.detach().requires_grad_() for part in qkv.unbind(2))
    expected = flagattn.flash_attn_func(q, k, v, causal=True, softcap=3.0)
    dout = randn(*expected.shape, seed=1)
    dq, dk, dv = torch.autograd.grad(expected, (q, k, v), dout)

    out = flagattn.flash_attn_qkvpacked_func(qkv, causal=True, softcap=3.0)
    assert torch.equal(out, expected)
    (dqkv,) = torch.autograd.grad(out, qkv, dout)
    assert torch.equal(dqkv, torch.stack((dq, dk, dv), dim=2)) and dqkv.is_contiguous()

    kv = torch.stack((k, v), dim=2).detach().requires_grad_()
    out = flagattn.flash_attn_kvpacked_func(q, kv, causal=True, softcap=3.0)
    assert torch.equal(out, expected)
    (dkv,) = torch.autograd.grad(out, kv, dout)
    assert torch.equal(dkv, torch.stack((dk, dv), dim=2))


def test_packed_varlen_forms_equal_the_separate_ones_with_their_gradients() -> None:
    cu = cu_seqlens(20, 0, 13)
    qkv = randn(33, 3, 4, 16, grad=True)
    q, k, v = (part.detach().requires_grad_() for part in qkv.unbind(1))
    expected, lse = flagattn.flash_attn_varlen_func(q, k, v, cu, cu, 20, 20, causal=True, return_lse=True)
    dout = randn(*expected.shape, seed=1)
    dq, dk, dv = torch.autograd.grad(expected, (q, k, v), dout)

    out, lse_packed = flagattn.flash_attn_varlen_qkvpacked_func(qkv, cu, 20, causal=True, return_lse=True)
    assert torch.equal(out, expected) and torch.equal(lse, lse_packed)
    (dqkv,) = torch.autograd.grad(out, qkv, dout)
    assert torch.equal(dqkv, torch.stack((dq, dk, dv), dim=1))

    kv = torch.stack((k, v), dim=1).detach().requires_grad_()
    out = flagattn.flash_attn_varlen_kvpacked_func(q, kv, cu, cu, 20, 20, causal=True)
    (dkv,) = torch.autograd.grad(out, kv, dout)
    assert torch.equal(out, expected) and torch.equal(dkv, torch.stack((dk, dv), dim=1))


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(40, 40), (40, 25), (25, 40), (1, 9), (9, 1)])
def test_scaled_dot_product_attention_equals_torchs(seqlen_q: int, seqlen_k: int, is_causal: bool) -> None:
    operands = [randn(2, 6, seqlen_q, 16), randn(2, 2, seqlen_k, 16, seed=1), randn(2, 2, seqlen_k, 16, seed=2)]
    dout = randn(2, 6, seqlen_q, 16, seed=3)
    results = []
    for function, dtype in (
        (flagattn.scaled_dot_product_attention, torch.float32),
        (F.scaled_dot_product_attention, torch.float64),
    ):
        leaves = [operand.to(dtype).requires_grad_() for operand in operands]
        out = function(*leaves, is_causal=is_causal, enable_gqa=True)
        results.append([out, *torch.autograd.grad(out, leaves, dout.to(dtype))])
    for ours, torchs in zip(*results):
        torch.testing.assert_close(ours.double(), torchs, rtol=1e-5, atol=1e-5)


def test_scaled_dot_product_attention_has_torchs_signature() -> None:
    ours = inspect.signature(flagattn.scaled_dot_product_attention).parameters.values()
    names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert [p.name for p in ours] == names
    assert [p.default for p in ours][3:] == [None, 0.0, False, None, False]


def test_operands_without_a_contiguous_last_dimension_are_copied() -> None:
    q = randn(1, 2, 16, 33).permute(0, 3, 1, 2)
    assert q.stride(-1) != 1
    assert torch.equal(flagattn.flash_attn_func(q, q, q), flagattn.flash_attn_func(*[q.contiguous()] * 3))


def test_gradient_of_any_layout_is_accepted() -> None:
    q = randn(1, 9, 2, 16, grad=True)
    (expanded,) = torch.autograd.grad(flagattn.flash_attn_func(q, q, q).sum(), q)
    (contiguous,) = torch.autograd.grad(flagattn.flash_attn_func(q, q, q), q, torch.ones(1, 9, 2, 16))
    assert torch.equal(expanded, contiguous)
    _, lse = flagattn.flash_attn_func(q, q, q, return_lse=True)
    (only_lse,) = torch.autograd.grad(lse.sum(), q)
    assert only_lse.isfinite().all() and only_lse.abs().sum() > 0


def test_rows_behind_the_last_sequence_are_empty() -> None:
    q = randn(9, 2, 16)
    q[5:] = torch.nan
    out, lse = flagattn.flash_attn_varlen_func(q, q, q, cu_seqlens(5), cu_seqlens(5), 5, 5, return_lse=True)
    assert (out[5:] == 0).all() and torch.isneginf(lse[:, 5:]).all()
    assert out[:5].isfinite().all() and lse[:, :5].isfinite().all()


def test_merged_parts_equal_the_whole_with_its_gradients() -> None:
    operands = [
        randn(2, 20, 4, 16, grad=True),
        randn(2, 50, 2, 16, seed=1, grad=True),
        randn(2, 50, 2, 16, seed=2, grad=True),
    ]
    q, k, v = operands
    whole = flagattn.flash_attn_func(q, k, v, return_lse=True)
    parts = [
        flagattn.flash_attn_func(q, k[:, begin:end], v[:, begin:end], return_lse=True)
        for begin, end in ((0, 7), (7, 7), (7, 50))
    ]
    merged = flagattn.merge_attention_states(*zip(*parts))
    gradients = [randn(2, 20, 4, 16, seed=3), randn(2, 4, 20, seed=4)]
    for ours, expected in zip(
        [*merged, *torch.autograd.grad(merged, operands, gradients)],
        [*whole, *torch.autograd.grad(whole, operands, gradients)],
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_merging_empty_parts_gives_zero_and_minus_infinity_without_nan() -> None:
    outs = [torch.zeros(1, 3, 2, 8, requires_grad=True) for _ in range(2)]
    lses = [torch.full((1, 2, 3), -torch.inf, requires_grad=True) for _ in range(2)]
    out, lse = flagattn.merge_attention_states(outs, lses)
    assert (out == 0).all() and torch.isneginf(lse).all()
    gradients = torch.autograd.grad([out, lse], [*outs, *lses], [torch.ones_like(out), torch.ones_like(lse)])
    assert all((gradient == 0).all() for gradient in gradients)


def test_merging_equals_the_reference_in_half_precision() -> None:
    outs = [randn(2, 5, 3, 8, seed=seed, dtype=torch.bfloat16) for seed in range(3)]
    lses = [randn(2, 3, 5, seed=seed + 10) for seed in range(3)]
    lses[1][0, 1] = -torch.inf
    out, lse = flagattn.merge_attention_states(outs, lses)
    plain_out, plain_lse = reference.merge_attention_states(outs, lses)
    out64, lse64 = reference.merge_attention_states([o.double() for o in outs], [x.double() for x in lses])
    assert out.dtype == torch.bfloat16
    assert_close_to_oracle(out, plain_out, out64, "out")
    assert_close_to_oracle(lse, plain_lse, lse64, "lse")


def test_merging_takes_parts_of_any_dtypes() -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    outs = [randn(2, 5, 3, 8, seed=seed, dtype=dtype).requires_grad_() for seed, dtype in enumerate(dtypes)]
    lses = [randn(2, 3, 5, seed=seed + 10).to(dtype).requires_grad_() for seed, dtype in enumerate(dtypes)]
    out, lse = flagattn.merge_attention_states(outs, lses)
    widened = [[part.detach().float() for part in parts] for parts in (outs, lses)]
    expected = flagattn.merge_attention_states(*widened)
    assert torch.equal(out, expected[0].bfloat16()) and torch.equal(lse, expected[1])
    gradients = torch.autograd.grad(out.float().sum() + lse.sum(), [*outs, *lses])
    assert [gradient.dtype for gradient in gradients] == [*dtypes, *dtypes]


def test_an_empty_row_changes_no_bits_of_the_merge_of_others() -> None:
    outs = [randn(3, 5, 4, 24, seed=seed, grad=True) for seed in range(2)]
    lses = [randn(3, 4, 5, seed=seed + 10) for seed in range(2)]
    lses[0][1] = -torch.inf
    lses = [lse.requires_grad_() for lse in lses]
    upstream = [randn(3, 5, 4, 24, seed=20), randn(3, 4, 5, seed=21)]

    def results(rows: slice) -> list[torch.Tensor]:
        parts = [*(t[rows] for t in outs), *(t[rows] for t in lses)]
        merged = flagattn.merge_attention_states(parts[:2], parts[2:])
        return [*merged, *torch.autograd.grad(merged, parts, [t[rows] for t in upstream])]

    together = results(slice(0, 3))
    for row in (0, 2):
        alone = results(slice(row, row + 1))
        assert all(torch.equal(a, b[row : row + 1]) for a, b in zip(alone, together))


def test_one_query_row_equals_the_last_row_of_all() -> None:
    q, k, v = randn(1, 70, 6, 32), randn(1, 70, 2, 32, seed=1), randn(1, 70, 2, 32, seed=2)
    whole = flagattn.flash_attn_func(q, k, v, causal=True)
    last = flagattn.flash_attn_func(q[:, -1:], k, v, causal=True)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-5, atol=1e-6)


def merged_parts(*parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    half = len(parts) // 2
    return flagattn.merge_attention_states(parts[:half], parts[half:])


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("tracer", ["jit", "make_fx real", "make_fx fake", "make_fx symbolic"])
def test_a_merge_traced_where_no_row_is_empty_joins_rows_that_are(tracer: str) -> None:
    outs = [randn(1, 3, 2, 8, seed=seed) for seed in range(2)]
    full = [randn(1, 2, 3, seed=seed + 10) for seed in range(2)]
    empty = [lse.clone() for lse in full]
    empty[0][0, 0] = -torch.inf
    for lse in empty:
        lse[0, 0, 1] = -torch.inf
    if tracer == "jit":
        traced = torch.jit.trace(merged_parts, (*outs, *full), check_trace=False)
    else:
        traced = make_fx(merged_parts, tracing_mode=tracer.split()[1])(*outs, *full)
    for lses in (full, empty):
        expected = merged_parts(*outs, *lses)
        assert expected[0].isfinite().all()
        assert all(torch.equal(ours, eager) for ours, eager in zip(traced(*outs, *lses), expected))


@pytest.mark.parametrize("yes", [1, numpy.True_], ids=["int", "numpy"])
def test_causal_may_be_what_equals_true(yes) -> None:
    q = torch.randn(1, 5, 2, 8)
    assert torch.equal(flagattn.flash_attn_func(q, q, q, causal=yes), flagattn.flash_attn_func(q, q, q, causal=True))
