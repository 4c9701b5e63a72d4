"""FlashAttention-2's names: where they differ from flagattn's own, and what frameworks call below autograd."""

from __future__ import annotations

import inspect
import math
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

import flagattn
from flagattn.compat import flash_attn, vllm
from flagattn.compat.flash_attn import bert_padding
from flagattn.compat.flash_attn import flash_attn_interface as interface
from flagattn.compat.flash_attn.layers import rotary
from flagattn.compat.flash_attn.losses.cross_entropy import CrossEntropyLoss
from flagattn.compat.flash_attn.ops.rms_norm import RMSNorm


def paged_call(function: str, table: list[list[int]], lengths: list[int]) -> Any:
    """Two queries for each of two sequences of keys in 5 pages of 4 rows, by FlashAttention-2's or vLLM's function."""
    q, k, v = randn(4, 2, 16), randn(5, 4, 2, 16, seed=1), randn(5, 4, 2, 16, seed=2)
    cu_q, pages = torch.tensor([0, 2, 4], dtype=torch.int32), torch.tensor(table, dtype=torch.int32)
    used = torch.tensor(lengths, dtype=torch.int32)
    if function == "vllm":
        return vllm.flash_attn_varlen_func(q, k, v, 2, cu_q, 99, seqused_k=used, block_table=pages)
    cu_k = torch.cat([used.new_zeros(1), used.cumsum(0, dtype=torch.int32)])
    return flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 2, 99, block_table=pages)


@pytest.mark.parametrize("function", ["flash_attn", "vllm"])
def test_wrong_pages_in_use_are_named_and_unused_ones_are_not_read(function: str) -> None:
    expected = paged_call(function, [[3, 1], [0, 4]], [5, 4])
    assert torch.equal(paged_call(function, [[3, 1], [0, -1]], [5, 4]), expected)
    assert torch.equal(paged_call(function, [[3, 1], [0, 999]], [5, 4]), expected)
    for page in (-1, 5, 999):
        with pytest.raises(RuntimeError, match=rf"block_table\[0\]\[1\] is {page}; the cache has 5 pages"):
            paged_call(function, [[3, page], [0, 4]], [5, 4])
    with pytest.raises(RuntimeError, match=r"9; .* 2 pages of 4 rows that block_table has"):
        paged_call(function, [[3, 1], [0, 4]], [9, 4])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


def cumulative(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


PRIVATE = {
    "_flash_attn_forward": """
        q k v dropout_p softmax_scale causal window_size_left window_size_right softcap alibi_slopes
        return_softmax
    """,
    "_flash_attn_varlen_forward": """
        q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal
        window_size_left window_size_right softcap alibi_slopes return_softmax block_table leftpad_k
        seqused_k zero_tensors num_splits
    """,
    "_flash_attn_backward": """
        dout q k v out softmax_lse dq dk dv dropout_p softmax_scale causal window_size_left
        window_size_right softcap alibi_slopes deterministic rng_state
    """,
    "_flash_attn_varlen_backward": """
        dout q k v out softmax_lse dq dk dv cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p
        softmax_scale causal window_size_left window_size_right softcap alibi_slopes deterministic rng_state
        zero_tensors
    """,
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_functions_take_their_arguments_in_order(name: str) -> None:
    assert list(inspect.signature(getattr(interface, name)).parameters) == PRIVATE[name].split()


@pytest.mark.parametrize("name", flash_attn.__all__)
def test_public_functions_have_the_signatures_of_flagattns(name: str) -> None:
    positional = [
        p for p in inspect.signature(getattr(flagattn, name)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    ours = inspect.signature(getattr(flash_attn, name)).parameters.values()
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in positional]


def test_empty_rows_have_a_positive_infinite_lse() -> None:
    q, k = randn(1, 7, 2, 16), randn(1, 4, 2, 16, seed=1)
    out, lse, probabilities = flash_attn.flash_attn_func(q, k, k, causal=True, return_attn_probs=True)
    assert torch.equal(lse[0, :, :3], torch.full((2, 3), math.inf)) and lse[0, :, 3:].isfinite().all()
    assert out[0, :3].abs().sum() == 0 and probabilities.numel() == 0


def test_windows_may_be_tensors_and_negative() -> None:
    q = randn(1, 9, 2, 16)
    window = torch.tensor([3, 1])
    ours = flash_attn.flash_attn_func(q, q, q, window_size=window)
    assert torch.equal(ours, flagattn.flash_attn_func(q, q, q, window_size=(3, 1)))
    unbounded = flash_attn.flash_attn_func(q, q, q, window_size=(-5, -7))
    assert torch.equal(unbounded, flagattn.flash_attn_func(q, q, q))


def test_packed_queries_read_paged_keys() -> None:
    page, pages = 4, 11
    k_pages, v_pages = randn(pages, page, 2, 16, seed=1), randn(pages, page, 2, 16, seed=2)
    k_pages[10], v_pages[10] = math.nan, math.nan  # no sequence has this page
    table = torch.tensor([[3, 0, 7], [5, 9, 10], [1, 10, 10]], dtype=torch.int32)
    lengths = [9, 8, 3]
    q, cu_q, cu_k = randn(6, 4, 16), cumulative(2, 3, 1), cumulative(*lengths)
    paged = flash_attn.flash_attn_varlen_func(q, k_pages, v_pages, cu_q, cu_k, 3, 9, causal=True, block_table=table)
    k, v = (
        torch.cat([cache[row.long()].flatten(0, 1)[:length] for row, length in zip(table, lengths)])
        for cache in (k_pages, v_pages)
    )
    expected = flagattn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, torch.tensor(3).item(), 9, causal=True)
    assert torch.equal(paged, expected)


@pytest.mark.parametrize(("heads", "head_dim"), [(2, 16), (1, 20)], ids=["mha", "gqa, padded head dim"])
def test_the_private_pair_is_the_public_function_with_its_gradient(heads: int, head_dim: int) -> None:
    q = randn(2, 9, 2, head_dim, grad=True)
    k, v = (randn(2, 6, heads, head_dim, seed=seed, grad=True) for seed in (1, 2))
    expected, expected_lse, _ = flash_attn.flash_attn_func(q, k, v, causal=True, softcap=2.0, return_attn_probs=True)
    scale = head_dim**-0.5
    out, lse, dmask, rng_state = interface._flash_attn_forward(q, k, v, 0.0, scale, True, -1, -1, 2.0, None, False)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse) and not out.requires_grad
    assert dmask.numel() == 0 and rng_state.shape == (2,)
    dout = randn(*out.shape, seed=3)
    gradients = [torch.full_like(operand, math.nan) for operand in (q, k, v)]
    delta = interface._flash_attn_backward(
        dout, q, k, v, out, lse, *gradients, 0.0, scale, True, -1, -1, 2.0, None, False
    )
    for ours, public in zip(gradients, torch.autograd.grad(expected, (q, k, v), dout)):
        assert torch.equal(ours, public)
    torch.testing.assert_close(delta, (dout * out).sum(-1).transpose(1, 2))


def test_the_private_varlen_pair_is_the_public_function_with_its_gradient() -> None:
    cu_q, cu_k = cumulative(5, 0, 8), cumulative(7, 3, 4)
    q, k, v = (randn(rows, heads, 16, seed=rows, grad=True) for rows, heads in ((13, 4), (14, 2), (14, 2)))
    packing = (cu_q, cu_k, 8, torch.tensor(7))
    expected, expected_lse, _ = flash_attn.flash_attn_varlen_func(
        q, k, v, *packing, window_size=(3, 1), return_attn_probs=True
    )
    out, lse, *_ = interface._flash_attn_varlen_forward(q, k, v, *packing, 0.0, 0.25, False, 3, 1)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    dout = randn(*out.shape, seed=3)
    dq, dk, dv = (torch.empty_like(operand) for operand in (q, k, v))
    delta = interface._flash_attn_varlen_backward(
        dout, q, k, v, out, lse, dq, dk, dv, *packing, 0.0, 0.25, False, 3, 1, 0.0, None, False
    )
    for ours, public in zip((dq, dk, dv), torch.autograd.grad(expected, (q, k, v), dout)):
        assert torch.equal(ours, public)
    assert delta.shape == lse.shape


def test_gradients_of_parts_add_up_with_the_merged_output() -> None:
    # Ring attention: each part of the keys is given the output and the LSE over all of them.
    q, k, v = (randn(1, 8, 2, 16, seed=seed, grad=True) for seed in range(3))
    whole, lse, _ = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True)
    dout = randn(*whole.shape, seed=3)
    dq, dk, dv = torch.autograd.grad(whole, (q, k, v), dout)
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        gradients = [torch.empty_like(operand) for operand in (q, k[:, rows], v[:, rows])]
        interface._flash_attn_backward(
            dout, q, k[:, rows], v[:, rows], whole, lse, *gradients, 0.0, 0.25, False, -1, -1, 0.0, None, True
        )
        parts.append(gradients)
    torch.testing.assert_close(parts[0][0] + parts[1][0], dq)
    torch.testing.assert_close(torch.cat((parts[0][1], parts[1][1]), 1), dk)
    torch.testing.assert_close(torch.cat((parts[0][2], parts[1][2]), 1), dv)


def test_used_keys_and_left_padding_of_pages() -> None:
    q, k, v = randn(3, 2, 16), randn(12, 2, 16, seed=1), randn(12, 2, 16, seed=2)
    cu_q, cu_k = cumulative(1, 2), cumulative(5, 7)
    out, *_ = interface._flash_attn_varlen_forward(
        q, k, v, cu_q, cu_k, 2, 7, 0.0, 0.25, True, seqused_k=torch.tensor([3, 6], dtype=torch.int32)
    )
    index = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9, 10])
    expected = flagattn.flash_attn_varlen_func(q, k[index], v[index], cu_q, cumulative(3, 6), 2, 6, causal=True)
    assert torch.equal(out, expected)
    pages = k.view(3, 4, 2, 16), v.view(3, 4, 2, 16)
    out, *_ = interface._flash_attn_varlen_forward(
        q[:1],
        *pages,
        cumulative(1),
        cumulative(12),
        1,
        12,
        0.0,
        0.25,
        True,
        block_table=torch.tensor([[0, 1, 2]], dtype=torch.int32),
        leftpad_k=torch.tensor([2], dtype=torch.int32),
        seqused_k=torch.tensor([9], dtype=torch.int32),
    )
    expected = flagattn.flash_attn_varlen_func(q[:1], k[2:9], v[2:9], cumulative(1), cumulative(7), 1, 7)
    assert torch.equal(out, expected)
    out, *_ = interface._flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_q,
        cu_k,
        2,
        7,
        0.0,
        0.25,
        True,
        leftpad_k=torch.tensor([2, 0], dtype=torch.int32),
        seqused_k=torch.tensor([3, 6], dtype=torch.int32),
    )
    index = torch.tensor([2, 5, 6, 7, 8, 9, 10])
    expected = flagattn.flash_attn_varlen_func(q, k[index], v[index], cu_q, cumulative(1, 6), 2, 6, causal=True)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("leftpad", "used", "sentence"),
    [
        ([0, -1], [3, 6], r"leftpad_k\[1\] is -1; it must lie between 0 and the rows in use"),
        ([4, 0], [3, 6], r"leftpad_k\[0\] is 4; "),
        ([0, 0], [3, -2], r"seqused_k\[1\] is -2; it must lie between 0 and its rows"),
    ],
)
def test_padding_of_packed_keys_outside_their_rows_is_refused(leftpad: list, used: list, sentence: str) -> None:
    q, k, v = randn(2, 4, 16), randn(12, 2, 16), randn(12, 2, 16)
    rows = {"leftpad_k": torch.tensor(leftpad, dtype=torch.int32), "seqused_k": torch.tensor(used, dtype=torch.int32)}
    with pytest.raises(RuntimeError, match=sentence):
        interface._flash_attn_varlen_forward(q, k, v, cumulative(1, 1), cumulative(5, 7), 1, 7, 0.0, 0.25, True, **rows)


def test_queries_of_pages_may_require_a_gradient_that_no_backward_asks_for() -> None:
    q, pages = randn(6, 4, 16, grad=True), randn(2, 3, 4, 2, 16)
    packing = (cumulative(6), cumulative(11), 6, 11)
    out = flash_attn.flash_attn_varlen_func(q, *pages, *packing, block_table=torch.tensor([[2, 0, 1]]).int())
    assert out.requires_grad
    with pytest.raises(RuntimeError, match="no gradient: gather the keys and values of the pages"):
        out.sum().backward()


def test_alibi_slopes_that_require_a_gradient_get_none() -> None:
    q, k, v = (randn(2, 9, heads, 16, seed=heads, grad=True) for heads in (4, 2, 2))
    slopes = torch.rand(4, requires_grad=True)
    out = flash_attn.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes)
    assert torch.equal(out, flagattn.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes.detach()))
    out.sum().backward()
    assert slopes.grad is None and q.grad is not None
    caches = (operand.detach() for operand in (q, k, v))
    assert torch.equal(flash_attn.flash_attn_with_kvcache(*caches, causal=True, alibi_slopes=slopes), out)


def test_dropout_is_the_same_in_both_directions_and_is_shown() -> None:
    q, k, v = (randn(2, 9, heads, 16, seed=heads, grad=True) for heads in (4, 2, 2))
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0])
    torch.manual_seed(3)
    expected, lse, weights = flash_attn.flash_attn_func(
        q, k, v, 0.3, causal=True, alibi_slopes=slopes, return_attn_probs=True
    )
    assert weights.shape == (2, 4, 128, 128)
    kept = weights[:, :, :9, :9]
    probabilities = kept.abs() / kept.abs().sum(-1, keepdim=True)
    dropped = torch.where(kept > 0, probabilities / 0.7, 0.0)
    values = v.repeat_interleave(2, 2)
    torch.testing.assert_close(expected, torch.einsum("bhij,bjhd->bihd", dropped, values))
    torch.manual_seed(3)
    out, private_lse, dmask, rng_state = interface._flash_attn_forward(
        q, k, v, 0.3, 0.25, True, -1, -1, 0.0, slopes, True
    )
    assert torch.equal(out, expected) and torch.equal(private_lse, lse) and torch.equal(dmask, weights)
    dout = randn(*out.shape, seed=3)
    gradients = [torch.empty_like(operand) for operand in (q, k, v)]
    interface._flash_attn_backward(
        dout, q, k, v, out, lse, *gradients, 0.3, 0.25, True, -1, -1, 0.0, slopes, False, rng_state
    )
    for ours, public in zip(gradients, torch.autograd.grad(expected, (q, k, v), dout)):
        assert torch.equal(ours, public)
    with pytest.raises(ValueError, match="rng_state is None"):
        interface._flash_attn_backward(dout, q, k, v, out, lse, *gradients, 0.3, 0.25, True, -1, -1, 0.0, None, False)


def test_dropout_of_packed_sequences_is_shown() -> None:
    qkv, cu = randn(12, 3, 2, 16), cumulative(5, 0, 7)
    out, _, weights = flash_attn.flash_attn_varlen_qkvpacked_func(qkv, cu, 7, 0.4, return_attn_probs=True)
    for sequence, (begin, end) in enumerate(((0, 5), (5, 5), (5, 12))):
        kept = weights[sequence, :, : end - begin, : end - begin]
        dropped = torch.where(kept > 0, kept.abs() / kept.abs().sum(-1, keepdim=True) / 0.6, 0.0)
        expected = torch.einsum("hij,jhd->ihd", dropped, qkv[begin:end, 2])
        torch.testing.assert_close(out[begin:end], expected)


# ---- padding ----


def test_unpadding_and_padding_are_inverse_and_differentiable() -> None:
    x = randn(3, 6, 4, grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 1]])
    rows, indices, cu, longest, used = bert_padding.unpad_input(x, mask)
    assert torch.equal(cu, cumulative(3, 0, 4)) and cu.dtype == torch.int32
    assert longest == 4 and used.tolist() == [3, 0, 4] and rows.shape == (7, 4)
    padded = bert_padding.pad_input(rows, indices, 3, 6)
    assert torch.equal(padded, x * mask.unsqueeze(-1))
    (gradient,) = torch.autograd.grad(padded.sum(), x)
    assert torch.equal(gradient, mask.unsqueeze(-1).expand_as(x).float())


def test_rows_kept_though_unused_are_counted_apart() -> None:
    mask = torch.tensor([[True, True, False, False]])
    unused = torch.tensor([[False, False, True, False]])
    rows, _, cu, longest, used = bert_padding.unpad_input(randn(1, 4, 2), mask, unused)
    assert rows.shape == (3, 2) and cu.tolist() == [0, 3] and longest == 3 and used.tolist() == [2]


def test_concatenated_sequences_are_unpadded_by_their_lengths() -> None:
    x = randn(2, 6, 3)
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    rows, indices, cu, longest = bert_padding.unpad_input_for_concatenated_sequences(x, lengths)
    assert indices.tolist() == [0, 1, 2, 3, 4, 6] and cu.tolist() == [0, 2, 5, 6] and longest == 3
    assert torch.equal(rows, x.flatten(0, 1)[indices])


# ---- rotary ----


def tables(rows: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = randn(rows, channels, seed=9)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("offset", [0, 3, torch.tensor([2, 5])], ids=["0", "3", "tensor"])
def test_rotary_at_offsets_equals_torchs_formula_with_its_gradient(interleaved, inplace, offset) -> None:
    cos, sin = tables(16, 5)
    x = randn(2, 7, 3, 12, grad=True)
    positions = torch.as_tensor(offset).reshape(-1, 1) + torch.arange(7)
    reference = x.detach().clone().requires_grad_()
    expected = rotary.apply_rotary_emb_torch(reference, cos[positions], sin[positions], interleaved)
    out = rotary.apply_rotary_emb(x, cos, sin, interleaved, inplace, offset)
    torch.testing.assert_close(out, expected)
    assert (out.data_ptr() == x.data_ptr()) == inplace
    dout = randn(*out.shape, seed=1)
    torch.testing.assert_close(
        *(torch.autograd.grad(o, leaf, dout)[0] for o, leaf in ((out, x), (expected, reference)))
    )


def test_rotary_of_packed_sequences_starts_anew_in_each() -> None:
    cos, sin = tables(16, 4)
    x, cu = randn(9, 2, 8), cumulative(4, 0, 5)
    out = rotary.apply_rotary_emb(x, cos, sin, cu_seqlens=cu, max_seqlen=5, seqlen_offsets=torch.tensor([1, 0, 6]))
    for begin, end, first in ((0, 4, 1), (4, 9, 6)):
        part = rotary.apply_rotary_emb(x[begin:end].unsqueeze(0), cos, sin, seqlen_offsets=first)
        assert torch.equal(out[begin:end], part[0])


@pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="Python.h is missing, so torch.compile cannot compile its C++ (apt install python3-dev)",
)
def test_compiled_stacked_rotary_turns_each_part_once() -> None:
    """Inductor once turned the queries of the second program twice and its keys not at all."""
    compiled = torch.compile(rotary.apply_rotary_emb_qkv_)
    angles = torch.randn(6, 64)
    for shape, num_heads_q in (((2, 6, 8, 128), 4), ((2, 6, 3, 4, 128), None)):
        qkv = torch.randn(shape)
        expected = rotary.apply_rotary_emb_qkv_(qkv.clone(), angles.cos(), angles.sin(), num_heads_q=num_heads_q)
        traced = qkv.clone().requires_grad_()
        out = compiled(traced, angles.cos(), angles.sin(), num_heads_q=num_heads_q)
        assert torch.equal(out, expected)
        dout = torch.randn_like(out)
        (dqkv,) = torch.autograd.grad(out, traced, dout)
        back = rotary.apply_rotary_emb_qkv_(dout.clone(), angles.cos(), -angles.sin(), num_heads_q=num_heads_q)
        assert torch.equal(dqkv, back)


@pytest.mark.parametrize("grouped", [False, True])
def test_stacked_rotary_turns_queries_and_keys_only(grouped: bool) -> None:
    cos, sin = tables(8, 4)
    cos_k, sin_k = tables(8, 4)
    stacked = randn(2, 8, 5, 8) if grouped else randn(2, 8, 3, 2, 8)
    q, k, v = stacked.split([3, 1, 1], 2) if grouped else stacked.unbind(2)
    expected = [rotary.apply_rotary_emb(q, cos, sin), rotary.apply_rotary_emb(k, cos_k, sin_k), v]
    expected = torch.cat(expected, 2) if grouped else torch.stack(expected, 2)
    leaf = stacked.clone().requires_grad_()
    out = rotary.apply_rotary_emb_qkv_(leaf, cos, sin, cos_k, sin_k, num_heads_q=3 if grouped else None)
    assert torch.equal(out, expected) and out.data_ptr() == leaf.data_ptr()
    dout = randn(*out.shape, seed=1)
    kept = dout.clone()
    (gradient,) = torch.autograd.grad(out, leaf, dout)
    values = gradient[:, :, 4:] if grouped else gradient[:, :, 2]
    assert torch.equal(values, dout[:, :, 4:] if grouped else dout[:, :, 2]) and torch.equal(dout, kept)


def test_the_module_rotates_q_and_kv_and_grows_its_tables() -> None:
    module = rotary.RotaryEmbedding(8, scale_base=512)
    q, kv = randn(1, 6, 2, 8), randn(1, 6, 2, 1, 8, seed=1)
    expected_v = kv[:, :, 1].clone()
    rotated_q, rotated_kv = module(q.clone(), kv.clone(), seqlen_offset=4)
    assert torch.equal(rotated_kv[:, :, 1], expected_v) and not torch.equal(rotated_q, q)
    assert rotated_q.isfinite().all() and not module.state_dict()
    qkv = randn(1, 20, 3, 2, 8)
    plain = rotary.RotaryEmbedding(8)
    out = plain(qkv.clone())
    angles = torch.outer(torch.arange(20.0), 10000.0 ** (-torch.arange(0, 8, 2) / 8))
    torch.testing.assert_close(out[:, :, 0], rotary.apply_rotary_emb_torch(qkv[:, :, 0], angles.cos(), angles.sin()))


def test_rms_norm_is_flagattns() -> None:
    module, x = RMSNorm(16), randn(3, 16)
    torch.testing.assert_close(module(x), torch.nn.functional.rms_norm(x, (16,), eps=1e-5))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_torchs_with_the_parts_of_the_z_loss(reduction: str) -> None:
    logits, targets = randn(6, 11, grad=True), torch.tensor([3, -100, 0, 10, 5, -100])
    module = CrossEntropyLoss(
        reduction=reduction, label_smoothing=0.1, logit_scale=0.5, lse_square_scale=0.25, return_z_loss=True
    )
    loss, z_loss = module(logits, targets)
    squares = 0.25 * (logits * 0.5).logsumexp(-1).square() * (targets != -100)
    expected_z = {"mean": squares.sum() / 4, "sum": squares.sum(), "none": squares}[reduction]
    plain = torch.nn.functional.cross_entropy(logits * 0.5, targets, reduction=reduction, label_smoothing=0.1)
    torch.testing.assert_close(z_loss, expected_z.detach())
    torch.testing.assert_close(loss, plain + expected_z)
    dloss = torch.ones_like(loss)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits, dloss)[0], torch.autograd.grad(plain + expected_z, logits, dloss)[0]
    )
    with pytest.raises(NotImplementedError, match="process_group"):
        CrossEntropyLoss(process_group=object())
