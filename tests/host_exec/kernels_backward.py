"""The attention backward's CUDA kernels on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from flagattn.testing import AttentionCase, AttentionInputs
from tests.host_exec.builds import host_exec_module
from tests.host_exec.kernels import attention_params, heads_view, rows_view, scores_view


def attention_backward_sm80(
    case: AttentionCase, inputs: AttentionInputs, out: Tensor, lse: Tensor, *, dout: Tensor | None = None
) -> dict[str, Tensor]:
    """The gradients by the sm_80 kernels from the forward's results, in outputs and a workspace that start as NaN."""
    module = host_exec_module()
    params = module.AttentionBackwardParams()
    params.forward = attention_params(case, inputs, out, lse)
    params.dout = heads_view(inputs.dout if dout is None else dout)
    if inputs.dlse is not None:
        params.dlse = rows_view(inputs.dlse)
    gradients = {f"d{name}": torch.full_like(t, torch.nan).contiguous() for name, t in inputs.operands.items()}
    for name, gradient in gradients.items():
        if name == "dbias":
            params.dbias = scores_view(gradient)
        elif name == "dsinks":
            shares = torch.full_like(lse, torch.nan)
            params.dsinks, params.dsink_shares = gradient.data_ptr(), rows_view(shares)
        else:
            setattr(params, name, heads_view(gradient))
    workspace = torch.full((module.attention_backward_sm80_workspace(params.forward),), torch.nan)
    params.workspace = workspace.data_ptr()
    module.attention_backward_sm80(params)
    if "dsinks" in gradients:
        gradients["dsinks"] = gradients["dsinks"].to(out.dtype)  # as autograd rounds what the functions pass in fp32
    return gradients


def kernel_of(case: AttentionCase, inputs: AttentionInputs, shared_bytes: int) -> tuple[int, bool, int, int, int]:
    """For a GPU that gives a block so much: width, whether terms may join, query rows and keys of a tile, its bytes."""
    nothing = torch.empty(0, 0, 0, 0), torch.empty(0, 0, 0)
    params = attention_params(case, inputs, *nothing)
    return tuple(host_exec_module().attention_backward_sm80_kernel(params, shared_bytes))


def supported_by_sm80(case: AttentionCase) -> bool:
    """Head dims in multiples of 8 up to 256 and operands on 16-byte borders; the rest raises (test_refusals)."""
    dims = (case.head_dim, case.value_dim)
    aligned = {"contiguous", "heads_outside", "interleaved_rows"}
    return all(dim <= 256 and dim % 8 == 0 for dim in dims) and aligned.issuperset(case.layouts)
