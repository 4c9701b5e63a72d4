"""vLLM's attention to chosen blocks and columns, against the score matrix with the others hidden."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flagattn import reference
from flagattn.compat import vllm

HEADS, SEQLEN_K = 4, 200


def operands(seqlen_q: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = ((batch, seqlen_q, HEADS, 32), *((batch, SEQLEN_K, 2, 32),) * 2)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def choice(batch: int, tiles: int) -> tuple[list[Tensor], Tensor]:
    """Blocks at keys 0 and 150 and up to three columns, none for the last tile; and (batch, heads, tiles, keys) of it.

    Entries that do not count are far outside.
    """
    shape = (batch, HEADS, tiles)
    generator = torch.Generator().manual_seed(8)
    blocks = torch.randint(0, 3, shape, generator=generator, dtype=torch.int32)
    columns = torch.randint(0, 4, shape, generator=generator, dtype=torch.int32)
    blocks[-1, -1, -1] = columns[-1, -1, -1] = 0
    offsets = torch.tensor([0, 150], dtype=torch.int32).expand(*shape, 2).clone()
    indices = torch.tensor([70, 149, 99], dtype=torch.int32).expand(*shape, 3).clone()
    keep = torch.zeros(*shape, SEQLEN_K, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        b, h, t = place
        for begin in offsets[b, h, t, : blocks[b, h, t]].tolist():
            keep[b, h, t, begin : begin + 64] = True
        keep[b, h, t, indices[b, h, t, : columns[b, h, t]].long()] = True
        offsets[b, h, t, blocks[b, h, t] :] = -(2**31)
        indices[b, h, t, columns[b, h, t] :] = 2**31 - 1
    return [blocks, offsets, columns, indices], keep


def by_rows(keep: Tensor, seqlen_q: int) -> Tensor:
    return keep[:, :, torch.arange(seqlen_q) // 64]


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"softcap": 2.0, "softmax_scale": 0.7}], ids=str)
@pytest.mark.parametrize("seqlen_q", [1, 130, 200])
def test_the_chosen_keys_are_seen(seqlen_q: int, options: dict) -> None:
    q, k, v = operands(seqlen_q)
    sparse, keep = choice(2, math.ceil(seqlen_q / 64))
    out, lse = vllm.sparse_attn_func(q, k, v, *sparse, return_softmax_lse=True, **options)
    expected, expected_lse = reference.attention(q, k, v, keep=by_rows(keep, seqlen_q), **options)
    torch.testing.assert_close(out, expected)
    assert torch.isneginf(expected_lse).any()
    torch.testing.assert_close(lse, expected_lse.masked_fill(torch.isneginf(expected_lse), math.inf))


def test_biases_by_distance_join_every_chosen_key() -> None:
    q, k, v = operands(130)
    sparse, keep = choice(2, 3)
    slopes = torch.rand(2, HEADS)
    out = vllm.sparse_attn_func(q, k, v, *sparse, alibi_slopes=slopes)
    torch.testing.assert_close(out, reference.attention(q, k, v, keep=by_rows(keep, 130), alibi_slopes=slopes)[0])


def test_a_key_that_is_chosen_twice_counts_twice() -> None:
    q, k, v = operands(64, batch=1)
    one = torch.ones(1, HEADS, 1, dtype=torch.int32)
    offsets, columns = torch.zeros(1, HEADS, 1, 1, dtype=torch.int32), torch.full((1, HEADS, 1, 2), 5)
    out = vllm.sparse_attn_func(q, k, v, one, offsets, 2 * one, columns)
    keys = [*range(64), 5, 5]
    torch.testing.assert_close(out, reference.attention(q, k[:, keys], v[:, keys])[0])


def test_packed_sequences_are_those_by_themselves() -> None:
    q, k, v = operands(130, batch=1)
    sparse, _ = choice(3, 2)
    cu_q = torch.tensor([0, 30, 30, 130], dtype=torch.int32)
    cu_k = torch.tensor([0, 0, 0, SEQLEN_K], dtype=torch.int32)
    sparse[0][:2] = sparse[2][:2] = 0  # the first two sequences have no key
    slopes, out = torch.rand(3, HEADS), torch.full_like(q[0], math.nan)
    result, lse = vllm.sparse_attn_varlen_func(
        q[0], k[0], v[0], *sparse, cu_q, cu_k, 100, SEQLEN_K, alibi_slopes=slopes, return_softmax_lse=True, out=out
    )
    last = [tensor[2:] for tensor in sparse]
    alone, alone_lse = vllm.sparse_attn_func(q[:, 30:], k, v, *last, alibi_slopes=slopes[2:], return_softmax_lse=True)
    assert result is out and torch.equal(out[30:], alone[0]) and torch.equal(lse[:, 30:], alone_lse[0])
    assert not out[:30].any() and torch.isposinf(lse[:, :30]).all()


def test_wrong_choices_are_refused_in_one_sentence() -> None:
    q, k, v = operands(130)
    sparse, _ = choice(2, 3)
    beyond = [sparse[0], torch.full_like(sparse[1], SEQLEN_K), *sparse[2:]]
    beyond[0] = torch.ones_like(sparse[0])
    with pytest.raises(RuntimeError, match=r"block_offset\[0, 0, 0, 0\] is 200; it must be a key, from 0 to 199"):
        vllm.sparse_attn_func(q, k, v, *beyond)
    with pytest.raises(ValueError, match=r"block_count has shape \(2, 4, 2\); it must be .* = \(2, 4, 3\)"):
        vllm.sparse_attn_func(q, k, v, sparse[0][:, :, 1:], *sparse[1:])
    with pytest.raises(TypeError, match="column_count is float32; it must be int32 or int64"):
        vllm.sparse_attn_func(q, k, v, *sparse[:2], sparse[2].float(), sparse[3])


@pytest.mark.parametrize("count", [-3, 4])
def test_counts_beyond_their_entries_are_refused(count: int) -> None:
    q, k, v = operands(130)
    sparse, _ = choice(2, 3)
    sparse[2][1, 3, 2] = count
    with pytest.raises(RuntimeError, match=rf"column_count\[1, 3, 2\] is {count}; it must be from 0 to 3$"):
        vllm.sparse_attn_func(q, k, v, *sparse)
    sparse, _ = choice(2, 3)
    sparse[0][0, 1, 1] = count
    with pytest.raises(RuntimeError, match=rf"block_count\[0, 1, 1\] is {count}; it must be from 0 to 2$"):
        vllm.sparse_attn_func(q, k, v, *sparse)


@pytest.mark.parametrize(
    ("name", "values", "longest", "told"),
    [
        ("q", [1, 30, 130], 100, "starts with 1; it must start with 0"),
        ("q", [0, 140, 130], 140, "falls from 140 to 130 at index 2; it must not decrease"),
        ("q", [0, 30, 131], 101, "ends with 131, but the tensor has 130 rows; it must not end behind them"),
        ("q", [0, 30, 130], 99, "gives sequence 1 the length 100, but its max_seqlen is 99; no sequence may be longer"),
        ("k", [0, 0, 201], 201, "ends with 201, but the tensor has 200 rows; it must not end behind them"),
        ("k", [0, 0, 200], 20, "gives sequence 1 the length 200, but its max_seqlen is 20; no sequence may be longer"),
    ],
)
def test_wrong_packings_are_refused(name: str, values: list[int], longest: int, told: str) -> None:
    q, k, v = operands(130, batch=1)
    packing = {"q": ([0, 30, 130], 100), "k": ([0, 0, SEQLEN_K], SEQLEN_K)} | {name: (values, longest)}
    (cu_q, longest_q), (cu_k, longest_k) = (
        (torch.tensor(cu_seqlens, dtype=torch.int32), most) for cu_seqlens, most in packing.values()
    )
    with pytest.raises(RuntimeError, match=f"cu_seqlens_{name} {told}"):
        vllm.sparse_attn_varlen_func(q[0], k[0], v[0], *choice(2, 2)[0], cu_q, cu_k, longest_q, longest_k)


def test_a_wrong_count_of_packed_sequences_is_told_with_its_sequence() -> None:
    q, k, v = operands(130, batch=1)
    sparse, _ = choice(2, 2)
    sparse[0][:1] = sparse[2][:1] = 0  # the first sequence has no key
    sparse[2][1, 0, 1] = 9
    cu_q, cu_k = (torch.tensor(values, dtype=torch.int32) for values in ([0, 30, 130], [0, 0, SEQLEN_K]))
    with pytest.raises(RuntimeError, match=r"column_count\[1, 0, 1\] is 9; it must be from 0 to 3"):
        vllm.sparse_attn_varlen_func(q[0], k[0], v[0], *sparse, cu_q, cu_k, 100, SEQLEN_K)


def test_out_of_another_shape_is_refused() -> None:
    q, k, v = operands(130, batch=1)
    sparse, _ = choice(1, 3)
    with pytest.raises(ValueError, match=r"out has shape \(2, 130, 4, 32\), but the result has \(1, 130, 4, 32\)"):
        vllm.sparse_attn_func(q, k, v, *sparse, out=q.new_empty(2, *q.shape[1:]))
    cu_q, cu_k = (torch.tensor([0, rows], dtype=torch.int32) for rows in (130, SEQLEN_K))
    for attend, given in ((vllm.sparse_attn_varlen_func, sparse), (vllm.flash_attn_varlen_func, None)):
        packing = (130, cu_q, SEQLEN_K, cu_k) if given is None else (*given, cu_q, cu_k, 130, SEQLEN_K)
        with pytest.raises(ValueError, match=r"out has shape \(2, 130, 4, 32\), but the result has \(130, 4, 32\)"):
            attend(q[0], k[0], v[0], *packing, out=q.new_empty(2, *q.shape[1:]))
