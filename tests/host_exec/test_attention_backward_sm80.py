"""The sm_80 attention backward kernels, executed on the CPU, against the oracle over the shared case list."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from flagattn.testing import (
    DENSE_CASES,
    PIECEWISE_CASES,
    SCORE_CASES,
    VARLEN_CASES,
    AttentionCase,
    AttentionInputs,
    assert_all_close_to_oracle,
    attention_by_reference,
    make_inputs,
)
from tests.host_exec import kernels, kernels_backward

OUTSIDE, INTERLEAVED = "heads_outside", "interleaved_rows"  # of the layouts those on 16-byte borders
OWN_CASES = (
    AttentionCase("aligned_layouts", 77, 141, batch=2, heads_q=4, causal=True, layouts=(OUTSIDE, INTERLEAVED) * 2),
    AttentionCase("aligned_layouts_dim_40", 70, 70, batch=2, head_dim=40, head_dim_v=24, layouts=(INTERLEAVED,) * 4),
    AttentionCase("dim_128_gqa", 150, 300, heads_q=6, head_dim=128, causal=True, lse_gradient=True),
    AttentionCase("window_three_tiles", 300, 500, heads_q=4, head_dim=128, window_size=(150, 20)),
    AttentionCase("dim_96_window", 150, 300, heads_q=4, head_dim=96, window_size=(150, 20), lse_gradient=True),
    AttentionCase("dim_192_long", 150, 200, head_dim=192, causal=True, softcap=7.0, layouts=(INTERLEAVED,) * 4),
    AttentionCase("dim_256_long", 130, 200, heads_q=4, head_dim=256, causal=True, layouts=(OUTSIDE,) * 4),
    AttentionCase("terms_dim_128", 70, 150, head_dim=128, bias="bhqk", keep="11qk", alibi="h", sinks=True),
    AttentionCase("terms_dim_192", 67, 90, head_dim=192, alibi="h", keep="bhqk", dropout_p=0.5, softcap=4.0),
    AttentionCase("terms_dim_256", 67, 130, head_dim=256, bias="1hqk", keep="b11k", softcap=4.0, causal=True),
    AttentionCase("bias_of_keys_dropout", 140, 150, batch=2, heads_q=4, bias="b11k", dropout_p=0.2, softcap=5.0),
    AttentionCase("two_heads_of_a_group", 20, 100, heads_q=264, heads_k=33, head_dim=16),
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
CASES = [case for case in ALL_CASES if kernels_backward.supported_by_sm80(case)]
SCHEDULES: list[dict[str, Any]] = [
    {"seed": seed, "copies": copies} for seed, copies in product((0, 1, 2), ("eager", "lazy", "random"))
]
DTYPES = [torch.bfloat16, torch.float16]


def backward_of(case: AttentionCase, inputs: AttentionInputs) -> dict[str, Tensor]:
    """The kernels' gradients, from the results of the forward kernel."""
    return kernels_backward.attention_backward_sm80(case, inputs, **kernels.attention_forward_sm80(case, inputs))


def assert_oracle_agrees(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    ours = backward_of(case, inputs)
    plain = attention_by_reference(case, inputs, dtype)
    ref64 = attention_by_reference(case, inputs, torch.float64)
    assert_all_close_to_oracle(ours, {name: plain[name] for name in ours}, {name: ref64[name] for name in ours})


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_matches_the_oracle(index: int) -> None:
    """Every case in one of the dtypes, under a schedule of its own."""
    kernels.set_schedule(**SCHEDULES[index % len(SCHEDULES)])
    assert_oracle_agrees(CASES[index], DTYPES[index % len(DTYPES)])


@pytest.mark.parametrize("softcap", [1e3, 1e5])
def test_a_wide_soft_cap_keeps_the_weights(softcap: float) -> None:
    """A cap far above the scores changes nothing: the gradients are those without it."""
    kernels.set_schedule()
    case = AttentionCase("soft_cap", 70, 90, causal=True, softcap=softcap)
    inputs = make_inputs(case, torch.float16)
    capped, plain = backward_of(case, inputs), backward_of(replace(case, softcap=0.0), inputs)
    for name, ours in capped.items():
        largest = float(plain[name].abs().max())
        assert float((ours - plain[name]).abs().max()) <= 2 * torch.finfo(torch.float16).eps * largest, name


def test_strides_that_are_never_stepped_may_be_anything() -> None:
    """Of a batch of one, of a single row, of a single head; no other stride may leave the borders of 16 bytes."""
    kernels.set_schedule()
    case = AttentionCase("single", 1, 70, heads_q=1, heads_k=1)
    inputs = make_inputs(case, torch.float16)
    expected = backward_of(case, inputs)

    def odd(tensor: Tensor) -> Tensor:
        strides = [3 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride())]
        return tensor.as_strided(tensor.shape, strides, tensor.storage_offset())

    views = {name: odd(operand) for name, operand in inputs.operands.items()}
    assert views["q"].stride() == (3, 3, 3, 1) and views["k"].stride() == (3, 64, 3, 1)
    ours = backward_of(case, replace(inputs, operands=views, dout=odd(inputs.dout)))
    assert all(torch.equal(ours[name], gradient) for name, gradient in expected.items())
    views["k"] = torch.zeros(1, 70, 1, 68, dtype=torch.float16)[..., :64]
    with pytest.raises(RuntimeError, match="k does not start at, or step in, multiples of 16 bytes"):
        backward_of(case, replace(inputs, operands=views))


@pytest.mark.parametrize(
    "fields", [{"head_dim": 64}, {"head_dim": 128, "dist_threshold": 90}, {"head_dim": 256}], ids=str
)
def test_bits_do_not_depend_on_the_schedule(fields: dict) -> None:
    """Nor on how many blocks run at once: dQ is added up in the order of the key tiles."""
    case = AttentionCase("schedules", 140, 200, heads_q=2, heads_k=1, causal=True, **fields)
    inputs = make_inputs(case, torch.bfloat16)
    forward = kernels.attention_forward_sm80(case, inputs)
    results = []
    for workers, schedule in enumerate(SCHEDULES):
        kernels.set_schedule(**schedule, workers=1 + workers % 3)
        results.append(kernels_backward.attention_backward_sm80(case, inputs, **forward))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_bits_do_not_depend_on_the_batch() -> None:
    case = AttentionCase("batch", 140, 300, batch=3, heads_q=4, heads_k=2, causal=True)
    inputs = make_inputs(case, torch.bfloat16)
    kernels.set_schedule()
    whole = backward_of(case, inputs)
    alone = replace(
        inputs, operands={name: operand[2:] for name, operand in inputs.operands.items()}, dout=inputs.dout[2:]
    )
    for name, gradient in backward_of(replace(case, batch=1), alone).items():
        assert torch.equal(gradient, whole[name][2:])


@pytest.mark.parametrize("fields", [{"causal": True}, {"keep": "11q1"}], ids=str)
def test_rows_that_see_nothing_take_no_gradient_whatever_they_hold(fields: dict) -> None:
    case = AttentionCase("nan_rows", 200, 70, **fields)
    inputs = make_inputs(case, torch.bfloat16)
    kernels.set_schedule()
    forward = kernels.attention_forward_sm80(case, inputs)
    expected = kernels_backward.attention_backward_sm80(case, inputs, **forward)
    empty = (forward["lse"] == -torch.inf).all(1)
    assert 50 < int(empty.sum()) < 150
    q, dout = inputs.operands["q"].clone(), inputs.dout.clone()
    q[empty], dout[empty], forward["out"][empty] = torch.nan, torch.inf, torch.nan
    hurt = replace(inputs, operands=inputs.operands | {"q": q}, dout=dout)
    ours = kernels_backward.attention_backward_sm80(case, hurt, **forward)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert not ours["dq"][empty].any()


def test_wrong_offsets_reach_no_memory_outside() -> None:
    """Offsets that point outside, fall or exceed max_seqlen give wrong numbers at most."""
    case = AttentionCase("clamped", lengths=((40, 40), (30, 30)), causal=True)
    inputs = make_inputs(case, torch.bfloat16)
    forward = kernels.attention_forward_sm80(case, inputs)
    for wrong in ([0, 1000, 70], [-5, 40, 70], [0, 40, 20], [60, 10, 1 << 30], [0, 40, 2**31 - 1]):
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            bounds: dict[str, Any] = {name: torch.tensor(wrong, dtype=torch.int32)}
            bad = replace(inputs, **bounds)
            assert kernels_backward.attention_backward_sm80(case, bad, **forward)["dq"].shape == (70, case.heads_q, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 59}, "q has head dimension 59; attention on CUDA supports multiples of 8 from 8 to 256"),
        ({"head_dim": 264}, "q has head dimension 264; "),
        ({"layouts": (*("contiguous",) * 3, "odd_offset")}, "dout does not start at, or step in, multiples of 16"),
    ],
)
def test_refusals(fields: dict, message: str) -> None:
    case = AttentionCase("refused", 20, 20, **fields)
    inputs = make_inputs(case, torch.bfloat16)
    out, lse = torch.empty(1, 20, case.heads_q, case.value_dim, dtype=torch.bfloat16), torch.zeros(1, case.heads_q, 20)
    with pytest.raises(RuntimeError, match=message):
        kernels_backward.attention_backward_sm80(case, inputs, out, lse)


# ---- Counters and tiles


MASKS = [{}, {"causal": True}, {"window_size": (40, 0)}, {"window_size": (30, 200)}, {"window_size": (-1, 5)}]


def distances(seqlen_q: int, seqlen_k: int) -> Tensor:
    return torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q - torch.arange(seqlen_k)


def seen_elements(seqlen_q: int, seqlen_k: int, mask: dict) -> Tensor:
    left, right = mask.get("window_size", (-1, -1))
    right = 0 if mask.get("causal") else right
    distance = distances(seqlen_q, seqlen_k)
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    return seen


PARTS = [("all", 0), ("near", 40), ("far", 40), ("near", -20), ("far", 1 << 40), ("far", -(1 << 40))]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize(("block_m", "block_n"), [(128, 128), (64, 128), (16, 32)])
@pytest.mark.parametrize(("part", "threshold"), PARTS)
def test_tiles_are_those_with_a_visible_element(
    mask: dict, block_m: int, block_n: int, part: str, threshold: int
) -> None:
    module = kernels.host_exec_module()
    for seqlen_q, seqlen_k in product((0, 1, 63, 128, 129, 300), repeat=2):
        left, right = mask.get("window_size", (-1, -1))
        shape = module.MaskParams(left, 0 if mask.get("causal") else right)
        of_keys, of_queries, first_row = module.attention_backward_sm80_tiles(
            seqlen_q, seqlen_k, shape, block_m, block_n, getattr(module.KeyPart, part), threshold
        )
        seen = seen_elements(seqlen_q, seqlen_k, mask)
        if part != "all":
            seen &= (distances(seqlen_q, seqlen_k) >= threshold) == (part == "far")
        for n, (first, end) in enumerate(of_keys):
            rows = seen[:, n * block_n : (n + 1) * block_n].any(1)
            visited = [m for m in range(len(of_queries)) if rows[m * block_m : (m + 1) * block_m].any()]
            assert visited == list(range(first, end))
        for m, (first, end, covered) in enumerate(of_queries):
            rows = seen[m * block_m : (m + 1) * block_m]
            tiles = [rows[:, n * block_n : (n + 1) * block_n] for n in range(len(of_keys))]
            assert [n for n, tile in enumerate(tiles) if tile.any()] == list(range(first, end))
            whole = [bool(tile.all()) and tile.shape[1] == block_n for tile in tiles]
            assert all(not is_covered or is_whole for is_covered, is_whole in zip(covered, whole, strict=True))
            if rows.shape[0] == block_m:
                assert covered == whole
        if seqlen_k > 0 and part == "all":
            assert not seen[:first_row].any() and seen[first_row:].any(1).all()


COUNTED = [(dim, mask) for dim in (64, 128) for mask in MASKS] + [
    (96, {}),
    (192, {"causal": True}),
    (256, {"causal": True}),
]


@pytest.mark.parametrize(("head_dim", "mask"), COUNTED, ids=str)
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(256, 256), (130, 400), (300, 70)])
@pytest.mark.parametrize("threshold", [None, 60], ids=["plain", "piecewise"])
def test_work_is_what_the_mask_leaves(
    seqlen_q: int, seqlen_k: int, mask: dict, head_dim: int, threshold: int | None
) -> None:
    """Five products of every tile with a visible element and no other; no bank conflicts; bytes are minimal."""
    group = 2
    case = AttentionCase(
        "counted", seqlen_q, seqlen_k, heads_q=group, heads_k=1, head_dim=head_dim, dist_threshold=threshold, **mask
    )
    kernels.set_schedule()
    inputs = make_inputs(case, torch.bfloat16)
    backward_of(case, inputs)
    done = kernels.counters()
    _, _, block_m, block_n, _ = kernels_backward.kernel_of(case, inputs, 163 << 10)
    seen = seen_elements(seqlen_q, seqlen_k, mask)
    far = distances(seqlen_q, seqlen_k) >= (seqlen_k + seqlen_q if threshold is None else threshold)
    unseen_rows = int((~seen.any(1)).sum())
    flops = read = written = signals = 0
    tiles_of_values = set()
    blocks = group  # with a head each: there are far fewer key tiles than multiprocessors
    sum_bytes = (blocks - 1) * block_n * head_dim * 4  # of one tile's dK or dV, from block to block
    for part in (seen & ~far, seen & far):
        pairs = [
            (m, n)
            for m, n in product(range(-(-seqlen_q // block_m)), range(-(-seqlen_k // block_n)))
            if part[m * block_m : (m + 1) * block_m, n * block_n : (n + 1) * block_n].any()
        ]
        tiles = len(pairs) * group
        flops += tiles * 5 * 2 * block_m * block_n * head_dim
        # A pair of tiles reads its queries, output gradients and statistics. All pairs of a tile of queries but the
        # first read what was added to dQ so far in fp32, all but the last write it; the last writes dQ. Keys are read
        # by every block of a tile that is seen, and what the blocks before have added to dK.
        rows = sum(min(block_m, seqlen_q - m * block_m) - max(0, unseen_rows - m * block_m) for m, _ in pairs)
        key_tiles, query_tiles = {n for _, n in pairs}, {m for m, _ in pairs}
        tiles_of_values |= key_tiles
        turns = (len(pairs) - len(query_tiles)) * group
        passed_on = turns * block_m * head_dim * 4 + len(key_tiles) * sum_bytes
        keys = sum(min(block_n, seqlen_k - n * block_n) for n in key_tiles)
        read += blocks * keys * head_dim * 2 + group * rows * 2 * head_dim * 2 + tiles * block_m * 8 + passed_on
        written += group * sum(min(block_m, seqlen_q - m * block_m) for m in query_tiles) * head_dim * 2 + passed_on
        signals += (turns + len(key_tiles) * (blocks - 1)) * 8  # one per warp, of 4 bytes
    # Values are read once for both parts, and the gradients of keys and values written once.
    read += blocks * sum(min(block_n, seqlen_k - n * block_n) for n in tiles_of_values) * head_dim * 2
    read += len(tiles_of_values) * sum_bytes
    written += (2 if threshold is None else 3) * seqlen_k * head_dim * 2 + len(tiles_of_values) * sum_bytes
    signals += len(tiles_of_values) * (blocks - 1) * 8
    assert done["matrix_flops"] == flops
    assert done["bank_conflicts"] == 0
    assert done["global_bytes_read"] == read
    assert done["global_bytes_written"] == written + 4 * signals
    assert done["global_sectors_read"] == read // 32 and done["global_sectors_written"] == written // 32 + signals


def test_groups_are_cut_where_there_are_few_key_tiles() -> None:
    parts = kernels.host_exec_module().attention_backward_sm80_group_parts
    assert parts(8, 1, 128, 128) == 8 and parts(12, 2, 300, 128) == 6  # at most into single heads
    assert parts(32, 8, 1024, 128) == 4 and parts(32, 8, 2048, 128) == 2 and parts(64, 8, 1024, 128) == 4
    assert parts(32, 8, 4096, 128) == 1 and parts(32, 32, 128, 128) == 1 and parts(4, 4, 0, 128) == 1


def test_terms_cost_no_products() -> None:
    """Nor bank conflicts; only a bias that takes a gradient is passed twice, for two products more."""
    fields: dict[str, Any] = {"alibi": "h", "keep": "bhqk", "dropout_p": 0.3, "softcap": 5.0}
    for bias, products in (("", 5), ("bhqk", 2)):
        case = AttentionCase("terms", 128, 256, heads_q=2, heads_k=1, bias=bias, **fields)
        kernels.set_schedule()
        backward_of(case, make_inputs(case, torch.bfloat16))
        done = kernels.counters()
        assert done["matrix_flops"] == products * 2 * case.heads_q * 128 * 256 * (64 if products == 5 else 128)
        assert done["bank_conflicts"] == 0 or bias  # written sums are read by rows of keys
