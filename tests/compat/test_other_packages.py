"""FlashAttention-3's, FlagAttention's and vLLM's names against flagattn's own functions and formulas."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import flagattn
from flagattn import reference
from flagattn.compat import flag_attn, flash_attn_3, vllm
from flagattn.compat.flash_attn_3 import flash_attn_interface as fa3


def randn(*shape: int, seed: int = 0, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_(grad)


def cumulative(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


FA3_TAIL = (
    "softmax_scale causal qv q_descale k_descale v_descale window_size attention_chunk softcap num_splits pack_gqa "
)
FA3_TAIL += "deterministic sm_margin return_attn_probs"
SPARSE_TAIL = (
    "dropout_p softmax_scale causal softcap alibi_slopes deterministic return_attn_probs return_softmax_lse out"
)
SIGNATURES = {
    flash_attn_3.flash_attn_func: f"q k v {FA3_TAIL}",
    flash_attn_3.flash_attn_varlen_func: f"""
        q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k {FA3_TAIL}
    """,
    flash_attn_3.flash_attn_with_kvcache: """
        q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad
        page_table cu_seqlens_q cu_seqlens_k_new max_seqlen_q rotary_seqlens q_descale k_descale v_descale
        softmax_scale causal window_size attention_chunk softcap rotary_interleaved scheduler_metadata
        num_splits pack_gqa sm_margin return_softmax_lse
    """,
    flag_attn.flash_attention: """
        q k v causal sm_scale dropout_p return_log_normalizer return_total_attention return_seed_offset
    """,
    flag_attn.piecewise_attention: "q1 k1 q2 k2 v dist_threshold causal sm_scale",
    flag_attn.flash_attention_split_kv: "q k v causal sm_scale",
    flag_attn.total.total_attention: "q k l causal sm_scale",
    flag_attn.testing.flash_attention: """
        q k v causal dropout_p dropout_mask sm_scale return_log_normalizer return_total_attention upcast
    """,
    flag_attn.testing.piecewise_attention: "q1 k1 q2 k2 v dist_threshold causal sm_scale upcast",
    flag_attn.testing.paged_attention: "query key_cache value_cache block_tables context_lens scale",
    flag_attn.testing.recompute_mask: "B H M N dropout_p seed offset device",
    flag_attn.paged_attention: """
        query key_cache value_cache context_lens block_tables attn_scale max_context_len num_splits
    """,
    vllm.flash_attn_varlen_func: """
        q k v max_seqlen_q cu_seqlens_q max_seqlen_k cu_seqlens_k seqused_k q_v dropout_p softmax_scale
        causal window_size softcap alibi_slopes deterministic return_attn_probs block_table
        return_softmax_lse out scheduler_metadata q_descale k_descale v_descale num_splits fa_version s_aux
        cp_world_size cp_rank cp_tot_seqused_k
    """,
    vllm.sparse_attn_func: f"""
        q k v block_count block_offset column_count column_index {SPARSE_TAIL}
    """,
    vllm.sparse_attn_varlen_func: f"""
        q k v block_count block_offset column_count column_index cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k
        {SPARSE_TAIL}
    """,
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f"{f.__module__.split('.')[2]}.{f.__name__}")
def test_arguments_stand_in_their_order(function) -> None:
    assert list(inspect.signature(function).parameters) == SIGNATURES[function].split()


# ---- FlashAttention-3 ----


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(9, 9), (5, 13), (13, 5)])
@pytest.mark.parametrize("masks", [{}, {"causal": True}, {"window_size": (2, 1)}], ids=["full", "causal", "window"])
def test_chunks_confine_queries_to_their_own(chunk: int, seqlen_q: int, seqlen_k: int, masks) -> None:
    q, k, v = randn(2, seqlen_q, 4, 16), randn(2, seqlen_k, 2, 16, seed=1), randn(2, seqlen_k, 2, 16, seed=2)
    out, lse = fa3.flash_attn_func(q, k, v, attention_chunk=chunk, return_attn_probs=True, **masks)
    position = torch.arange(seqlen_q).unsqueeze(1) + seqlen_k - seqlen_q
    key = torch.arange(seqlen_k)
    keep = (position.div(chunk, rounding_mode="floor") == key.div(chunk, rounding_mode="floor")) & (position >= 0)
    left, right = masks.get("window_size", (-1, 0 if "causal" in masks else -1))
    keep &= (left < 0) | (key >= position - left)
    keep &= (right < 0) | (key <= position + right)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) / 4
    scores = scores.masked_fill(~keep, -math.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    probabilities = scores.softmax(-1).nan_to_num()
    torch.testing.assert_close(out, torch.einsum("bhij,bjhd->bihd", probabilities, v.repeat_interleave(2, 2)))


def test_unused_rows_of_packed_sequences_are_left_out() -> None:
    q, k, v = (randn(12, 2, 16, seed=seed) for seed in range(3))
    for operand, unused in ((q, [4, 11]), (k, [5, 6]), (v, [5, 6])):
        operand[unused] = math.nan
    q, k, v = (operand.requires_grad_() for operand in (q, k, v))
    cu_q, cu_k = cumulative(5, 7), cumulative(7, 5)
    used_q, used_k = torch.tensor([4, 6], dtype=torch.int32), torch.tensor([5, 5], dtype=torch.int32)
    out, lse = fa3.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, 7, 7, used_q, used_k, causal=True, return_attn_probs=True
    )
    rows, keys = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    expected = flagattn.flash_attn_varlen_func(
        q[rows], k[keys], v[keys], cumulative(4, 6), cumulative(5, 5), 6, 5, causal=True
    )
    assert torch.equal(out[rows], expected) and out[[4, 11]].abs().sum() == 0
    assert torch.equal(lse[:, [4, 11]], torch.full((2, 2), -math.inf))
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_queries_times_values_add_to_the_scores() -> None:
    q, k, v, qv = randn(1, 6, 2, 16), randn(1, 6, 2, 16, seed=1), randn(1, 6, 2, 32, seed=2), randn(1, 6, 2, 32, seed=3)
    out = fa3.flash_attn_func(q, k, v, qv=qv)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) + torch.einsum("bihd,bjhd->bhij", qv, v)
    expected = torch.einsum("bhij,bjhd->bihd", (scores * 48**-0.5).softmax(-1), v)
    torch.testing.assert_close(out, expected)
    with pytest.raises(NotImplementedError, match="together they must not exceed 256"):
        fa3.flash_attn_func(q, k, randn(1, 6, 2, 256), qv=randn(1, 6, 2, 256))


def test_values_may_be_512_wide() -> None:
    q, k, v = randn(1, 6, 2, 16, grad=True), randn(1, 6, 2, 16, seed=1), randn(1, 6, 2, 512, seed=2)
    out, lse = fa3.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    expected, expected_lse = reference.attention(q.double(), k.double(), v.double(), causal=True)
    torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse.float())
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


def test_both_stacked_forms_are_taken() -> None:
    qkv = randn(1, 6, 3, 2, 16)
    expected = flagattn.flash_attn_qkvpacked_func(qkv, causal=True)
    assert torch.equal(fa3.flash_attn_qkvpacked_func(qkv, causal=True), expected)
    assert torch.equal(fa3.flash_attn_qkvpacked_func(qkv.flatten(2, 3), causal=True, num_heads_q=2), expected)


def test_partial_results_combine() -> None:
    outs, lses = randn(3, 2, 5, 4, 16), randn(3, 2, 5, 4, seed=1)
    lses[1, 0], outs[1, 0], lses[:, 1, 2] = -math.inf, math.nan, -math.inf
    out, lse = fa3.flash_attn_combine(outs, lses, out_dtype=torch.bfloat16)
    torch.testing.assert_close(lse, lses.logsumexp(0))
    weights = (lses - lse).exp().nan_to_num(0.0).unsqueeze(-1)
    torch.testing.assert_close(out, (weights * outs.nan_to_num(0.0)).sum(0).bfloat16())
    target = torch.empty_like(out)
    assert fa3.flash_attn_combine(outs, lses, target)[0] is target and torch.equal(target, out)


def test_the_private_pair_of_fa3() -> None:
    q, k, v = (randn(2, 7, 2, 16, seed=seed, grad=True) for seed in range(3))
    expected = flagattn.flash_attn_func(q, k, v, causal=True)
    out, lse, *empty = fa3._flash_attn_forward(q, k, v, causal=True)
    assert torch.equal(out, expected) and [part.numel() for part in empty] == [0, 0]
    dout = randn(*out.shape, seed=3)
    dq, dk, dv = (torch.empty_like(operand) for operand in (q, k, v))
    fa3._flash_attn_backward(dout, q, k, v, out, lse, dq=dq, dk=dk, dv=dv, is_causal=True)
    for ours, public in zip((dq, dk, dv), torch.autograd.grad(expected, (q, k, v), dout)):
        assert torch.equal(ours, public)
    cu = cumulative(7, 7)
    packed, *_ = fa3._flash_attn_forward(
        *(operand.flatten(0, 1) for operand in (q, k, v)),
        cu_seqlens_q=cu,
        cu_seqlens_k=cu,
        max_seqlen_q=7,
        max_seqlen_k=7,
        causal=True,
    )
    assert torch.equal(packed, expected.flatten(0, 1))


def test_what_is_not_there_is_refused_in_a_sentence() -> None:
    q = randn(1, 4, 2, 16)
    with pytest.raises(NotImplementedError, match="q_descale is given"):
        fa3.flash_attn_func(q, q, q, q_descale=torch.ones(1, 2))
    with pytest.raises(NotImplementedError, match="rotary_seqlens is given"):
        fa3.flash_attn_with_kvcache(q, q, q, rotary_cos=torch.ones(4, 8), rotary_seqlens=torch.ones(1))
    with pytest.raises(NotImplementedError, match="cp_world_size is 2"):
        vllm.flash_attn_varlen_func(q[0], q[0], q[0], 4, cumulative(4), 4, cumulative(4), cp_world_size=2)
    with pytest.raises(ValueError, match="exactly one of cu_seqlens_k and seqused_k"):
        vllm.flash_attn_varlen_func(q[0], q[0], q[0], 4, cumulative(4), 4)


# ---- FlagAttention ----


def test_flag_attention_takes_heads_first_and_returns_by_flags() -> None:
    q, k = randn(2, 4, 7, 16, grad=True), randn(2, 2, 9, 16, seed=1)
    expected, lse = flagattn.flash_attn_func(
        q.transpose(1, 2), k.transpose(1, 2), k.transpose(1, 2), causal=True, return_lse=True
    )
    out = flag_attn.flash_attention(q, k, k, True)
    assert torch.equal(out, expected.transpose(1, 2)) and out.requires_grad
    out, log_normalizer, *rest = flag_attn.flash_attention(q, k, k, causal=True, return_log_normalizer=True)
    assert torch.equal(log_normalizer, lse) and rest == [None, None, None]
    split = flag_attn.flash_attention_split_kv(q, k, k, True)
    assert torch.equal(split, out) and not split.requires_grad


def test_piecewise_attention_takes_heads_first() -> None:
    q1, q2 = randn(1, 4, 9, 16), randn(1, 4, 9, 16, seed=1)
    k1, k2, v = (randn(1, 2, 9, 16, seed=seed) for seed in (2, 3, 4))
    out = flag_attn.piecewise_attention(q1, k1, q2, k2, v, 3, causal=True)
    operands = (operand.transpose(1, 2) for operand in (q1, k1, q2, k2, v))
    assert torch.equal(out.transpose(1, 2), flagattn.piecewise_attn_func(*operands, 3, causal=True))


# ---- vLLM ----


def test_vllm_reads_packed_and_paged_keys_and_writes_into_out() -> None:
    q, k, v = randn(5, 4, 16), randn(12, 2, 16, seed=1), randn(12, 2, 16, seed=2)
    cu_q, cu_k = cumulative(1, 4), cumulative(5, 7)
    expected, lse = flagattn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 4, 7, causal=True, return_lse=True)
    out = torch.full_like(q, math.nan)
    result, result_lse = vllm.flash_attn_varlen_func(
        q, k, v, 4, cu_q, 7, cu_k, causal=True, out=out, return_softmax_lse=True, window_size=[-1, -1]
    )
    assert result is out and torch.equal(out, expected) and torch.equal(result_lse, lse)
    pages = torch.full((2, 6, 4, 2, 16), math.nan)
    table = torch.tensor([[4, 1, 0], [2, 5, 0]], dtype=torch.int32)
    for cache, rows in zip(pages, (k, v)):
        for sequence, (begin, end) in enumerate(((0, 5), (5, 12))):
            for row in range(end - begin):
                cache[table[sequence, row // 4], row % 4] = rows[begin + row]
    used = torch.tensor([5, 7], dtype=torch.int32)
    paged = vllm.flash_attn_varlen_func(
        q, *pages, 4, cu_q, 7, seqused_k=used, causal=True, block_table=table, fa_version=3
    )
    assert torch.equal(paged, expected)
    assert vllm.is_fa_version_supported(2) and vllm.fa_version_unsupported_reason(4)
    metadata = vllm.get_scheduler_metadata(2, 4, 7, 4, 2, 16, used)
    assert metadata.dtype == torch.int32


@pytest.mark.parametrize("causal", [False, True])
def test_total_attention_sums_the_probabilities_by_key(causal: bool) -> None:
    q, k, v = randn(2, 4, 70, 16), randn(2, 2, 90, 16, seed=1), randn(2, 2, 90, 16, seed=2)
    out, lse, total, seed, offset = flag_attn.flash_attention(
        q, k, v, causal, return_log_normalizer=True, return_total_attention=True
    )
    scores = q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2) / 4
    if causal:
        scores = scores.masked_fill(~reference.keep_mask(70, 90, causal=True), -math.inf)
    torch.testing.assert_close(total, scores.softmax(-1).sum(-2).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(out, flag_attn.flash_attention(q, k, v, causal)) and seed is None and offset is None


def test_flag_attn_gives_no_seed_without_dropout() -> None:
    q = randn(1, 2, 5, 16)
    assert flag_attn.flash_attention(q, q, q, return_seed_offset=True)[1:] == (None, None, None, None)
    *_, seed, offset = flag_attn.flash_attention(q, q, q, dropout_p=0.1, return_seed_offset=True)
    assert isinstance(seed, int) and isinstance(offset, int)


def test_flash_attn_3_chooses_rows_of_the_page_table_by_cache_batch_idx() -> None:
    q, pages = randn(2, 3, 4, 16), randn(2, 6, 4, 2, 16, seed=1)
    table = torch.tensor([[4, 1], [2, 5], [0, 3]], dtype=torch.int32)
    used, chosen = torch.tensor([5, 8], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    options = {"cache_seqlens": used, "causal": True}
    ours = flash_attn_3.flash_attn_with_kvcache(q, *pages, page_table=table, cache_batch_idx=chosen, **options)
    caches = (cache[table[chosen]].reshape(2, 8, 2, 16) for cache in pages)
    assert torch.equal(ours, flash_attn_3.flash_attn_with_kvcache(q, *caches, **options))


@pytest.mark.parametrize("paged", [True, False], ids=["pages", "rows"])
def test_flash_attn_3_packs_the_queries_of_a_cached_batch(paged: bool) -> None:
    q, cu_q = randn(4, 4, 16), cumulative(1, 3)
    pages = randn(2, 6, 4, 2, 16, seed=1)
    table = torch.tensor([[4, 1], [2, 5]], dtype=torch.int32)
    caches = tuple(pages) if paged else tuple(cache[table].reshape(2, 8, 2, 16) for cache in pages)
    used, leftpad = torch.tensor([5, 8], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    options = {"cache_seqlens": used, "cache_leftpad": leftpad, "causal": True, "page_table": table if paged else None}
    out, lse, *_ = flash_attn_3.flash_attn_with_kvcache(
        q, *caches, cu_seqlens_q=cu_q, max_seqlen_q=3, return_softmax_lse=True, **options
    )
    k, v = (torch.cat([cache[table[0]].flatten(0, 1)[2:5], cache[table[1]].flatten(0, 1)]) for cache in pages)
    packing = (cu_q, cumulative(3, 8), 3, 8)
    expected, expected_lse = flagattn.flash_attn_varlen_func(q, k, v, *packing, causal=True, return_lse=True)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    below, *_ = fa3._flash_attn_forward(
        q,
        *caches,
        cu_seqlens_q=cu_q,
        max_seqlen_q=3,
        seqused_k=used,
        leftpad_k=leftpad,
        page_table=options["page_table"],
        causal=True,
    )
    assert torch.equal(below, expected)
    packed = {"cu_seqlens_q": cu_q, "max_seqlen_q": 3, **options}
    for name, given in (("k", q), ("v", q), ("rotary_cos", q[0]), ("rotary_sin", q[0])):
        with pytest.raises(NotImplementedError, match=rf"{name} is given; .* for packed queries"):
            flash_attn_3.flash_attn_with_kvcache(q, *caches, **{name: given}, **packed)
    with pytest.raises(TypeError, match="num_splits"):
        flash_attn_3.flash_attn_with_kvcache(q, *caches, num_splits="x", **packed)
    with pytest.raises(NotImplementedError, match="seqused_q is given"):
        fa3._flash_attn_forward(q, *caches, cu_seqlens_q=cu_q, max_seqlen_q=3, seqused_k=used, seqused_q=used)


def test_flash_attn_3_refuses_what_belongs_to_caches_with_packed_keys() -> None:
    q, cu = randn(4, 4, 16), cumulative(1, 3)
    with pytest.raises(NotImplementedError, match="leftpad_k is given with cu_seqlens_k"):
        fa3._flash_attn_forward(q, q, q, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=3, max_seqlen_k=3, leftpad_k=cu)
