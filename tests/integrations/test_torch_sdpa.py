"""torch's scaled_dot_product_attention replaced and restored, by hand and by torch's registry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import flagattn
from flagattn.integrations import torch_sdpa

TORCHS = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    F.scaled_dot_product_attention = TORCHS


def operands(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def test_it_is_on_inside_and_off_outside() -> None:
    q, k, v = operands(1, 2, 9, 16)
    with torch_sdpa.enable():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert torch.equal(out, flagattn.scaled_dot_product_attention(q, k, v, is_causal=True))
        layer = torch.nn.TransformerEncoderLayer(32, 2, dropout=0.0, batch_first=True)
        x = torch.randn(2, 5, 32)
        inside = layer(x)
    assert F.scaled_dot_product_attention is TORCHS
    torch.testing.assert_close(inside, layer(x))
    torch.testing.assert_close(out, TORCHS(q, k, v, is_causal=True))


def test_an_inner_handle_leaves_the_outer_one_on() -> None:
    with torch_sdpa.enable():
        with torch_sdpa.enable():
            pass
        assert F.scaled_dot_product_attention is torch_sdpa.scaled_dot_product_attention
    assert F.scaled_dot_product_attention is not torch_sdpa.scaled_dot_product_attention


def test_torchs_registry_switches_it() -> None:
    torch_sdpa.register()
    assert "flagattn" in torch.nn.attention.list_flash_attention_impls()
    torch.nn.attention.activate_flash_attention_impl("flagattn")
    try:
        assert F.scaled_dot_product_attention is torch_sdpa.scaled_dot_product_attention
        assert torch.nn.attention.current_flash_attention_impl() == "flagattn"
    finally:
        torch.nn.attention.restore_flash_attention_impl()
    assert F.scaled_dot_product_attention is TORCHS


@pytest.mark.parametrize("mask", ["bool", "additive"])
def test_masks_and_gradients_are_torchs(mask: str) -> None:
    q, k, v = operands(2, 2, 9, 16)
    keep = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    keep[1, :, :, 5:] = False
    attn_mask = keep if mask == "bool" else torch.where(keep, 0.5, -torch.inf)
    with torch_sdpa.enable():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask)
    expected = TORCHS(q, k, v, attn_mask)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), (q, k, v))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_not_served_is_torchs() -> None:
    with torch_sdpa.enable():
        for q, k, v in (operands(2, 9, 16), operands(1, 2, 3, 16, dtype=torch.float64), operands(1, 1, 2, 300)):
            assert not torch_sdpa.serves(q, k, v)
            assert torch.equal(F.scaled_dot_product_attention(q, k, v), TORCHS(q, k, v))


def test_head_counts_that_torch_repeats_stay_torchs() -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 1, 7, 8), torch.randn(2, 1, 7, 8)
    with torch_sdpa.enable():
        assert torch.equal(F.scaled_dot_product_attention(q, k, v), TORCHS(q, k, v))
        assert torch_sdpa.serves(q, k, v, enable_gqa=True)
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, enable_gqa=True), TORCHS(q, k, v))


def test_masks_of_other_dtypes_stay_torchs() -> None:
    q, k, v = (operand.detach() for operand in operands(1, 2, 9, 16))
    for dtype in (torch.float64, torch.int32):
        mask = torch.zeros(9, 9, dtype=dtype)
        assert not torch_sdpa.serves(q, k, v, mask)
        outcomes = []
        for function in (torch_sdpa.scaled_dot_product_attention, TORCHS):
            try:
                outcomes.append(function(q, k, v, mask))
            except RuntimeError as error:
                outcomes.append(str(error))
        assert type(outcomes[0]) is type(outcomes[1])


def test_nested_tensors_stay_torchs() -> None:
    rows = [torch.randn(length, 2, 8) for length in (3, 5)]
    q = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)
    with torch_sdpa.enable():
        ours = F.scaled_dot_product_attention(q, q, q)
    for one, other in zip(ours.unbind(), TORCHS(q, q, q).unbind()):
        assert torch.equal(one, other)


def test_it_compiles_as_one_graph() -> None:
    q, k, v = operands(1, 2, 9, 16)
    with torch_sdpa.enable():
        compiled = torch.compile(lambda *qkv: F.scaled_dot_product_attention(*qkv), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k, v), flagattn.scaled_dot_product_attention(q, k, v))


def test_something_elses_replacement_is_left_alone() -> None:
    F.scaled_dot_product_attention = lambda *arguments: None
    with pytest.raises(RuntimeError, match="already replaced"):
        torch_sdpa.enable()
