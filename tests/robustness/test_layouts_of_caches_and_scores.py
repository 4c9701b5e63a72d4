"""The fuzz of test_layouts.py for what it leaves out: caches, masks and what else joins the scores."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import flagattn
from tests.robustness.test_layouts import check, dtypes, head_dims, heads, lengths, random, random_layout

# A layout for each of many operands is much to draw.
fuzz = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large, HealthCheck.too_slow],
)


def dense(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def distinct_layout(data: st.DataObject, values: Tensor) -> Tensor:
    """A layout without a dimension of stride 0, for what is written to."""
    while True:
        view = random_layout(data, values)
        if all(stride > 0 for stride in view.stride()):
            return view


@fuzz
@given(st.data(), dtypes, st.integers(0, 4), st.integers(1, 3), heads, head_dims, st.booleans(), st.booleans())
def test_caches(data, dtype, new, seqlen_q, heads, head_dim, paged: bool, is_piecewise: bool) -> None:
    """Queries, new rows, tables and caches; what is written lands in the same places, and gaps stay NaN."""
    heads_q, heads_k = heads
    shape = (9, 5) if paged else (3, 40)
    queries = [random(2, seqlen_q, heads_q, head_dim, dtype=dtype) + i for i in range(1 + is_piecewise)]
    caches = [random(*shape, heads_k, head_dim, dtype=dtype) - i for i in range(2 + is_piecewise)]
    fresh = [random(2, new, heads_k, head_dim, dtype=dtype) * (i + 1) for i in range(len(caches))] if new else []
    tables = [random(30, head_dim // 2, dtype=torch.float32) + i for i in range(2)] if new else []
    given_: dict[str, Any] = {"cache_seqlens": torch.tensor([13, 4], dtype=torch.int32)}
    if paged:
        table = torch.tensor([[3, 0, 8, 1], [2, 7, 5, 6]], dtype=torch.int32)
        given_["block_table"] = data.draw(st.sampled_from([table, table.repeat(1, 2)[:, :4]]))
    elif data.draw(st.booleans()):
        given_["cache_batch_idx"] = torch.tensor([2, 7, 0, 7], dtype=torch.int32)[::2]

    def run(queries: list[Tensor], caches: list[Tensor], fresh: list[Tensor], tables: list[Tensor]) -> Any:
        if is_piecewise:
            return flagattn.piecewise_attn_with_kvcache(*queries, *caches, 3, *fresh, **given_, return_lse=True)
        rows = [*fresh, *tables] if new else []
        return flagattn.flash_attn_with_kvcache(*queries, *caches, *rows, **given_, causal=True, return_lse=True)

    strided = [[random_layout(data, t) for t in group] for group in (queries, fresh, tables)]
    places = [distinct_layout(data, cache) for cache in caches]
    storages = [torch.empty(0, dtype=dtype).set_(cache.untyped_storage()) for cache in places]
    gaps = [int(storage.isnan().sum()) for storage in storages]
    plain = [[dense(t) for t in group] for group in strided]
    plain_caches = [dense(cache) for cache in places]
    expected = run(plain[0], plain_caches, plain[1], plain[2])
    for ours, wanted in zip(run(strided[0], places, strided[1], strided[2]), expected, strict=True):
        assert torch.equal(ours, wanted)
    for ours, wanted in zip(places, plain_caches, strict=True):
        assert torch.equal(ours, wanted)
    assert gaps == [int(storage.isnan().sum()) for storage in storages]


@fuzz
@given(st.data(), dtypes, lengths, lengths, heads, head_dims, st.sampled_from(["keep", "bias", "others"]))
def test_what_joins_the_scores(data, dtype, seqlen_q, seqlen_k, heads, head_dim, what: str) -> None:
    heads_q, heads_k = heads
    q = random(2, heads_q, seqlen_q, head_dim, dtype=dtype)
    k, v = (random(2, heads_k, seqlen_k, head_dim, dtype=dtype) * sign for sign in (1, -1))
    scores = random(2, heads_q, seqlen_q, seqlen_k, dtype=torch.float32)
    upstream = [random(2, heads_q, seqlen_q, head_dim, dtype=dtype)]
    if what == "bias":
        bias = scores.to(data.draw(st.sampled_from([torch.float32, dtype])))
        check(
            data,
            lambda q, k, v, bias: flagattn.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True),
            (q, k, v, bias),
            upstream,
        )
    elif what == "keep":
        outer = data.draw(st.permutations([0, 1, 2]))
        keep = (scores > -0.5).permute(*outer, 3).contiguous().permute(*(outer.index(i) for i in range(3)), 3)
        check(
            data,
            lambda q, k, v: flagattn.scaled_dot_product_attention(q, k, v, attn_mask=keep, enable_gqa=True),
            (q, k, v),
            upstream,
        )
    else:
        slopes = random_layout(data, random(2, heads_q, dtype=torch.float32).abs())
        bshd = tuple(t.transpose(1, 2) for t in (q, k, v, upstream[0]))
        sinks = random(heads_q, dtype=torch.float32)
        check(
            data,
            lambda q, k, v: flagattn.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes, sinks=sinks),
            bshd[:3],
            [bshd[3]],
        )


@fuzz
@given(st.data(), dtypes, lengths, lengths, heads, head_dims)
def test_column_sums_and_merging(data, dtype, seqlen_q, seqlen_k, heads, head_dim) -> None:
    q = random(2, seqlen_q, heads[0], head_dim, dtype=dtype)
    k = random(2, seqlen_k, heads[1], head_dim, dtype=dtype)
    out, lse = flagattn.flash_attn_func(q, k, k, return_lse=True)
    expected = flagattn.attention_column_sums(q, k, lse)
    operands = [random_layout(data, t) for t in (q, k, lse)]
    if all(torch.equal(ours, t) for ours, t in zip(operands, (q, k, lse), strict=True)):  # nothing was expanded
        assert torch.equal(flagattn.attention_column_sums(*operands), expected)
    other = -out
    dout = random(2, seqlen_q, heads[0], head_dim, dtype=dtype)
    check(
        data, lambda a, b, x, y: flagattn.merge_attention_states([a, b], [x, y])[0], (out, other, lse, lse + 1), [dout]
    )
