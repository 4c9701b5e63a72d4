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
    """The operands by name: q, k, v, bias and sinks, and in a piecewise case q2 and k2 beside the near pair q and k."""

    operands: dict[str, Tensor]
    dout: Tensor
    dlse: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int
    keep: Tensor | None = None
    alibi_slopes: Tensor | None = None
    rng_state: Tensor | None = None  # what the public functions draw on the CPU after torch.manual_seed(DROPOUT_SEED)


DROPOUT_SEED = 5


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
    inputs = AttentionInputs(operands, dout, dlse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    _add_score_inputs(case, inputs, dtype, device, random)
    return inputs


def _add_score_inputs(
    case: AttentionCase, inputs: AttentionInputs, dtype: torch.dtype, device: torch.device | str, random: Any
) -> None:
    sizes = {"b": case.batch, "h": case.heads_q, "q": inputs.max_seqlen_q, "k": inputs.max_seqlen_k, "1": 1}
    if case.bias:
        bias = random(*(sizes[letter] for letter in case.bias), scale=2.0).to(dtype)
        if case.bias_hides:
            lowest = torch.tensor(-torch.inf if dtype is torch.float16 else torch.finfo(dtype).min, dtype=dtype)
            bias = torch.where(bias > 2.0, -torch.inf, torch.where(bias > 0.5, lowest, bias))
            bias[..., -130:] = lowest  # a tile that no row sees
        inputs.operands["bias"] = bias.to(device)
    if case.keep:
        inputs.keep = _keep(case.keep_kind, random(*(sizes[letter] for letter in case.keep))).to(device)
    if case.alibi:
        batch = (inputs.cu_seqlens_q.shape[0] - 1,) if inputs.cu_seqlens_q is not None else (case.batch,)
        shape = (case.heads_q,) if case.alibi == "h" else (*batch, case.heads_q)
        inputs.alibi_slopes = random(*shape).abs().mul(0.1).to(device)
    if case.sinks:
        inputs.operands["sinks"] = random(case.heads_q, scale=2.0).to(device, dtype)
    if case.dropout_p > 0.0:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(DROPOUT_SEED)
            inputs.rng_state = torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64).to(device)


def _keep(kind: str, noise: Tensor) -> Tensor:
    """A mask of noise's shape, whose last dimensions are rows and keys."""
    if kind in ("random", "rare"):
        return noise > (0.0 if kind == "random" else 3.0)
    keys = noise.shape[-1]
    numbers = torch.arange(keys).expand(noise.shape)
    if kind == "blocks":
        return numbers // 90 == torch.arange(noise.shape[-2])[:, None] // 90
    hidden = torch.arange(noise.shape[0])[:, None, None, None] * 57 % keys  # the first sequence sees all
    return numbers < keys - hidden if kind == "right" else numbers >= hidden


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
    if case.sinks:
        options["sinks"] = leaves["sinks"]
    if not case.is_piecewise:
        options["alibi_slopes"] = inputs.alibi_slopes
        options["dropout_p"] = case.dropout_p
        options["dropout_keep"] = _dropout_keep(case, inputs)
    if case.is_masked:
        options["bias"], options["keep"] = leaves.get("bias"), inputs.keep
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
    """out, lse and the gradients from the public function the case calls for.

    Dropout on another device than the CPU goes through the raw op: there the public functions draw from a generator of
    that device, and the oracle's mask would be another.
    """
    leaves = {name: t.detach().requires_grad_(gradients) for name, t in inputs.operands.items()}
    options: dict[str, Any] = {
        "softmax_scale": case.softmax_scale,
        "causal": case.causal,
        "window_size": case.window_size,
        "softcap": case.softcap,
        "return_lse": True,
    }
    draws_elsewhere = inputs.rng_state is not None and inputs.rng_state.device.type != "cpu"
    if case.is_masked or draws_elsewhere:
        out, lse = _by_raw_op(case, inputs, leaves)
        return _with_gradients(leaves, out, lse, inputs) if gradients else {"out": out, "lse": lse}
    if case.sinks:
        options["sinks"] = leaves["sinks"]
    if not case.is_piecewise:
        options["alibi_slopes"], options["dropout_p"] = inputs.alibi_slopes, case.dropout_p
    tensors: list[Any] = [leaves[name] for name in _order_of(case)]
    packing = (inputs.cu_seqlens_q, inputs.cu_seqlens_k, inputs.max_seqlen_q, inputs.max_seqlen_k)
    function: Any
    if case.is_piecewise:
        function = flagattn.piecewise_attn_varlen_func if case.is_packed else flagattn.piecewise_attn_func
    else:
        function = flagattn.flash_attn_varlen_func if case.is_packed else flagattn.flash_attn_func
    threshold = (case.dist_threshold,) if case.is_piecewise else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DROPOUT_SEED)
        out, lse = function(*tensors, *(packing if case.is_packed else ()), *threshold, **options)
    return _with_gradients(leaves, out, lse, inputs) if gradients else {"out": out, "lse": lse}


def _by_raw_op(case: AttentionCase, inputs: AttentionInputs, leaves: dict[str, Tensor]) -> Any:
    """Masks, biases, a given dropout mask and all the rest at once: no public function takes them all."""
    left, right = case.window_size
    sinks = leaves["sinks"].float() if case.sinks else None
    return torch.ops.flagattn.attention_forward(
        leaves["q"],
        leaves["k"],
        leaves["v"],
        inputs.cu_seqlens_q,
        inputs.cu_seqlens_k,
        inputs.max_seqlen_q,
        inputs.max_seqlen_k,
        case.head_dim**-0.5 if case.softmax_scale is None else case.softmax_scale,
        left,
        0 if case.causal else right,
        case.softcap,
        leaves.get("bias"),
        inputs.keep,
        inputs.alibi_slopes,
        sinks,
        inputs.rng_state,
        case.dropout_p,
    )


def _dropout_keep(case: AttentionCase, inputs: AttentionInputs) -> Tensor | None:
    if inputs.rng_state is None:
        return None
    batch = case.batch if inputs.cu_seqlens_q is None else inputs.cu_seqlens_q.shape[0] - 1
    return reference.dropout_keep_mask(
        inputs.rng_state, case.dropout_p, batch, case.heads_q, inputs.max_seqlen_q, inputs.max_seqlen_k
    )


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
