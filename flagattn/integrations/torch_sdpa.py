"""torch's scaled_dot_product_attention on this library's kernels: switched on by hand, and off again.

from flagattn.integrations import torch_sdpa

with torch_sdpa.enable():
    model(ids)  # every F.scaled_dot_product_attention in it is flagattn's

torch_sdpa.register()  # the same by torch's own registry of flash attention implementations
torch.nn.attention.activate_flash_attention_impl("flagattn")
torch.nn.attention.restore_flash_attention_impl()
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import flagattn
from flagattn._checks import DTYPES, MAX_HEAD_DIM

NAME = "flagattn"

_native: Any = flagattn
_torchs: Any = F.scaled_dot_product_attention


class Handle:
    """What `enable` did; `remove()` undoes it, as does leaving it as a context manager.

    The handle of a call that found it enabled already undoes nothing.
    """

    def __init__(self, switched: bool = True) -> None:
        self._switched = switched

    def remove(self) -> None:
        if self._switched and F.scaled_dot_product_attention is scaled_dot_product_attention:
            F.scaled_dot_product_attention = _torchs
        self._switched = False

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def enable() -> Handle:
    """Replace torch.nn.functional.scaled_dot_product_attention until the handle is removed.

    Code that looks the function up there finds ours: torch.nn layers and transformers' "sdpa" do. Code that imported
    the function itself earlier keeps torch's, and so do calls that `serves` does not tell. In those that it tells,
    three things change: a second derivative raises; attn_mask together with is_causal=True raises, as torch documents,
    whose CPU takes both; and rows whose keys are all hidden by biases below -1e38, such as
    `torch.finfo(torch.float32).min`, are 0, where torch takes the mean of all values.

    Raises:
        RuntimeError: something else has already replaced it.
    """
    if F.scaled_dot_product_attention is scaled_dot_product_attention:
        return Handle(switched=False)
    if F.scaled_dot_product_attention is not _torchs:
        raise RuntimeError("torch.nn.functional.scaled_dot_product_attention is already replaced by something else")
    F.scaled_dot_product_attention = scaled_dot_product_attention
    return Handle()


def register() -> str:
    """Make "flagattn" a name that torch.nn.attention.activate_flash_attention_impl knows; returns the name.

    Activating it is `enable`, torch.nn.attention.restore_flash_attention_impl undoes it.
    """
    torch.nn.attention.register_flash_attention_impl(NAME, register_fn=enable)
    return NAME


def serves(query: Any, key: Any, value: Any, attn_mask: Any = None, enable_gqa: bool = False) -> bool:
    """Whether a call with these operands is computed here; torch computes the others as before.

    Here: plain tensors on the CPU of four dimensions, equal dtype float32, bfloat16 or float16, equal batch, head dims
    up to 256, as many key/value heads as query heads, or a divisor of that with enable_gqa, and masks that are boolean
    or of one of the three dtypes.
    """
    operands = (query, key, value)
    if not all(isinstance(operand, Tensor) for operand in operands) or has_torch_function(operands):
        return False
    plain = all(
        operand.device.type == "cpu"
        and operand.layout is torch.strided
        and not is_traceable_wrapper_subclass(operand)
        and operand.dim() == 4
        and operand.dtype in DTYPES
        and operand.dtype == query.dtype
        and operand.shape[0] == query.shape[0]
        and 1 <= operand.shape[-1] <= MAX_HEAD_DIM
        for operand in operands
    )
    if not plain or key.shape[1] != value.shape[1]:
        return False
    if not (query.shape[1] == key.shape[1] or (enable_gqa and key.shape[1] and query.shape[1] % key.shape[1] == 0)):
        return False
    return attn_mask is None or (isinstance(attn_mask, Tensor) and attn_mask.dtype in (torch.bool, *DTYPES))


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`flagattn.scaled_dot_product_attention` for the operands that `serves` tells, else torch's own."""
    ours = serves(query, key, value, attn_mask, enable_gqa)
    function = _native.scaled_dot_product_attention if ours else _torchs
    return function(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
