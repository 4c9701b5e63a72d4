"""Runs an AttentionCase: seeded inputs, the results of the reference and those of the public op."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

import flagattn
from flagattn import reference
from flagattn.testing.attention_cases import AttentionCase
from flagattn.testing.layouts import laid_out

Results = dict[str, Tensor]


@dataclass
class AttentionInputs:
    """The operands by name (q, k, v, and q2, k2 of a piecewise case, whose q and k are then the near pair)."""

    operands: dict[str, Tensor]
    dout: Tensor
    dlse: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int


def make_inputs(
    case: AttentionCase, dtype: torch.dtype, *, seed: int = 0, device: torch.device | str = "cpu"
) -> AttentionInputs:
    """The same values for the same case and seed, rounded to `dtype`, in the case's layouts."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()) + seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator).mul(scale)

    cu_seqlens_q = cu_seqlens_k = None
    rows_q: tuple[int, ...]
    rows_k: tuple[int, ...]
    if case.lengths is not None:
        lengths_q, lengths_k = [q for q, _ in case.lengths], [k for _, k in case.lengths]
        rows_q, rows_k = (sum(lengths_q) + case.unused_rows,), (sum(lengths_k) + case.unused_rows,)
        max_seqlen_q, max_seqlen_k = max(lengths_q), max(lengths_k)
        cu_seqlens_q = torch.tensor([0, *accumulate(lengths_q)], dtype=torch.int32, device=device)
        cu_seqlens_k = torch.tensor([0, *accumulate(lengths_k)], dtype=torch.int32, device=device)
    else:
        rows_q, rows_k = (case.batch, case.seqlen_q), (case.batch, case.seqlen_k)
        max_seqlen_q, max_seqlen_k = case.seqlen_q, case.seqlen_k

    shapes = {"q": (*rows_q, case.heads_q, case.head_dim), "k": (*rows_k, case.heads_k, case.head_dim)}
    shapes["v"] = (*rows_k, case.heads_k, case.value_dim)
    if case.is_piecewise:
        shapes |= {"q2": shapes["q"], "k2": shapes["k"]}
    layouts = dict(zip(("q", "k", "v"), case.layouts[:3], strict=True)) | {"q2": case.layouts[2], "k2": case.layouts[0]}

    operands = {}
    for name, shape in shapes.items():
        values = random(*shape, scale=1.0 if name == "v" else case.input_scale).to(dtype)
        if case.unused_rows:
            values[-case.unused_rows :] = torch.nan
        operands[name] = laid_out(values.to(device), layouts[name])
    dout = laid_out(random(*rows_q, case.heads_q, case.value_dim).to(device, dtype), case.layouts[3])
    lse_shape = (*rows_q[:-1], case.heads_q, rows_q[-1])
    dlse = random(*lse_shape).to(device) if case.lse_gradient else None
    return AttentionInputs(operands, dout, dlse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def attention_by_reference(
    case: AttentionCase, inputs: AttentionInputs, dtype: torch.dtype, *, gradients: bool = True
) -> Results:
    """out, lse and the gradients from flagattn.reference computed in `dtype`; NaN in unused rows counts as 0."""
    leaves = {
        name: t.detach().to(dtype).nan_to_num(0.0).requires_grad_(gradients) for name, t in inputs.operands.items()
    }
    options: dict[str, Any] = {
        "softmax_scale": case.softmax_scale,
        "causal": case.causal,
        "window_size": case.window_size,
        "softcap": case.softcap,
    }
    tensors: list[Any] = [leaves[name] for name in _order_of(case)]
    packing = (inputs.cu_seqlens_q, inputs.cu_seqlens_k) if case.is_packed else ()
    function: Any
    if case.is_piecewise:
        function = reference.piecewise_attention_varlen if case.is_packed else reference.piecewise_attention
    else:
        function = reference.attention_varlen if case.is_packed else reference.attention
    threshold = (case.dist_threshold,) if case.is_piecewise else ()
    out, lse = function(*tensors, *packing, *threshold, **options)
    return _with_gradients(leaves, out, lse, inputs) if gradients else {"out": out, "lse": lse}


def attention_by_op(case: AttentionCase, inputs: AttentionInputs, *, gradients: bool = True) -> Results:
    """out, lse and the gradients from the public function the case calls for."""
    leaves = {name: t.detach().requires_grad_(gradients) for name, t in inputs.operands.items()}
    options: dict[str, Any] = {
        "softmax_scale": case.softmax_scale,
        "causal": case.causal,
        "window_size": case.window_size,
        "softcap": case.softcap,
        "return_lse": True,
    }
    tensors: list[Any] = [leaves[name] for name in _order_of(case)]
    packing = (inputs.cu_seqlens_q, inputs.cu_seqlens_k, inputs.max_seqlen_q, inputs.max_seqlen_k)
    function: Any
    if case.is_piecewise:
        function = flagattn.piecewise_attn_varlen_func if case.is_packed else flagattn.piecewise_attn_func
    else:
        function = flagattn.flash_attn_varlen_func if case.is_packed else flagattn.flash_attn_func
    threshold = (case.dist_threshold,) if case.is_piecewise else ()
    out, lse = function(*tensors, *(packing if case.is_packed else ()), *threshold, **options)
    return _with_gradients(leaves, out, lse, inputs) if gradients else {"out": out, "lse": lse}


def _order_of(case: AttentionCase) -> tuple[str, ...]:
    return ("q", "k", "q2", "k2", "v") if case.is_piecewise else ("q", "k", "v")


def _with_gradients(leaves: dict[str, Tensor], out: Tensor, lse: Tensor, inputs: AttentionInputs) -> Results:
    outputs, output_gradients = [out], [inputs.dout.to(out.dtype)]
    if inputs.dlse is not None:
        outputs.append(lse)
        output_gradients.append(inputs.dlse.to(lse.dtype))
    gradients = torch.autograd.grad(outputs, list(leaves.values()), output_gradients)
    results = {"out": out.detach(), "lse": lse.detach()}
    return results | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
