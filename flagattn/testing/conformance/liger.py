"""Liger-Kernel's functions on ours: its own modules and tests import these in place of its Triton kernels.

Each class has the `apply` of Liger's autograd function of that name, arguments in Liger's order. What stands around
them (modules, functional names, reference implementations) is the checkout's own code.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import flagattn


class LigerRMSNormFunction:
    @staticmethod
    def apply(
        x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, casting_mode: str = "llama", *_: Any
    ) -> Tensor:
        if weight is None:  # without a weight Liger adds no offset either
            weight, offset = x.new_ones(x.shape[-1]), 0.0
        return flagattn.rms_norm(x, weight, eps, offset=offset, rounding=casting_mode)


class LigerSiLUMulFunction:
    @staticmethod
    def apply(gate: Tensor, up: Tensor, gate_multiplier: float = 1.0, down_multiplier: float = 1.0) -> Tensor:
        if gate_multiplier != 1.0:
            gate = gate * gate_multiplier
        y = flagattn.swiglu(gate, up)
        return y if down_multiplier == 1.0 else y * down_multiplier


class LigerRopeFunction:
    """q and k are (batch, heads, seqlen, head_dim); the tables hold every angle twice, once for each half."""

    @staticmethod
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        pairs = q.shape[-1] // 2
        cos, sin = cos[..., :pairs], sin[..., :pairs]
        rotated = (flagattn.apply_rotary(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))
        return next(rotated), next(rotated)


class LigerCrossEntropyFunction:
    @staticmethod
    def apply(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        *_: Any,
    ) -> tuple[Tensor, Tensor | None, None, None]:
        _demand_targets_below(logits.shape[-1], target, ignore_index)
        options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap or 0.0, "reduction": reduction}
        options |= {"z_loss": lse_square_scale, "label_smoothing": label_smoothing, "return_lse": True}
        options["token_weights"] = _weights_of_classes(weight, target, ignore_index)
        loss, lse = flagattn.cross_entropy(logits, target, **options)
        z_loss = _z_loss(lse, target, ignore_index, lse_square_scale, reduction) if return_z_loss else None
        return loss.to(logits.dtype), None if z_loss is None else z_loss.to(logits.dtype), None, None


class LigerFusedLinearCrossEntropyFunction:
    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False,
        *_: Any,
    ) -> tuple[Tensor, Tensor | None, None, None]:
        if bias is not None:  # one more feature, which is 1
            hidden = torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], dim=-1)
            weight = torch.cat([weight, bias[:, None]], dim=-1)
        options: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap or 0.0, "return_lse": True}
        options |= {"z_loss": lse_square_scale, "label_smoothing": label_smoothing, "reduction": reduction}
        options["token_weights"] = _weights_of_classes(ce_weight, target, ignore_index)
        if use_token_scaling:  # each row's loss times the probability of its target
            with torch.no_grad():
                plain: dict[str, Any] = {"ignore_index": ignore_index, "softcap": softcap or 0.0, "reduction": "none"}
                surprise = flagattn.linear_cross_entropy(hidden, weight, target, **plain, return_lse=True)[0]
            options["token_weights"] = torch.exp(-surprise)
        loss, lse = flagattn.linear_cross_entropy(hidden, weight, target, **options)
        z_loss = _z_loss(lse, target, ignore_index, lse_square_scale, reduction) if return_z_loss else None
        return loss, z_loss, None, None


def _demand_targets_below(classes: int, target: Tensor, ignore_index: int) -> None:
    """Our op raises RuntimeError for a target out of range; Liger promises an AssertionError."""
    kept = target[target != ignore_index]
    assert kept.numel() == 0 or int(kept.max()) < classes, f"target {int(kept.max())} is out of bounds, {classes}"


def _weights_of_classes(weight: Tensor | None, target: Tensor, ignore_index: int) -> Tensor | None:
    """A weight for every row, from the weights of the classes."""
    return None if weight is None else weight[torch.where(target == ignore_index, 0, target)]


def _z_loss(lse: Tensor, target: Tensor, ignore_index: int, scale: float, reduction: str) -> Tensor:
    """The part of the loss that is scale * lse^2."""
    kept = target != ignore_index
    z_loss = scale * lse.square() * kept
    if reduction == "none":
        return z_loss
    return z_loss.sum() / kept.sum() if reduction == "mean" else z_loss.sum()


class _Ops(types.ModuleType):
    """A module with the functions above; any other name is there too, and cannot be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return types.SimpleNamespace(apply=None)


class _OpsFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `liger_kernel.ops` and all that is in it before the checkout's, which needs Triton and a GPU."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "liger_kernel.ops" and not name.startswith("liger_kernel.ops."):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Ops(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update({name: value for name, value in globals().items() if name.startswith("Liger")})


def prepare() -> None:
    """Puts the functions above where Liger's modules look for its kernels, and mends what its tests meet on a CPU."""
    sys.meta_path.insert(0, _OpsFinder())
    # They leave bf16 out on a CPU. Their reference there, torch's loss, rounds log-probabilities to bf16 and sums rows
    # in fp32, which misses their own tolerances against float64; so it is computed in float64, and rounded.
    importlib.import_module("test.utils").supports_bfloat16 = lambda: True  # type: ignore[attr-defined]
    torch.nn.functional.cross_entropy = _exact(torch.nn.functional.cross_entropy)
    # They hand a device to transformers' class, which later versions of it do not take.
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    if "device" not in inspect.signature(llama.LlamaRotaryEmbedding).parameters:
        llama.LlamaRotaryEmbedding = lambda config, device=None, make=llama.LlamaRotaryEmbedding: make(config)  # type: ignore[attr-defined]


def _exact(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def in_float64(logits: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        weight = None if weight is None else weight.double()
        return cross_entropy(logits.double(), target, weight=weight, **options).to(logits.dtype)

    return in_float64
