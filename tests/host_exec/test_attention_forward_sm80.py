"""The sm_80 attention forward kernel, executed on the CPU, against the oracle over the shared case list."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from flagattn.testing import (
    DENSE_CASES,
    PIECEWISE_CASES,
    SCORE_CASES,
    VARLEN_CASES,
    AttentionCase,
    assert_all_close_to_oracle,
    attention_by_reference,
    make_inputs,
)
from tests.host_exec import kernels

OUTSIDE, INTERLEAVED = "heads_outside", "interleaved_rows"  # of the layouts those on 16-byte borders
OWN_CASES = (
    AttentionCase("aligned_layouts", 77, 141, batch=2, heads_q=4, causal=True, layouts=(OUTSIDE, INTERLEAVED) * 2),
    AttentionCase("aligned_layouts_dim_40", 70, 70, batch=2, head_dim=40, head_dim_v=24, layouts=(INTERLEAVED,) * 4),
    AttentionCase("dim_128_gqa", 150, 200, heads_q=6, head_dim=128, causal=True),
    AttentionCase("dim_96_window", 150, 200, head_dim=96, window_size=(50, 30), layouts=(OUTSIDE,) * 4),
    AttentionCase("dim_192_long", 150, 300, head_dim=192, causal=True, softcap=7.0),
    AttentionCase("dim_256_long", 130, 200, heads_q=4, head_dim=256, causal=True, layouts=(INTERLEAVED,) * 4),
    AttentionCase("terms_dim_96", 70, 90, head_dim=96, bias="1hqk", keep="b11k", batch=2, dropout_p=0.2),
    AttentionCase("terms_dim_128", 70, 150, head_dim=128, bias="bhqk", keep="11qk", alibi="h", sinks=True),
    AttentionCase("terms_dim_192", 67, 90, head_dim=192, alibi="h", keep="bhqk", dropout_p=0.5, softcap=4.0),
    AttentionCase("terms_dim_256", 67, 70, head_dim=256, bias="1hqk", keep="b11k", alibi="h", causal=True),
    AttentionCase("piecewise_dim_96", 203, 203, head_dim=96, dist_threshold=70, causal=True),
    AttentionCase("piecewise_dim_192", 90, 150, head_dim=192, dist_threshold=33, window_size=(80, 4)),
    AttentionCase(
        "unused_rows_behind",
        lengths=((50, 60), (31, 20)),
        causal=True,
        unused_rows=300,
        layouts=(INTERLEAVED,) * 4,
    ),
)
ALL_CASES = (*DENSE_CASES, *VARLEN_CASES, *PIECEWISE_CASES, *SCORE_CASES, *OWN_CASES)
CASES = [case for case in ALL_CASES if kernels.supported_by_sm80(case)]
SCHEDULES: list[dict[str, Any]] = [
    {"seed": seed, "copies": copies} for seed, copies in product((0, 1, 2), ("eager", "lazy", "random"))
]
DTYPES = [torch.bfloat16, torch.float16]


def check_against_oracle(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    ours = kernels.attention_forward_sm80(case, inputs)
    plain = attention_by_reference(case, inputs, dtype, gradients=False)
    ref64 = attention_by_reference(case, inputs, torch.float64, gradients=False)
    assert_all_close_to_oracle(ours, plain, ref64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_matches_the_oracle(index: int, dtype: torch.dtype) -> None:
    """Every case under a schedule of its own."""
    kernels.set_schedule(**SCHEDULES[(index + DTYPES.index(dtype)) % len(SCHEDULES)])
    check_against_oracle(CASES[index], dtype)


@pytest.mark.parametrize("case", OWN_CASES[1:10:2], ids=str)
def test_the_lse_is_as_exact_as_fp32(case: AttentionCase) -> None:
    """The rule allows it what plain's 16-bit scores cost, which is a thousand times as much."""
    kernels.set_schedule()
    inputs = make_inputs(case, torch.bfloat16)
    lse = kernels.attention_forward_sm80(case, inputs)["lse"].double()
    expected = attention_by_reference(case, inputs, torch.float64, gradients=False)["lse"]
    seen = ~expected.isneginf()
    assert torch.equal(lse.isneginf(), ~seen)
    assert ((lse - expected).abs() <= 1e-5 * (1 + expected.abs()))[seen].all()


@pytest.mark.parametrize("softcap", [30.0, 1e3, 1e5])
def test_a_wide_soft_cap_keeps_the_scores(softcap: float) -> None:
    case = AttentionCase("soft_cap", 70, 90, causal=True, softcap=softcap)
    inputs = make_inputs(case, torch.float16)
    lse = kernels.attention_forward_sm80(case, inputs)["lse"].double()
    expected = attention_by_reference(case, inputs, torch.float64, gradients=False)["lse"]
    assert float((lse - expected).abs().max()) < 2e-6 * float(expected.abs().max() + 1)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_bits_do_not_depend_on_the_schedule(head_dim: int) -> None:
    case = AttentionCase("schedules", 140, 200, heads_q=4, heads_k=2, head_dim=head_dim, causal=True)
    inputs = make_inputs(case, torch.bfloat16)
    results = []
    for schedule in SCHEDULES:
        kernels.set_schedule(**schedule)
        results.append(kernels.attention_forward_sm80(case, inputs))
    for result in results[1:]:
        assert torch.equal(result["out"], results[0]["out"]) and torch.equal(result["lse"], results[0]["lse"])


def test_wrong_offsets_reach_no_memory_outside() -> None:
    """Offsets that point outside, fall or exceed max_seqlen give wrong numbers at most."""
    case = AttentionCase("clamped", lengths=((40, 40), (30, 30)), causal=True)
    inputs = make_inputs(case, torch.bfloat16)
    before = {name: operand.clone() for name, operand in inputs.operands.items()}
    for wrong in ([0, 1000, 70], [-5, 40, 70], [0, 40, 20], [60, 10, 1 << 30], [0, 40, 2**31 - 1]):
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            bounds: dict[str, Any] = {name: torch.tensor(wrong, dtype=torch.int32)}
            bad = replace(inputs, **bounds)
            result = kernels.attention_forward_sm80(case, bad)
            assert result["out"].shape == (70, case.heads_q, case.value_dim)
            if name == "cu_seqlens_q":  # every row is written
                assert not result["out"].isnan().any() and not result["lse"].isnan().any()
            assert all(torch.equal(inputs.operands[operand], kept) for operand, kept in before.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 59}, "q has head dimension 59; attention on CUDA supports multiples of 8 from 8 to 256"),
        ({"head_dim": 264}, "q has head dimension 264; "),
        ({"head_dim_v": 272}, "v has head dimension 272; "),
        ({"layouts": ("odd_offset", *("contiguous",) * 3)}, "q does not start at, or step in, multiples of 16 bytes"),
        ({"layouts": ("contiguous", "padded", *("contiguous",) * 2)}, "k does not start at"),
    ],
)
def test_refusals(fields: dict, message: str) -> None:
    case = AttentionCase("refused", 20, 20, **fields)
    with pytest.raises(RuntimeError, match=message):
        kernels.attention_forward_sm80(case, make_inputs(case, torch.bfloat16))


def test_refuses_float32() -> None:
    case = AttentionCase("refused", 20, 20)
    with pytest.raises(RuntimeError, match="q has dtype float32; attention on CUDA supports bfloat16 and float16"):
        kernels.attention_forward_sm80(case, make_inputs(case, torch.float32))


# ---- Counters and schedule


def visible_tiles(case: AttentionCase) -> int:
    """Tiles of keys that some row of a tile of queries sees, by brute force over elements."""
    terms = bool(case.bias or case.keep or case.alibi or case.dropout_p)
    block_m, block_n, _ = kernels.host_exec_module().attention_forward_sm80_tile(case.head_dim, terms)
    left, right = case.window_size
    aligned = torch.arange(case.seqlen_q)[:, None] + case.seqlen_k - case.seqlen_q - torch.arange(case.seqlen_k)
    seen = torch.ones_like(aligned, dtype=torch.bool)
    if left >= 0:
        seen &= aligned <= left
    if case.causal or right >= 0:
        seen &= aligned >= (0 if case.causal else -right)
    parts = [seen]
    if case.dist_threshold is not None:
        parts = [seen & (aligned < case.dist_threshold), seen & (aligned >= case.dist_threshold)]
    count = sum(
        bool(part[m : m + block_m, n : n + block_n].any())
        for part in parts
        for m in range(0, case.seqlen_q, block_m)
        for n in range(0, case.seqlen_k, block_n)
    )
    return count * case.batch * case.heads_q


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"causal": True},
        {"window_size": (40, 0)},
        {"window_size": (30, 200)},
        {"window_size": (-1, 5)},
        {"causal": True, "alibi": "h"},
        {"causal": True, "dist_threshold": 100},
        {"dist_threshold": -70},
    ],
    ids=str,
)
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(256, 256), (130, 400), (300, 70)])
def test_work_is_what_the_mask_leaves(seqlen_q: int, seqlen_k: int, mask: dict, head_dim: int) -> None:
    """Exactly the tiles with a visible element are multiplied; no bank conflicts; bytes are minimal."""
    case = AttentionCase("counted", seqlen_q, seqlen_k, heads_q=1, heads_k=1, head_dim=head_dim, **mask)
    inputs = make_inputs(case, torch.bfloat16)
    kernels.set_schedule()
    kernels.attention_forward_sm80(case, inputs)
    done = kernels.counters()
    block_m, block_n, _ = kernels.host_exec_module().attention_forward_sm80_tile(head_dim, "alibi" in mask)
    tiles = visible_tiles(case)
    products_per_tile = 2 * (block_m * block_n * head_dim) // (16 * 8 * 16)
    assert done["instructions"]["matrix_product"] == tiles * products_per_tile
    assert done["matrix_flops"] == tiles * 4 * block_m * block_n * head_dim
    assert done["bank_conflicts"] == 0
    assert done["global_bytes_written"] == seqlen_q * (head_dim * 2 + 4)
    # Rows of 128 or 256 bytes are read and written in whole sectors, the LSE of eight rows is one.
    assert done["global_sectors_written"] == seqlen_q * head_dim * 2 // 32 + -(-seqlen_q // 8)
    if "alibi" not in mask:
        assert done["global_sectors_read"] == done["global_bytes_read"] // 32
    # Queries once (piecewise: both), keys and values once per tile of queries, nothing for rows that do not exist.
    queries = seqlen_q * head_dim * 2 * (2 if "dist_threshold" in mask else 1)
    slopes = 4 * 128 * -(-seqlen_q // block_m) if "alibi" in mask else 0  # every thread reads its head's
    assert done["global_bytes_read"] <= queries + tiles * 2 * block_n * head_dim * 2 + slopes
    if not mask:
        query_tiles = -(-seqlen_q // block_m)
        assert done["global_bytes_read"] == (seqlen_q + query_tiles * 2 * seqlen_k) * head_dim * 2


def bytes_and_sectors_read(case: AttentionCase, bias_dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    inputs = make_inputs(case, torch.bfloat16)
    if "bias" in inputs.operands:
        bias = inputs.operands["bias"].to(bias_dtype)
        inputs = replace(inputs, operands={**inputs.operands, "bias": bias})
    kernels.set_schedule()
    kernels.attention_forward_sm80(case, inputs)
    done = kernels.counters()
    return done["global_bytes_read"], done["global_sectors_read"]


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize(
    ("operand", "dtype"), [("bias", torch.bfloat16), ("bias", torch.float32), ("keep", torch.bool)], ids=str
)
def test_bytes_of_what_joins_the_scores(operand: str, dtype: torch.dtype, head_dim: int) -> None:
    """Every element is read once; of a row that all share, once for the rows of a warp in steps of eight.

    The four lanes of a row read eight neighbours, whatever their size: a sector, which fp32 fills, bf16 to a half.
    """
    case = AttentionCase("counted", 256, 320, heads_q=1, heads_k=1, head_dim=head_dim)
    elements, lanes_elements = 256 * 320, 8
    block_m, *_ = kernels.host_exec_module().attention_forward_sm80_tile(head_dim, True)
    without = bytes_and_sectors_read(replace(case, alibi="h"))  # the same instantiation
    slopes = (256 // block_m * 128 * 4, 256 // block_m * 4)  # that every thread reads, a sector for a warp
    for shape, rows_at_once, lanes_at_once in (("11qk", 1, 1), ("111k", block_m // 4 // 8, 8)):
        with_operand = replace(case, bias=shape) if operand == "bias" else replace(case, keep=shape)
        read = bytes_and_sectors_read(with_operand, dtype)
        assert read[0] - (without[0] - slopes[0]) == elements * dtype.itemsize // rows_at_once
        assert read[1] - (without[1] - slopes[1]) == elements // lanes_elements // rows_at_once // lanes_at_once


@pytest.mark.parametrize(
    ("packed", "batch", "heads_q", "heads_k"), [(False, 3, 6, 2), (True, 2, 4, 4), (False, 1, 1, 1)]
)
@pytest.mark.parametrize("seqlen_k", [100, 60_000, 3_000_000])
def test_schedule_visits_every_tile_once(packed: bool, batch: int, heads_q: int, heads_k: int, seqlen_k: int) -> None:
    module = kernels.host_exec_module()
    params = module.AttentionParams()
    params.dtype = module.DType.bfloat16
    params.batch, params.heads_q, params.heads_k = batch, heads_q, heads_k
    params.seqlen_q, params.seqlen_k, params.head_dim, params.head_dim_v = 1000, seqlen_k, 128, 128
    offsets = torch.zeros(batch + 1, dtype=torch.int32)
    if packed:
        params.cu_seqlens_q = params.cu_seqlens_k = offsets.data_ptr()
    works = module.attention_forward_sm80_schedule(params, 128)
    assert sorted(works) == sorted(product(range(batch + packed), range(heads_q), range(8)))
    # Of one head the last tile comes first: under a causal mask it is the longest.
    for sequence, head in product(range(batch + packed), range(heads_q)):
        assert [tile for s, h, tile in works if (s, h) == (sequence, head)] == list(range(7, -1, -1))
