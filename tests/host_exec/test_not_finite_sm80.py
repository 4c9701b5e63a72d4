"""NaN and Inf in keys and values: they reach the rows that see them, and of the others not a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flagattn.testing import AttentionCase, AttentionInputs, make_inputs
from tests.attention.test_kvcache import Decode, make
from tests.host_exec import kernels
from tests.host_exec.test_attention_decode_sm80 import call_of

VALUES = [torch.nan, torch.inf, -torch.inf]
DTYPES = [torch.bfloat16, torch.float16]
CASES = (
    AttentionCase("causal", 70, 70, causal=True),
    AttentionCase("window_gqa", 150, 200, heads_q=6, heads_k=2, head_dim=128, window_size=(50, 30)),
    AttentionCase("bottom_right", 40, 130, head_dim=96, causal=True, softcap=5.0),
    AttentionCase("wide", 70, 90, head_dim=256, causal=True),
    AttentionCase("alibi", 70, 90, head_dim=192, causal=True, alibi="h"),
    AttentionCase("dropout", 70, 90, causal=True, dropout_p=0.5),
)


def poisoned(inputs: AttentionInputs, name: str, row: int, value: float) -> AttentionInputs:
    """Element 3 of row `row` of every head of the first sequence is `value`."""
    operand = inputs.operands[name].clone()
    operand[0, row, :, 3] = value
    return replace(inputs, operands=inputs.operands | {name: operand})


def seen_by(case: AttentionCase, key: int) -> Tensor:
    """A boolean for each row."""
    distance = torch.arange(case.seqlen_q) + case.seqlen_k - case.seqlen_q - key
    left, right = case.window_size
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if case.causal or right >= 0:
        seen &= distance >= (0 if case.causal else -right)
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_keys_that_a_row_does_not_see(index: int, dtype: torch.dtype) -> None:
    kernels.set_schedule(seed=1, copies="random")
    case, value = CASES[index], VALUES[(index + DTYPES.index(dtype)) % len(VALUES)]
    inputs, key = make_inputs(case, dtype), case.seqlen_k - 12
    clean = kernels.attention_forward_sm80(case, inputs)
    seen = seen_by(case, key)
    assert 0 < seen.sum() < case.seqlen_q
    ours = kernels.attention_forward_sm80(case, poisoned(inputs, "v", key, value))
    others = torch.arange(case.head_dim) != 3
    assert torch.equal(ours["lse"], clean["lse"])
    assert torch.equal(ours["out"][..., others], clean["out"][..., others])
    column, expected = ours["out"][0, :, :, 3], clean["out"][0, :, :, 3]
    assert torch.equal(column[~seen], expected[~seen])
    if case.dropout_p == 0:
        torch.testing.assert_close(column[seen], torch.full_like(column[seen], value), equal_nan=True)
    ours = kernels.attention_forward_sm80(case, poisoned(inputs, "k", key, value))
    assert torch.equal(ours["out"][0, ~seen], clean["out"][0, ~seen])
    assert torch.equal(ours["lse"][0, :, ~seen], clean["lse"][0, :, ~seen])


@pytest.mark.parametrize("causal", [False, True])
def test_the_other_side_of_piecewise_attention(causal: bool) -> None:
    kernels.set_schedule(seed=2)
    case = AttentionCase("piecewise", 200, 200, dist_threshold=30, causal=causal)
    inputs = make_inputs(case, torch.bfloat16)
    clean = kernels.attention_forward_sm80(case, inputs)["out"]
    far_key = kernels.attention_forward_sm80(case, poisoned(inputs, "k2", 100, torch.nan))["out"]
    near_key = kernels.attention_forward_sm80(case, poisoned(inputs, "k", 100, torch.nan))["out"]
    assert torch.equal(far_key[0, :130], clean[0, :130]) and torch.equal(near_key[0, 130:], clean[0, 130:])
    value = kernels.attention_forward_sm80(case, poisoned(inputs, "v", 100, torch.nan))["out"]
    first = 100 if causal else 0
    assert torch.equal(value[0, :first], clean[0, :first]) and value[0, first:, :, 3].isnan().all()


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("kind", ["keep", "bias"])
def test_keys_that_a_mask_hides(kind: str, head_dim: int) -> None:
    kernels.set_schedule(seed=3, copies="eager")
    case = AttentionCase("masked", 70, 150, head_dim=head_dim, **{kind: "11qk"})
    inputs, key = make_inputs(case, torch.bfloat16), 100
    if inputs.keep is not None:
        inputs.keep[..., key], inputs.keep[..., 40:, key] = True, False
    else:
        inputs.operands["bias"][..., 40:, key] = -torch.inf
    clean = kernels.attention_forward_sm80(case, inputs)["out"]
    for name in ("k", "v"):
        ours = kernels.attention_forward_sm80(case, poisoned(inputs, name, key, torch.nan))["out"]
        assert torch.equal(ours[:, 40:], clean[:, 40:])
        assert ours[0, :40, :, 3].isnan().all()


@pytest.mark.parametrize("seqlen_q", [2, 40])
@pytest.mark.parametrize("options", [{}, {"dist_threshold": 20}, {"alibi": "h"}], ids=str)
def test_keys_of_a_cache_that_a_row_does_not_see(options: dict, seqlen_q: int) -> None:
    kernels.set_schedule()
    problem = make(Decode("poisoned", (700,), seqlen_q=seqlen_q, page_size=16, **options), torch.bfloat16)
    clean, _ = call_of(problem).run()
    table, values = problem.cache.block_table, problem.cache.tensors[-1].clone()
    assert table is not None
    values[table[0, 699 // 16], 699 % 16, :, 3] = torch.nan  # of the last key, which the last row alone sees
    poisoned_cache = replace(problem.cache, tensors=(*problem.cache.tensors[:-1], values))
    ours, _ = call_of(replace(problem, cache=poisoned_cache)).run()
    assert torch.equal(ours[:, :-1], clean[:, :-1])
    assert ours[:, -1, :, 3].isnan().all()
