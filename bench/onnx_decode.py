"""onnxruntime's GroupQueryAttention, its fused attention over a cache, as a peer of decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Its CPU kernel has no bf16; fp16 rows are as long.
CACHE_DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.float16, torch.float16: torch.float16}
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int32: np.int32}


def missing() -> str | None:
    """Why the peer cannot run here, or None."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime's GroupQueryAttention is not measured: {error}; pip install 'flagattn[bench]'"
    return None


def session(dtype: torch.dtype, heads_q: int, heads_k: int, head_dim: int) -> Any:
    """A model of this one node, on torch's number of threads, which stop spinning when a call is done."""
    import onnxruntime
    from onnx import TensorProto, helper

    kind = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}[dtype]

    def tensors(kind: int, **shapes: Any) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]

    query, row = ["batch", 1, heads_q * head_dim], ["batch", 1, heads_k * head_dim]
    cache = ["batch", heads_k, "capacity", head_dim]
    inputs = tensors(kind, query=query, key=row, value=row, past_key=cache, past_value=cache)
    inputs += tensors(TensorProto.INT32, seqlens_k=["batch"], total_sequence_length=[])
    outputs = tensors(kind, output=query, present_key=cache, present_value=cache)
    node = helper.make_node(
        "GroupQueryAttention",
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain="com.microsoft",
        num_heads=heads_q,
        kv_num_heads=heads_k,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "decode", inputs, outputs), opset_imports=opsets)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def thunk(session: Any, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """Attention of q (batch, 1, heads_q, head_dim) over all rows of k and v (batch, context, heads_k, head_dim).

    The caches are copied into onnxruntime's layout and bound as past and present at once, so that they are appended to
    in place; what is appended is their last row, which the op cannot do without.
    """
    dtype = CACHE_DTYPES[q.dtype]
    last = [rows[:, -1:].to(dtype).flatten(2).contiguous() for rows in (k, v)]
    past = [rows.to(dtype).transpose(1, 2).contiguous() for rows in (k, v)]
    query = q.to(dtype).flatten(2).contiguous()
    out = torch.empty_like(query)
    context = k.shape[1]
    lengths = torch.full((q.shape[0],), context - 1, dtype=torch.int32)
    total = torch.tensor(context, dtype=torch.int32)
    binding = session.io_binding()

    def bind(to: Callable[..., None], name: str, tensor: Tensor) -> None:
        to(name, "cpu", 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())

    names = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length")
    operands = (query, *last, *past, lengths, total)
    for name, tensor in zip(names, operands):
        bind(binding.bind_input, name, tensor)
    for name, tensor in zip(("output", "present_key", "present_value"), (out, *past)):
        bind(binding.bind_output, name, tensor)
    result = out.view(q.shape)

    def attend(kept: tuple[Tensor, ...] = operands) -> Tensor:  # the binding knows their addresses only
        session.run_with_iobinding(binding)
        return result

    return attend
