"""FlagAttention's submodules: what they hold, and its references against its functions."""

from __future__ import annotations

import pytest
import torch

from flagattn.compat import flag_attn
from flagattn.compat.flag_attn import flash, paged, piecewise, split_kv, testing, total


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_modules_call_their_function_attention() -> None:
    assert flash.attention is flag_attn.flash_attention and paged.attention is flag_attn.paged_attention
    assert piecewise.attention is flag_attn.piecewise_attention
    assert split_kv.attention is flag_attn.flash_attention_split_kv


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_of_attention_repeats_it_with_the_weights_that_dropout_kept(causal: bool) -> None:
    q, k, v = randn(2, 4, 30, 16, seed=0), randn(2, 2, 50, 16, seed=1), randn(2, 2, 50, 16, seed=2)
    out, lse, sums, seed, offset = flag_attn.flash_attention(
        q, k, v, causal, 0.3, 0.4, return_log_normalizer=True, return_total_attention=True, return_seed_offset=True
    )
    mask = testing.recompute_mask(2, 4, 30, 50, 0.4, seed, offset, q.device)
    expected = testing.flash_attention(
        q, k, v, causal, 0.4, mask, 0.3, return_log_normalizer=True, return_total_attention=True, upcast=True
    )
    for ours, reference in zip((out, lse, sums), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    assert torch.equal(total.total_attention(q, k, lse, causal, 0.3), sums)
    assert torch.equal(testing.flash_attention(q, k, v, causal, 0.4, mask, 0.3), expected[0])
    assert testing.recompute_mask(2, 4, 30, 50, 0.0, None, None, q.device).all()


@pytest.mark.parametrize(("seed", "offset", "missing"), [(None, 0, "seed"), (1, None, "offset")])
def test_a_mask_of_dropout_needs_seed_and_offset(seed: int | None, offset: int | None, missing: str) -> None:
    with pytest.raises(TypeError, match=f"{missing} is None; with dropout it must be the integer"):
        testing.recompute_mask(1, 1, 2, 3, 0.4, seed, offset, "cpu")


def test_the_reference_of_piecewise_attention() -> None:
    operands = [randn(1, heads, 20, 16, seed=seed) for seed, heads in enumerate((4, 2, 4, 2, 2))]
    expected = testing.piecewise_attention(*operands, 5, True)
    torch.testing.assert_close(flag_attn.piecewise_attention(*operands, 5, True), expected)


def test_the_reference_of_paged_attention() -> None:
    query, keys, values = randn(2, 4, 16, seed=0), randn(6, 2, 4, 16, seed=1), randn(6, 2, 4, 16, seed=2)
    tables, lengths = torch.tensor([[4, 1], [2, 5]]), torch.tensor([5, 8])
    ours = flag_attn.paged_attention(query, keys, values, lengths, tables, 0.25, 8)
    torch.testing.assert_close(ours, testing.paged_attention(query, keys, values, tables, lengths, 0.25))
