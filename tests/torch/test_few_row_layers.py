"""The halves of a decoder layer in one call: the bits of the ops that stand for their parts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn
from flagattn._decoder_layers import few_row_attention, few_row_gated_mlp
from flagattn.linear import few_row_linear

HEADS_Q, HEADS_K, HEAD_DIM, FEATURES, HIDDEN = 6, 2, 16, 40, 56
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5


def filled(*sizes: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (torch.randn(*sizes, generator=torch.Generator().manual_seed(seed + sum(sizes))) / 4).to(dtype)


def maps(sizes: list[tuple[int, int]], dtype: torch.dtype, biased: bool) -> tuple[list[Tensor], list[Tensor]]:
    weights = [filled(*size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]
    return weights, [filled(size[0], dtype=dtype) for size in sizes] if biased else []


def mlp_operands(dtype: torch.dtype, biased: bool) -> tuple[list[Tensor], list[Tensor]]:
    return maps([(HIDDEN, FEATURES), (HIDDEN, FEATURES), (FEATURES, HIDDEN)], dtype, biased)


def attention_operands(dtype: torch.dtype, biased: bool) -> tuple[list[Tensor], list[Tensor]]:
    rows = (HEADS_Q * HEAD_DIM, HEADS_K * HEAD_DIM, HEADS_K * HEAD_DIM)
    return maps([(count, FEATURES) for count in rows], dtype, biased)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gated_mlp_has_the_bits_of_its_parts(cpu_level: str, dtype: torch.dtype, biased: bool) -> None:
    x, scale = filled(2, 3, FEATURES, dtype=dtype), filled(FEATURES, dtype=dtype)
    weights, biases = mlp_operands(dtype, biased)
    gate, up = few_row_linear(flagattn.rms_norm(x, scale, EPS), weights[:2], biases[:2]).chunk(2, -1)
    wanted = few_row_linear(flagattn.swiglu(gate, up), weights[2:], biases[2:])
    assert torch.equal(few_row_gated_mlp(x, (scale, EPS), weights, biases), wanted)


MASKS: tuple[dict[str, Any], ...] = (
    {"causal": True},
    {"causal": True, "window_size": (4, -1), "softcap": 3.0},
    {"causal": False, "softmax_scale": 0.4, "cache_leftpad": torch.tensor([2, 0], dtype=torch.int32)},
)


@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: " ".join(masks))
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_has_the_bits_of_its_parts(
    cpu_level: str, dtype: torch.dtype, biased: bool, masks: dict[str, Any]
) -> None:
    x, scale = filled(2, 3, FEATURES, dtype=dtype), filled(FEATURES, dtype=dtype)
    weights, biases = attention_operands(dtype, biased)
    out, out_bias = filled(FEATURES, HEADS_Q * HEAD_DIM, dtype=dtype), filled(FEATURES, dtype=dtype)
    tables = filled(1, 3, HEAD_DIM // 2, dtype=dtype, seed=1), filled(1, 3, HEAD_DIM // 2, dtype=dtype, seed=2)
    used = torch.tensor([9, 5], dtype=torch.int32)
    caches = [filled(2, 20, HEADS_K, HEAD_DIM, dtype=dtype, seed=seed) for seed in (3, 4)]
    copies = [cache.clone() for cache in caches]
    versions = [cache._version for cache in caches]

    heads = few_row_linear(flagattn.rms_norm(x, scale, EPS), weights, biases).view(2, 3, -1, HEAD_DIM)
    q, k, v = heads.split_with_sizes((HEADS_Q, HEADS_K, HEADS_K), 2)
    q, k = flagattn.apply_rotary(q, *tables), flagattn.apply_rotary(k, *tables)
    attended = flagattn.flash_attn_with_kvcache(q, *copies, k, v, cache_seqlens=used, **masks)
    wanted = few_row_linear(attended.reshape(2, 3, -1), [out], [out_bias] if biased else [])

    left, right = masks.get("window_size", (-1, -1))
    found = few_row_attention(
        x,
        (scale, EPS),
        weights,
        biases,
        (out, out_bias if biased else None),
        tables,
        (caches[0], caches[1]),
        used,
        masks.get("cache_leftpad"),
        masks.get("softmax_scale", HEAD_DIM**-0.5),
        (left, 0 if masks["causal"] else right),
        masks.get("softcap", 0.0),
    )
    assert torch.equal(found, wanted)
    for cache, copy, version in zip(caches, copies, versions):
        assert torch.equal(cache, copy) and cache._version > version


def attention_arguments() -> list[Any]:
    weights, biases = attention_operands(torch.float32, True)
    x, scale = filled(1, 1, FEATURES, dtype=torch.float32), filled(FEATURES, dtype=torch.float32)
    out = filled(FEATURES, HEADS_Q * HEAD_DIM, dtype=torch.float32)
    table, cache = torch.ones(1, 1, HEAD_DIM // 2), filled(1, 8, HEADS_K, HEAD_DIM, dtype=torch.float32)
    used = torch.tensor([5], dtype=torch.int32)
    caches = [cache, cache.clone()]
    return [x, scale, EPS, weights, biases, out, None, table, table.clone(), *caches, used, None, 0.25, -1, 0, 0.0]


def mlp_arguments() -> list[Any]:
    x, scale = filled(1, 1, FEATURES, dtype=torch.float32), filled(FEATURES, dtype=torch.float32)
    return [x, scale, EPS, *mlp_operands(torch.float32, True)]


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.flagattn.few_row_gated_mlp.default, mlp_arguments())
    torch.library.opcheck(torch.ops.flagattn.few_row_attention.default, attention_arguments())


def test_the_ops_check_for_themselves() -> None:
    weights, _ = attention_operands(torch.float32, False)
    for message, place, wrong in (
        ("x has shape (40,); it must be (batch, seqlen, features)", 0, torch.randn(FEATURES)),
        ("weights has 2 tensors; it must have 3", 3, weights[:2]),
        ("weights has a tensor of shape (40,)", 3, [weights[0][0]] * 3),
        ("biases has 1 tensors; it must have 3 or none", 4, [torch.randn(HEADS_Q * HEAD_DIM)]),
        ("k_cache and v_cache have shapes (8, 2, 16)", 9, torch.randn(8, HEADS_K, HEAD_DIM)),
        ("have 32, 32 and 96 rows; they must be those of heads like the caches'", 3, weights[::-1]),
    ):
        arguments = attention_arguments()
        arguments[place] = wrong
        if place == 3:
            arguments[4] = []
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.ops.flagattn.few_row_attention(*arguments)
    arguments = mlp_arguments()
    arguments[3] = [arguments[3][0], arguments[3][0][:5], arguments[3][2]]
    with pytest.raises(RuntimeError, match=re.escape("weights of gate and up have 56 and 5 rows")):
        torch.ops.flagattn.few_row_gated_mlp(*arguments)
