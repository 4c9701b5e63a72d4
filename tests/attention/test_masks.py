"""Masks, biases, ALiBi, sinks and dropout through the public functions, with torch's own attention as a peer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import flagattn
from flagattn import reference

OPS = torch.ops.flagattn
SHAPES = ["qk", "1k", "q1", "11", "1qk", "hqk", "b11k", "11qk", "1hqk", "b1qk", "bhqk", "bh1k", "b1q1", "1111"]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def heads_first(*, seqlen_q: int = 37, seqlen_k: int = 150, grad: bool = False) -> list[torch.Tensor]:
    shapes = [(2, 4, seqlen_q, 16), (2, 4, seqlen_k, 16), (2, 4, seqlen_k, 24)]
    return [randn(*shape, seed=seed).requires_grad_(grad) for seed, shape in enumerate(shapes)]


def mask_of(shape: str, seqlen_q: int = 37, seqlen_k: int = 150) -> torch.Tensor:
    sizes = {"b": 2, "h": 4, "q": seqlen_q, "k": seqlen_k, "1": 1}
    return randn(*(sizes[letter] for letter in shape), seed=7)


# ---- scaled_dot_product_attention ----


@pytest.mark.parametrize("shape", SHAPES)
def test_boolean_masks_agree_with_torch(shape: str, cpu_level: str) -> None:
    leaves = heads_first(grad=True)
    mask = mask_of(shape) > -0.5
    out = flagattn.scaled_dot_product_attention(*leaves, attn_mask=mask)
    theirs = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    torch.testing.assert_close(out, theirs, rtol=1e-4, atol=1e-5)
    dout = randn(*out.shape, seed=9)
    expected = torch.autograd.grad(theirs, leaves, dout)
    for ours, theirs in zip(torch.autograd.grad(out, leaves, dout), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_additive_masks_and_their_gradients_agree_with_torch(shape: str, cpu_level: str) -> None:
    leaves = [*heads_first(grad=True), mask_of(shape).requires_grad_()]
    out = flagattn.scaled_dot_product_attention(*leaves[:3], attn_mask=leaves[3])
    theirs = F.scaled_dot_product_attention(*leaves[:3], attn_mask=leaves[3])
    torch.testing.assert_close(out, theirs, rtol=1e-4, atol=1e-5)
    dout = randn(*out.shape, seed=9)
    expected = torch.autograd.grad(theirs, leaves, dout)
    for ours, theirs in zip(torch.autograd.grad(out, leaves, dout), expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_rows_that_see_no_key_are_zero() -> None:
    q, k, v = heads_first()
    mask = mask_of("b1qk") > -0.5
    mask[:, :, 5] = False
    out = flagattn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert (out[:, :, 5] == 0).all() and (out[:, :, 6] != 0).any()
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), rtol=1e-4, atol=1e-5)
    for lowest in (-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min):
        additive = torch.zeros(mask.shape).masked_fill(~mask, lowest)
        assert torch.allclose(flagattn.scaled_dot_product_attention(q, k, v, attn_mask=additive), out, atol=1e-6)


def test_a_mask_of_true_changes_no_bit() -> None:
    q, k, v = heads_first(seqlen_k=1100)
    plain = flagattn.scaled_dot_product_attention(q, k, v)
    for shape in ("11qk", "b11k", "bhqk", "1111"):
        mask = torch.ones_like(mask_of(shape, seqlen_k=1100), dtype=torch.bool)
        assert torch.equal(flagattn.scaled_dot_product_attention(q, k, v, attn_mask=mask), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_masks_have_the_bits_of_the_unpadded_call(side: str) -> None:
    q, k, v = heads_first(seqlen_k=300)
    keep = torch.arange(300) < 210 if side == "right" else torch.arange(300) >= 128
    padded = flagattn.scaled_dot_product_attention(q, k, v, attn_mask=keep.expand(2, 1, 1, 300))
    alone = flagattn.scaled_dot_product_attention(q, k[:, :, keep], v[:, :, keep])
    assert torch.equal(padded, alone)


def test_masks_of_any_layout() -> None:
    q, k, v = heads_first()
    mask = mask_of("bhqk") > 0
    expected = flagattn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    transposed = mask.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.zeros(2, 4, 37, 300, dtype=torch.bool)
    wide[..., ::2] = mask
    for other in (transposed, wide[..., ::2]):
        assert torch.equal(flagattn.scaled_dot_product_attention(q, k, v, attn_mask=other), expected)


def test_nan_behind_a_mask_stays_there(cpu_level: str) -> None:
    q, k, v = heads_first()
    keep = mask_of("b11k") > 0
    clean = flagattn.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    hidden = ~keep[:, :, 0, :, None]
    poisoned = [torch.where(hidden, torch.nan, operand) for operand in (k, v)]
    assert torch.equal(flagattn.scaled_dot_product_attention(q, *poisoned, attn_mask=keep), clean)
    additive = torch.zeros(keep.shape).masked_fill(~keep, -math.inf)
    out = flagattn.scaled_dot_product_attention(q, *poisoned, attn_mask=additive)
    torch.testing.assert_close(out, clean, rtol=1e-4, atol=1e-5)


# ---- dropout ----


def philox_oracle(c: list[np.ndarray], key0: int, key1: int) -> list[np.ndarray]:
    """Philox-4x32-10 in numpy's uint64."""
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        half = np.uint64(32)
        c = [(p1 >> half) ^ c[1] ^ np.uint64(key0), p1 & low, (p0 >> half) ^ c[3] ^ np.uint64(key1), p0 & low]
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def dropped_weights(state: torch.Tensor, p: float, batch: int, heads: int, rows: int, keys: int) -> torch.Tensor:
    """The op's own factors: with equal scores and unit values, an output is its weights."""
    q, k = torch.zeros(batch, rows, heads, 8), torch.zeros(batch, keys, heads, 8)
    out = []
    for first in range(0, keys, 256):
        v = torch.zeros(batch, keys, heads, 256)
        for key in range(first, min(first + 256, keys)):
            v[:, key, :, key - first] = keys
        extra = (None, None, None, None, state, p)
        out.append(OPS.attention_forward(q, k, v, None, None, rows, keys, 1.0, -1, -1, 0.0, *extra)[0])
    return torch.cat(out, dim=-1)[..., :keys].transpose(1, 2)


@pytest.mark.parametrize("state", [(3, 0), (2**63 - 1, 2**32 - 5), (12345678901234567, 2**62)])
def test_dropout_is_philox_of_the_weights_place(state: tuple[int, int], cpu_level: str) -> None:
    batch, heads, rows, keys, p = 2, 3, 29, 261, 0.3
    seed, offset = state
    shape = (batch * heads, rows, (keys + 3) // 4)
    stream = np.array([(offset + index) % 2**64 for index in range(shape[0])], dtype=np.uint64)[:, None, None]
    counter = [
        np.broadcast_to(np.arange(shape[2], dtype=np.uint64), shape),
        np.broadcast_to(np.arange(rows, dtype=np.uint64)[:, None], shape),
        np.broadcast_to(stream & np.uint64(0xFFFFFFFF), shape),
        np.broadcast_to(stream >> np.uint64(32), shape),
    ]
    words = np.stack(philox_oracle(counter, seed & 0xFFFFFFFF, seed >> 32), axis=-1)
    kept = words.reshape(batch, heads, rows, -1)[..., :keys] >= math.ceil(p * 2**32)
    factors = dropped_weights(torch.tensor(state), p, batch, heads, rows, keys)
    expected = torch.from_numpy(np.where(kept, 1 / (1 - p), 0.0)).float()
    torch.testing.assert_close(factors, expected, rtol=1e-5, atol=0)
    assert torch.equal(reference.dropout_keep_mask(torch.tensor(state), p, batch, heads, rows, keys), factors > 0)


def test_dropout_of_a_sequence_knows_only_its_number(cpu_level: str, set_threads: Callable) -> None:
    """In a longer batch, with more rows and keys, and on any number of threads the same weights are dropped."""
    seed, offset, p = 5, 2**32 - 7, 0.3
    whole = dropped_weights(torch.tensor([seed, offset]), p, 5, 3, 29, 261)
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        for batch in (1, 2, 5):
            assert torch.equal(dropped_weights(torch.tensor([seed, offset]), p, batch, 3, 29, 261), whole[:batch])
        alone = dropped_weights(torch.tensor([seed, offset + 2 * 3]), p, 1, 3, 29, 261)
        assert torch.equal(alone, whole[2:3])
        shorter = dropped_weights(torch.tensor([seed, offset]), p, 2, 3, 17, 130)
        assert torch.equal(shorter > 0, whole[:2, :, :17, :130] > 0)


def test_dropout_of_packed_sequences_in_both_directions(cpu_level: str, set_threads: Callable) -> None:
    """Gradients of values that nothing else joins show which weights the backward drops."""
    p, heads, lengths = 0.4, 2, [(29, 131), (5, 260), (32, 7)]
    state = torch.tensor([77, 2**40])
    q, k, v = (torch.zeros(sum(n[i] for n in lengths), heads, 32) for i in (0, 1, 1))
    bounds = [torch.tensor([0, *n]).cumsum(0).int() for n in zip(*lengths, strict=True)]
    dout = torch.cat([torch.eye(32)[:rows] for rows, _ in lengths])[:, None].expand(-1, heads, -1)
    extra = (None, None, None, None, state, p)
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        leaf = v.clone().requires_grad_()
        out = OPS.attention_forward(q, k, leaf, *bounds, 32, 260, 1.0, -1, -1, 0.0, *extra)[0]
        (dv,) = torch.autograd.grad(out, leaf, dout)
        kept = reference.dropout_keep_mask(state, p, len(lengths), heads, 32, 260)
        for b, ((rows, keys), weights) in enumerate(zip(lengths, dv.split([n[1] for n in lengths]), strict=True)):
            assert torch.equal(weights.permute(1, 2, 0)[:, :rows] > 0, kept[b, :, :rows, :keys])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.83])
def test_dropout_drops_as_often_as_it_should(p: float) -> None:
    kept = reference.dropout_keep_mask(torch.tensor([11, 7]), p, 4, 8, 128, 256).double()
    spread = math.sqrt(p * (1 - p) / kept.numel())
    assert abs(kept.mean() - (1 - p)) < 5 * spread
    neighbours = (kept[..., 1:] - (1 - p)) * (kept[..., :-1] - (1 - p))
    assert abs(neighbours.mean()) < 5 * p * (1 - p) / math.sqrt(neighbours.numel())


def test_dropout_of_everything_and_its_generator() -> None:
    q, k, v = (t.transpose(1, 2) for t in heads_first())
    assert (flagattn.flash_attn_func(q, k, v, dropout_p=1.0) == 0).all()
    torch.manual_seed(1)
    first, second = (flagattn.flash_attn_func(q, k, v, dropout_p=0.4) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(flagattn.flash_attn_func(q, k, v, dropout_p=0.4), first)
    assert not torch.equal(first, second)


def dropped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return flagattn.flash_attn_func(q, k, v, dropout_p=0.4, causal=True).square().sum()


def sample_gradients(run: Callable, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    return torch.autograd.grad(run(*leaves), leaves)


def test_dropout_under_checkpointing_and_compilation() -> None:
    leaves = [t.detach().transpose(1, 2).requires_grad_() for t in heads_first()]
    expected = sample_gradients(dropped, leaves)
    repeated = sample_gradients(lambda *args: checkpoint(dropped, *args, use_reentrant=False), leaves)
    compiled = sample_gradients(torch.compile(dropped, fullgraph=True, backend="aot_eager"), leaves)
    for other in (repeated, compiled):
        for ours, eager in zip(other, expected, strict=True):
            torch.testing.assert_close(ours, eager)


# ---- ALiBi and sinks ----


def test_sinks_take_their_share() -> None:
    q, k, v = (t.transpose(1, 2) for t in heads_first())
    plain, lse = flagattn.flash_attn_func(q, k, v, return_lse=True)
    sinks = torch.tensor([-math.inf, 0.0, 3.0, 90.0])
    out, joined = flagattn.flash_attn_func(q, k, v, sinks=sinks, return_lse=True)
    torch.testing.assert_close(joined, torch.logaddexp(lse, sinks[:, None]))
    share = torch.exp(lse - joined).transpose(1, 2).unsqueeze(-1)
    torch.testing.assert_close(out, plain * share, rtol=1e-5, atol=1e-6)
    bf16 = flagattn.flash_attn_func(q, k, v, sinks=sinks.bfloat16())
    assert torch.equal(bf16, out)


def test_no_sink_at_all_in_a_row_without_keys() -> None:
    q, k, v = (t.transpose(1, 2).requires_grad_() for t in heads_first(seqlen_q=9, seqlen_k=4))
    sinks = torch.full((4,), -math.inf).requires_grad_()
    out, lse = flagattn.flash_attn_func(q, k, v, causal=True, sinks=sinks, return_lse=True)
    assert (out[:, :5] == 0).all() and torch.isneginf(lse[..., :5]).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (q, k, v, sinks)))


# ---- inside torch ----


def test_opcheck_with_everything_that_joins_the_scores() -> None:
    q, k, v = randn(2, 5, 4, 16), randn(2, 7, 2, 16, seed=1), randn(2, 7, 2, 8, seed=2)
    joined = (randn(1, 4, 5, 7), randn(2, 1, 1, 7) > 0, randn(2, 4).abs(), randn(4), torch.tensor([3, 4]), 0.25)
    tail = (None, None, 5, 7, 0.3, -1, 0, 0.0, *joined)
    leaves = [operand.clone().requires_grad_() for operand in (q, k, v)]
    torch.library.opcheck(OPS.attention_forward, (*leaves, *tail))
    out, lse = OPS.attention_forward(q, k, v, *tail)
    for needs_dbias in (False, True):
        torch.library.opcheck(OPS.attention_backward, (out, lse, q, k, v, out, lse, *tail, needs_dbias))
    far = (q, k, q.flip(0), k.flip(0), v)
    out, lse = OPS.piecewise_forward(*far, None, None, 5, 7, 3, 0.3, -1, 0, 0.0, randn(4))
    torch.library.opcheck(
        OPS.piecewise_backward, (out, lse, *far, out, lse, None, None, 5, 7, 3, 0.3, -1, 0, 0.0, joined[3])
    )
    torch.library.opcheck(OPS.attention_column_sums, (q, k, lse, 0.3, -1, 0))


def everything(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    out = flagattn.scaled_dot_product_attention(q, k, v, attn_mask=bias.sin()).square().sum()
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    slopes, sinks = bias.detach().abs().mean((1, 2, 3)).expand(4), bias[0, :, 0, 0].expand(4)
    return out + flagattn.flash_attn_func(q, k, v, alibi_slopes=slopes, sinks=sinks, causal=True).square().sum()


def test_compiled_in_one_graph() -> None:
    leaves = [*heads_first(grad=True), mask_of("1hqk").requires_grad_()]
    expected = torch.autograd.grad(everything(*leaves), leaves)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(ours, eager)


def test_threads_change_no_bit(set_threads: Callable[[int], None]) -> None:
    leaves = [*heads_first(seqlen_q=130, seqlen_k=700, grad=True), mask_of("11qk", 130, 700).requires_grad_()]
    results = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        torch.manual_seed(3)
        out = flagattn.scaled_dot_product_attention(*leaves[:3], attn_mask=leaves[3], dropout_p=0.2)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- attention_column_sums ----


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_column_sums(causal: bool, dtype: torch.dtype, cpu_level: str) -> None:
    q, k = randn(2, 203, 4, 59, dtype=dtype), randn(2, 130, 2, 59, seed=1, dtype=dtype)
    _, lse = flagattn.flash_attn_func(q, k, k, causal=causal, return_lse=True)
    sums = flagattn.attention_column_sums(q, k, lse, causal=causal)
    expected = reference.attention_column_sums(q.double(), k.double(), lse.double(), causal=causal)
    assert sums.shape == (2, 4, 130) and sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), expected, rtol=1e-4, atol=1e-4)
    rows = torch.isfinite(lse).sum(-1).float()
    torch.testing.assert_close(sums.sum(-1), rows, rtol=1e-4, atol=1e-3)


def test_column_sums_under_autocast_are_those_of_what_attention_saw() -> None:
    q, k = (torch.randn(2, 64, 4, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        _, lse = flagattn.flash_attn_func(q, k, k, return_lse=True)
        for keys in (k, k.bfloat16()):
            sums = flagattn.attention_column_sums(q, keys, lse)
            torch.testing.assert_close(sums.sum(-1), torch.full((2, 4), 64.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("lse", "error"),
    [(None, TypeError), (torch.zeros(1, 2, 5).double(), TypeError), (torch.zeros(1, 5, 2), ValueError)],
)
def test_column_sums_refuse_a_wrong_lse(lse: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="lse"):
        flagattn.attention_column_sums(torch.zeros(1, 5, 2, 8), torch.zeros(1, 7, 2, 8), lse)
