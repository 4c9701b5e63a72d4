"""The registered attention ops themselves: what they refuse and how they say so, empty operands, tail rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flagattn  # noqa: F401  (registers the ops)

OPS = torch.ops.flagattn
NUMBERS = (0.2, -1, 0, 0.0)  # softmax_scale, window_left, window_right, softcap
DENSE = (None, None, 7, 9, *NUMBERS)
EVERY_OP = (
    "attention_forward",
    "attention_backward",
    "piecewise_forward",
    "piecewise_backward",
    "rms_norm",
    "add_rms_norm",
    "rms_norm_backward",
    "swiglu",
    "swiglu_backward",
    "apply_rotary",
    "apply_rotary_",
)


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 7, 6, 16), (2, 9, 2, 16), (2, 9, 2, 24))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)  # type: ignore[return-value]


def cu(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", EVERY_OP)
def test_every_op_has_a_cpu_kernel(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"flagattn::{name}", "CPU")


# ---- What is refused ----

BAD: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], tuple], str]] = {
    "dtype": (lambda q, k, v: (q.double(), k, v, *DENSE), "q is float64; float32, bfloat16 and float16 are supported"),
    "mixed dtypes": (lambda q, k, v: (q, k.half(), v, *DENSE), "k is float16, but q is float32; they must agree"),
    "rank": (
        lambda q, k, v: (q, k[0], v, *DENSE),
        "k has shape (9, 2, 16); it must be (batch, seqlen, heads, head_dim)",
    ),
    "last stride": (lambda q, k, v: (q[..., ::2], k, v, *DENSE), "its last dimension must be contiguous"),
    "batch": (lambda q, k, v: (q, k[:1], v, *DENSE), "k has shape (1, 9, 2, 16); it must be (batch, seqlen_k,"),
    "head_dim": (lambda q, k, v: (q, k[..., :8], v, *DENSE), "k has shape (2, 9, 2, 8); it must be"),
    "v rows": (lambda q, k, v: (q, k, v[:, :8], *DENSE), "v has shape (2, 8, 2, 24); it must be"),
    "heads": (
        lambda q, k, v: (q[:, :, :5], k, v, *DENSE),
        "q has 5 heads and k has 2; the first must be a positive multiple",
    ),
    "no heads": (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0], *DENSE), "q has 6 heads and k has 0"),
    "wide heads": (
        lambda q, k, v: (*(t.repeat(1, 1, 1, 20) for t in (q, k, v)), *DENSE),
        "q has head_dim 320; multiples of 8 up to 256 are supported",
    ),
    "window": (
        lambda q, k, v: (q, k, v, None, None, 7, 9, 0.2, -2, 0, 0.0),
        "the window is (-2, 0); each side must be",
    ),
    "softcap": (lambda q, k, v: (q, k, v, None, None, 7, 9, 0.2, -1, 0, -1.0), "softcap is -1; it must be 0 (off)"),
    "one cu_seqlens": (lambda q, k, v: (q[0], k[0], v[0], cu(0, 7), None, 7, 9, *NUMBERS), "must be given together"),
    "packed rank": (
        lambda q, k, v: (q, k, v, cu(0, 7), cu(0, 9), 7, 9, *NUMBERS),
        "(total, heads, head_dim) with cu_seqlens",
    ),
    "cu dtype": (
        lambda q, k, v: (q[0], k[0], v[0], cu(0, 7).long(), cu(0, 9), 7, 9, *NUMBERS),
        "is int64; it must be int32",
    ),
    "cu shape": (lambda q, k, v: (q[0], k[0], v[0], cu(0, 7), cu(0, 4, 9), 7, 9, *NUMBERS), "both must have batch + 1"),
    "cu start": (
        lambda q, k, v: (q[0], k[0], v[0], cu(1, 7), cu(0, 9), 7, 9, *NUMBERS),
        "starts with 1; it must start with 0",
    ),
    "cu falls": (lambda q, k, v: (q[0], k[0], v[0], cu(0, 7), cu(0, -3), 7, 9, *NUMBERS), "it must not decrease"),
    "cu end": (
        lambda q, k, v: (q[0], k[0], v[0], cu(0, 8), cu(0, 9), 9, 9, *NUMBERS),
        "ends with 8, but the tensor has 7 rows",
    ),
    "max_seqlen": (lambda q, k, v: (q[0], k[0], v[0], cu(0, 7), cu(0, 9), 7, 8, *NUMBERS), "no sequence may be longer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_raise_one_sentence(case: str) -> None:
    arguments, sentence = BAD[case]
    with pytest.raises(RuntimeError) as caught:
        OPS.attention_forward(*arguments(*qkv()))
    message = str(caught.value)
    assert message.startswith("flagattn::attention_forward: ")
    assert sentence in message
    assert message.endswith(".")
    assert "\n" not in message


def test_piecewise_names_its_own_arguments() -> None:
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match=r"q2 has shape .* but q1 has .*; they must agree"):
        OPS.piecewise_forward(q, k, q[:, :5], k, v, None, None, 7, 9, 3, *NUMBERS)
    with pytest.raises(RuntimeError, match="k1 is float16, but q1 is float32"):
        OPS.piecewise_forward(q, k.half(), q, k, v, None, None, 7, 9, 3, *NUMBERS)


def test_backward_checks_what_the_forward_made() -> None:
    q, k, v = qkv()
    out, lse = OPS.attention_forward(q, k, v, *DENSE)
    with pytest.raises(RuntimeError, match=r"dout has shape .*; it must be .batch, seqlen_q, heads_q, head_dim_v."):
        OPS.attention_backward(out[..., :8], None, q, k, v, out, lse, *DENSE)
    with pytest.raises(RuntimeError, match="lse is float16; it must be float32"):
        OPS.attention_backward(out, None, q, k, v, out, lse.half(), *DENSE)
    with pytest.raises(RuntimeError, match=r"dlse of shape .* its last dimension must be contiguous"):
        OPS.attention_backward(out, lse.transpose(1, 2).contiguous().transpose(1, 2), q, k, v, out, lse, *DENSE)


# ---- Edges ----


def test_rows_behind_the_last_sequence_are_defined() -> None:
    q, k, v = (tensor[0] for tensor in qkv())
    offsets_q, offsets_k = cu(0, 3, 3, 5), cu(0, 2, 4, 6)
    q[5:], k[6:], v[6:] = math.nan, math.inf, math.nan
    tail = (offsets_q, offsets_k, 3, 2, *NUMBERS)
    out, lse = OPS.attention_forward(q, k, v, *tail)
    assert torch.isfinite(out[:5]).all()
    assert (out[5:] == 0).all()
    assert (lse[:, 5:] == -math.inf).all()
    dq, dk, dv, *_ = OPS.attention_backward(torch.ones_like(out), None, q, k, v, out, lse, *tail)
    for gradient, end in ((dq, 5), (dk, 6), (dv, 6)):
        assert torch.isfinite(gradient).all()
        assert (gradient[end:] == 0).all()


@pytest.mark.parametrize(("batch", "rows", "keys"), [(0, 7, 9), (2, 0, 9), (2, 7, 0), (2, 0, 0)])
def test_empty_operands(batch: int, rows: int, keys: int) -> None:
    q, k, v = torch.randn(batch, rows, 6, 16), torch.randn(batch, keys, 2, 16), torch.randn(batch, keys, 2, 24)
    dense = (None, None, rows, keys, *NUMBERS)
    out, lse = OPS.attention_forward(q, k, v, *dense)
    assert out.shape == (batch, rows, 6, 24)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    gradients = OPS.attention_backward(out, lse.clone().zero_(), q, k, v, out, lse, *dense)
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape, (0,), (0,)]
    assert all((gradient == 0).all() for gradient in gradients)

    pair = (None, None, rows, keys, 3, *NUMBERS)
    out, lse = OPS.piecewise_forward(q, k, q, k, v, *pair)
    assert (out == 0).all()
    gradients = OPS.piecewise_backward(out, None, q, k, q, k, v, out, lse, *pair)
    assert all((gradient == 0).all() for gradient in gradients)


def test_empty_sequences_among_others() -> None:
    q, k, v = (tensor[0] for tensor in qkv())
    tail = (cu(0, 0, 4, 4, 7), cu(0, 3, 3, 3, 9), 4, 6, *NUMBERS)
    out, lse = OPS.attention_forward(q, k, v, *tail)
    assert (out[:4] == 0).all()
    dq, dk, dv, *_ = OPS.attention_backward(torch.ones_like(out), None, q, k, v, out, lse, *tail)
    assert (dq[:4] == 0).all()
    assert (dk[:3] == 0).all()
    assert (dv[:3] == 0).all()


def test_no_sequence_at_all() -> None:
    q, k, v = (tensor[0] for tensor in qkv())
    out, lse = OPS.attention_forward(q, k, v, cu(0), cu(0), 0, 0, *NUMBERS)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_thread_counts_do_not_change_a_bit() -> None:
    q, k, v = (tensor.repeat(1, 40, 1, 1) for tensor in qkv())
    before = torch.get_num_threads()
    outs = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, lse = OPS.attention_forward(q, k, v, None, None, 280, 360, *NUMBERS)
            outs.append(
                (out, lse, *OPS.attention_backward(out, lse, q, k, v, out, lse, None, None, 280, 360, *NUMBERS))
            )
    finally:
        torch.set_num_threads(before)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other))
