"""Forward passes of Hugging Face layers on this library's ops, and how they take the place of the layers' own."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

import flagattn
from flagattn.integrations import _few_rows as few_rows
from flagattn.integrations import _transformers_layouts as layouts
from flagattn.integrations._transformers_appending import appending, growing_layer
from flagattn.integrations._transformers_forwards import (
    activates_by_silu,
    give_forward,
    has_foreign_forward,
    take_forward,
)
from flagattn.integrations._transformers_steps import decoder_layer_forward

# Class name -> (what is added to the weight, where it is rounded), as in flagattn.rms_norm.
_NORMS = {
    "LlamaRMSNorm": (0.0, "llama"),
    "MistralRMSNorm": (0.0, "llama"),
    "Qwen2RMSNorm": (0.0, "llama"),
    "Qwen3RMSNorm": (0.0, "llama"),
    "Gemma2RMSNorm": (1.0, "gemma"),
}
_GATED_MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}


def _own_window(layer: Any) -> dict[str, Any]:
    return {"sliding_window": layer.sliding_window}


# Class name -> what its forward pass tells the attention beside dropout and scale.
_ATTENTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "LlamaAttention": lambda layer: {},
    "MistralAttention": lambda layer: {"sliding_window": getattr(layer.config, "sliding_window", None)},
    "Qwen2Attention": _own_window,
    "Qwen3Attention": _own_window,
    "Gemma2Attention": lambda layer: {**_own_window(layer), "softcap": layer.attn_logit_softcapping},
}

# Of two halves, each `x + half(norm(x))`, attention and a gated MLP.
_DECODER_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}

# As transformers calls it: (layer, q, k, v, mask, ...) of (batch, heads, seqlen, head_dim).
Attention = Callable[..., tuple[Tensor, None]]


def replace_forwards(model: nn.Module, name: str, attention: Attention) -> int:
    """Gives the layers of known classes their forward passes here; returns how many layers that were.

    So gets the layer that makes logits, if it is a plain linear one. A layer whose forward pass somebody else has
    replaced keeps it; a warning tells how many there are.

    Attention layers go through `attention`, or a growing cache where that serves, while the model's attention
    implementation is `name`, else their own way.
    """
    changed = 0
    output_embeddings = cast(Callable[[], nn.Module | None] | None, getattr(model, "get_output_embeddings", None))
    head = output_embeddings() if output_embeddings is not None else None
    foreign = []
    for path, module in model.named_modules():
        kind = type(module).__name__
        forward: Callable[..., Any]
        if kind in _NORMS:
            forward = _norm_forward(*_NORMS[kind])
        elif kind in _GATED_MLPS and activates_by_silu(module):
            forward = _gated_mlp_forward
        elif kind in _ATTENTIONS:
            forward = _attention_forward(name, attention, _ATTENTIONS[kind])
        elif kind in _DECODER_LAYERS:
            own_options = _ATTENTIONS[kind.replace("DecoderLayer", "Attention")]
            forward = decoder_layer_forward(name, own_options)
        elif module is head and type(module) is nn.Linear:
            forward = _linear_forward
        else:
            continue
        if has_foreign_forward(module):
            foreign.append(path)
            continue
        give_forward(module, forward)
        changed += 1
    if foreign:
        warnings.warn(
            f"fuse leaves {len(foreign)} layers alone, whose forward somebody else has replaced "
            f"(the first is {foreign[0]!r})",
            UserWarning,
            stacklevel=3,
        )
    return changed


def restore_forwards(model: nn.Module) -> int:
    """Undoes `replace_forwards` where nobody has replaced the forward pass since; returns in how many layers."""
    return sum(take_forward(module) for module in model.modules())


@functools.cache
def _norm_forward(offset: float, rounding: str) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        return flagattn.rms_norm(x, self.weight, eps, offset=offset, rounding=rounding)

    return forward


def _gated_mlp_forward(self: Any, x: Tensor) -> Tensor:
    if not activates_by_silu(self):
        return cast(Tensor, type(self).forward(self, x))
    both = few_rows.joined(x, self.gate_proj, self.up_proj)
    gate, up = (self.gate_proj(x), self.up_proj(x)) if both is None else both.chunk(2, -1)
    return few_rows.linear(flagattn.swiglu(gate, up), self.down_proj)


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    y = few_rows.output(x, self)
    return nn.Linear.forward(self, x) if y is None else y


def _rotated(
    self: Any, x: Tensor, position_embeddings: tuple[Tensor, Tensor], heads: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of an attention layer as (batch, seqlen, heads, head_dim), q and k rotated."""
    # transformers' tables hold every angle twice, for the two channels of its pair.
    cos, sin = (layouts.first_half_of(table) for table in position_embeddings)
    together = few_rows.joined(x, self.q_proj, self.k_proj, self.v_proj)
    if together is None:
        q, k, v = (project(x).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
    else:
        together = together.view(heads)
        count, heads_k = together.shape[2], self.k_proj.out_features // self.head_dim
        if not hasattr(self, "q_norm"):
            qk, v = together.split_with_sizes((count - heads_k, heads_k), 2)
            q, k = flagattn.apply_rotary(qk, cos, sin).split_with_sizes((count - 2 * heads_k, heads_k), 2)
            return q, k, v
        q, k, v = together.split_with_sizes((count - 2 * heads_k, heads_k, heads_k), 2)
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    return flagattn.apply_rotary(q, cos, sin), flagattn.apply_rotary(k, cos, sin), v


@functools.cache
def _attention_forward(
    name: str, attention: Attention, own_options: Callable[[Any], dict[str, Any]]
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if self.config._attn_implementation != name or position_embeddings is None:
            given = (hidden_states, position_embeddings, attention_mask, past_key_values)
            return cast(tuple[Tensor, Tensor | None], type(self).forward(self, *given, **kwargs))
        rows = hidden_states.shape[:-1]
        q, k, v = _rotated(self, hidden_states, position_embeddings, (*rows, -1, self.head_dim))
        options = {"scaling": self.scaling, **own_options(self), **kwargs}
        dropout = self.attention_dropout if self.training else 0.0
        out = None
        if past_key_values is not None and not torch.compiler.is_compiling():
            layer = growing_layer(past_key_values, self.layer_idx)
            if layer is not None and dropout == 0.0 and q.dtype == k.dtype == v.dtype:
                found = appending(self, layer, k.transpose(1, 2), v.transpose(1, 2), attention_mask, **options)
                out = None if found is None else layer.attend(q, k, v, **found)
        if out is None:
            q, k, v = (operand.transpose(1, 2) for operand in (q, k, v))
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, self.layer_idx)
            out, _ = attention(self, q, k, v, attention_mask, dropout=dropout, **options)
        return few_rows.linear(out.reshape(*rows, -1), self.o_proj), None

    return forward
