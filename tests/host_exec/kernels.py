"""Our CUDA kernels on CPU tensors: what a test calls where an op would be called on a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flagattn.testing import AttentionCase, AttentionInputs
from tests.host_exec.builds import host_exec_module


def set_schedule(*, seed: int = 0, copies: str = "lazy", workers: int = 2, compute_capability: int = 80) -> None:
    """How the next kernels run: warps in turn (seed 0) or seeded; when copies land; how many blocks at once; where."""
    module = host_exec_module()
    module.set_options(seed, getattr(module.CopyTiming, copies), workers, compute_capability)


def counters(before: int = 0) -> dict[str, Any]:
    """What the last kernel did, or one of the seven before it (host_exec.h): "instructions" is a dict by class."""
    return host_exec_module().counters(before)


def heads_view(tensor: Tensor) -> object:
    *batch, row, head, last = tensor.stride()
    assert last == 1 or tensor.shape[-1] <= 1
    return host_exec_module().HeadsView(tensor.data_ptr(), batch[0] if batch else 0, row, head)


def rows_view(tensor: Tensor) -> object:
    *batch, head, _ = tensor.stride()
    return host_exec_module().RowsView(tensor.data_ptr(), batch[0] if batch else 0, head)


def attention_params(case: AttentionCase, inputs: AttentionInputs, out: Tensor, lse: Tensor) -> object:
    """AttentionParams of the case, as csrc/torch fills them."""
    module = host_exec_module()
    q, k, v = (inputs.operands[name] for name in ("q", "k", "v"))
    params = module.AttentionParams()
    params.dtype = getattr(module.DType, str(q.dtype).removeprefix("torch."))
    params.heads_q, params.heads_k = q.shape[-2], k.shape[-2]
    params.head_dim, params.head_dim_v = q.shape[-1], v.shape[-1]
    params.seqlen_q, params.seqlen_k = inputs.max_seqlen_q, inputs.max_seqlen_k
    if inputs.cu_seqlens_q is None or inputs.cu_seqlens_k is None:
        params.batch = q.shape[0]
    else:
        params.batch = len(inputs.cu_seqlens_q) - 1
        params.cu_seqlens_q, params.cu_seqlens_k = inputs.cu_seqlens_q.data_ptr(), inputs.cu_seqlens_k.data_ptr()
        params.total_q, params.total_k = q.shape[0], k.shape[0]
    params.q, params.k, params.v, params.out = (heads_view(t) for t in (q, k, v, out))
    params.lse = rows_view(lse)
    params.softmax_scale = 1 / math.sqrt(case.head_dim) if case.softmax_scale is None else case.softmax_scale
    params.softcap = case.softcap
    left, right = case.window_size
    params.mask = module.MaskParams(left, 0 if case.causal else right)
    if case.dist_threshold is not None:
        params.q2, params.k2 = heads_view(inputs.operands["q2"]), heads_view(inputs.operands["k2"])
        params.dist_threshold = case.dist_threshold
    add_score_params(case, inputs, params)
    return params


def add_score_params(case: AttentionCase, inputs: AttentionInputs, params: Any) -> None:
    """What joins the scores; the caller keeps the tensors of `inputs`."""
    module = host_exec_module()
    bias, slopes = inputs.operands.get("bias"), inputs.alibi_slopes
    if bias is not None:
        params.bias, params.bias_dtype = scores_view(bias), getattr(module.DType, str(bias.dtype)[6:])
    if inputs.keep is not None:
        params.keep = scores_view(inputs.keep)
    if slopes is not None:
        params.alibi = module.AlibiParams(slopes.data_ptr(), slopes.stride(0) if slopes.dim() == 2 else 0)
    if case.sinks:
        inputs.operands["sinks"] = inputs.operands["sinks"].float()  # as the public functions pass them
        params.sinks = inputs.operands["sinks"].data_ptr()
    if case.dropout_p > 0.0:
        assert inputs.rng_state is not None
        words = math.ceil(case.dropout_p * 2.0**32)
        params.dropout = module.DropoutParams(inputs.rng_state.data_ptr(), words - 1, 1 / (1 - case.dropout_p))


def scores_view(tensor: Tensor) -> object:
    strides = (0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return host_exec_module().ScoresView(tensor.data_ptr(), *strides)


def attention_forward_sm80(case: AttentionCase, inputs: AttentionInputs) -> dict[str, Tensor]:
    """out and lse of the sm_80 kernel, from outputs that start as NaN."""
    q, v = inputs.operands["q"], inputs.operands["v"]
    out = q.new_full((*q.shape[:-1], v.shape[-1]), torch.nan)
    lse_shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    lse = torch.full(lse_shape, torch.nan)
    host_exec_module().attention_forward_sm80(attention_params(case, inputs, out, lse))
    return {"out": out, "lse": lse}


def supported_by_sm80(case: AttentionCase) -> bool:
    """Head dims in multiples of 8 up to 256 and operands on 16-byte borders; the rest raises (test_refusals)."""
    dims = (case.head_dim, case.value_dim)
    aligned = {"contiguous", "heads_outside", "interleaved_rows"}
    return all(dim <= 256 and dim % 8 == 0 for dim in dims) and aligned.issuperset(case.layouts[:3])
