"""The ops inside torch's machinery: opcheck, torch.compile, autocast, activation checkpointing, fake tensors."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import flagattn

CU = torch.tensor([0, 6, 6, 11], dtype=torch.int32)
OPS = torch.ops.flagattn


def randn(*shape: int, seed: int = 0, grad: bool = True, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


# ---- opcheck ----

DENSE = (None, None, 5, 7)
PACKED = (CU, CU, 6, 6)
NUMBERS = (0.3, -1, 0, 0.0)


def operands(packed: bool, **options: object) -> list[torch.Tensor]:
    shape_q, shape_k = ((11, 4), (11, 2)) if packed else ((2, 5, 4), (2, 7, 2))
    shapes = [(*shape_q, 16), (*shape_k, 16), (*shape_k, 8)]
    return [randn(*shape, seed=seed, **options) for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_opcheck_attention(packed: bool) -> None:
    packing = PACKED if packed else DENSE
    q, k, v = operands(packed)
    torch.library.opcheck(OPS.attention_forward, (q, k, v, *packing, *NUMBERS))
    q, k, v = operands(packed, grad=False)
    out, lse = OPS.attention_forward(q, k, v, *packing, *NUMBERS)
    for dlse in (None, lse):
        torch.library.opcheck(OPS.attention_backward, (out, dlse, q, k, v, out, lse, *packing, *NUMBERS))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_opcheck_piecewise(packed: bool) -> None:
    packing = PACKED if packed else DENSE
    q, k, v = operands(packed)
    q2, k2 = q.detach().flip(0).requires_grad_(), k.detach().flip(0).requires_grad_()
    torch.library.opcheck(OPS.piecewise_forward, (q, k, q2, k2, v, *packing, 3, *NUMBERS))
    q, k, q2, k2, v = (t.detach() for t in (q, k, q2, k2, v))
    out, lse = OPS.piecewise_forward(q, k, q2, k2, v, *packing, 3, *NUMBERS)
    torch.library.opcheck(OPS.piecewise_backward, (out, lse, q, k, q2, k2, v, out, lse, *packing, 3, *NUMBERS))


def test_shapes_of_fake_tensors() -> None:
    with FakeTensorMode():
        q, k, v = torch.empty(2, 5, 4, 16), torch.empty(2, 7, 2, 16), torch.empty(2, 7, 2, 8)
        out, lse = flagattn.flash_attn_func(q, k, v, return_lse=True)
        assert out.shape == (2, 5, 4, 8) and lse.shape == (2, 4, 5) and lse.dtype == torch.float32


# ---- torch.compile ----


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out, lse = flagattn.flash_attn_func(q.sin(), k, v, causal=True, softmax_scale=0.5, return_lse=True)
    return out.sum() + lse.sum()


def torchs_form(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return flagattn.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).square().sum()


def odd_dims(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return flagattn.flash_attn_func(q[..., :11], k[..., :11], v[..., :5], window_size=(3, 3)).square().sum()


def piecewise(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return flagattn.piecewise_attn_func(q, k, q.cos(), k.cos(), v, 3, causal=True).square().sum()


def merged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    parts = [flagattn.flash_attn_func(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 3), slice(3, None))]
    return flagattn.merge_attention_states(*zip(*parts))[0].square().sum()


def column_sums(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out, lse = flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True)
    sums = flagattn.attention_column_sums(q, k, lse, causal=True).unflatten(1, (2, 2)).sum(dim=2)
    return out.square().sum() + (sums.transpose(1, 2).unsqueeze(-1) * v).sum()


@pytest.mark.parametrize("function", [dense, torchs_form, odd_dims, piecewise, merged, column_sums])
def test_compiled_in_one_graph(function) -> None:
    leaves = operands(False)
    expected = torch.autograd.grad(function(*leaves), leaves)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
        torch.testing.assert_close(ours, eager)


def test_compiled_packed_does_not_specialise_on_the_longest_sequence() -> None:
    graphs = 0

    def count_graphs(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    @torch.compile(fullgraph=True, backend=count_graphs, dynamic=True)
    def attend(q: torch.Tensor, cu: torch.Tensor, longest: int) -> torch.Tensor:
        return flagattn.flash_attn_varlen_func(q, q, q, cu, cu, longest, longest, causal=True)

    for lengths in ((6, 5), (9, 3), (4, 17)):
        q = randn(sum(lengths), 2, 16, grad=False)
        cu = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32)
        expected = flagattn.flash_attn_varlen_func(q, q, q, cu, cu, max(lengths), max(lengths), causal=True)
        assert torch.equal(attend(q, cu, max(lengths)), expected)
    assert graphs == 1


needs_inductor = pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="Python.h is missing, so torch.compile cannot compile its C++ (apt install python3-dev)",
)


@needs_inductor
@pytest.mark.parametrize("as_eager", [True, False], ids=["eager's_numbers", "its_own_numbers"])
def test_inductor_has_one_mask_of_dropout_in_forward_and_backward(as_eager: bool) -> None:
    """Values and the gradient of the output are unit vectors, so that both passes give the weights themselves."""
    q = torch.randn(1, 24, 2, 16, generator=torch.Generator().manual_seed(0))
    unit = torch.eye(24)[None, :, None].repeat(1, 1, 2, 1)

    def weights_of(function) -> tuple[torch.Tensor, torch.Tensor]:
        v = unit.clone().requires_grad_()
        torch.manual_seed(4)
        out = function(q, q, v)
        return out.detach(), torch.autograd.grad(out, v, unit)[0].transpose(1, 3)

    def dropped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flagattn.flash_attn_func(q, k, v, dropout_p=0.4)

    torch._dynamo.reset()
    compiled = torch.compile(dropped, fullgraph=True)
    with inductor_config.patch(fallback_random=as_eager):
        forward, backward = weights_of(compiled)
    assert torch.equal(forward > 0, backward > 0) and 0 < (forward == 0).float().mean() < 1
    assert torch.equal(weights_of(compiled)[0], forward)
    assert torch.equal(weights_of(dropped)[0], forward) == as_eager


@needs_inductor
def test_compiled_by_inductor_with_gradients() -> None:
    leaves = operands(False)
    expected = torch.autograd.grad(dense(*leaves), leaves)
    compiled = torch.compile(dense, fullgraph=True)
    for ours, eager in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-5)


# ---- autocast, checkpointing, leaves of mixed need ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_operands(dtype: torch.dtype) -> None:
    q, k, v = operands(False)
    with torch.autocast("cpu", dtype):
        out, lse = flagattn.flash_attn_func(q, k, v, causal=True, return_lse=True)
        pieces = flagattn.piecewise_attn_func(q, k, q, k.to(dtype).float(), v, 2)
        torchs = flagattn.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=True)
    assert out.dtype == pieces.dtype == torchs.dtype == dtype and lse.dtype == torch.float32
    expected = flagattn.flash_attn_func(q.to(dtype), k.to(dtype), v.to(dtype), causal=True)
    assert torch.equal(out, expected)
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    leaves = operands(False)
    expected = torch.autograd.grad(piecewise(*leaves), leaves)
    ours = [leaf.detach().requires_grad_() for leaf in leaves]
    checkpoint(piecewise, *ours, use_reentrant=use_reentrant).backward()
    assert all(torch.equal(leaf.grad, gradient) for leaf, gradient in zip(ours, expected))


def test_only_one_operand_needs_a_gradient() -> None:
    q, k, v = operands(False, grad=False)
    whole = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = torch.autograd.grad(dense(*whole), whole)
    for index in range(3):
        leaves = [q, k, v]
        leaves[index] = leaves[index].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(dense(*leaves), leaves[index])
        assert torch.equal(gradient, expected[index])


def test_inference_mode_and_no_grad() -> None:
    q, k, v = operands(False)
    with torch.inference_mode():
        inference = flagattn.flash_attn_func(q, k, v)
    with torch.no_grad():
        plain = flagattn.flash_attn_func(q, k, v)
    assert not plain.requires_grad and torch.equal(inference, plain)


def test_raw_op_is_differentiable() -> None:
    leaves = operands(False)
    ours = torch.autograd.grad(OPS.attention_forward(*leaves, *DENSE, *NUMBERS)[0].sum(), leaves)
    public = flagattn.flash_attn_func(*leaves, softmax_scale=0.3, causal=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, torch.autograd.grad(public.sum(), leaves)))
