"""Decoder layers of Hugging Face models on few rows: each half of them in one call, where nobody looks in between."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from flagattn._checks import scale_or_default, window_bounds
from flagattn._decoder_layers import few_row_attention, few_row_gated_mlp
from flagattn.integrations import _few_rows as few_rows
from flagattn.integrations import _transformers_capturing as capturing
from flagattn.integrations import _transformers_layouts as layouts
from flagattn.integrations._transformers_appending import appending, growing_layer
from flagattn.integrations._transformers_forwards import activates_by_silu, is_fused


class _NewRows(NamedTuple):
    """Of rows (batch, heads, seqlen, head_dim) that are still to be computed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@functools.cache
def decoder_layer_forward(name: str, own_options: Callable[[Any], dict[str, Any]]) -> Callable[..., Tensor]:
    """`x + attention(norm(x))`, then the same of the MLP; the layer's own where x is not a few plain rows."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x, parts = hidden_states, self._modules
        if args or x.dim() != 3 or not few_rows.is_plain(x):
            return cast(Tensor, type(self).forward(self, x, *args, **kwargs))
        norm, attention = parts["input_layernorm"], parts["self_attn"]
        change = None
        if _is_served(attention) and attention.config._attn_implementation == name:
            options = {"scaling": attention.scaling, **own_options(attention), **kwargs}
            change = _attention(x, norm, attention, options)
        if change is None:
            change, _ = attention(hidden_states=norm(x), **kwargs)
        x = x + change
        norm, mlp = parts["post_attention_layernorm"], parts["mlp"]
        change = _gated_mlp(x, norm, mlp) if _is_served(mlp) and activates_by_silu(mlp) else None
        return x + (mlp(norm(x)) if change is None else change)

    return forward


def _is_served(module: nn.Module) -> bool:
    return is_fused(module) and not few_rows.has_hooks(module, capturing.is_idle)


def _norm_of(norm: Any, x: Tensor) -> tuple[Tensor, float] | None:
    weight = norm._parameters.get("weight")
    return (weight, norm.variance_epsilon) if _is_served(norm) and few_rows.fits(weight, x) else None


def _gated_mlp(x: Tensor, norm: nn.Module, mlp: Any) -> Tensor | None:
    parts = mlp._modules
    found = few_rows.operands(x, parts["gate_proj"], parts["up_proj"], parts["down_proj"])
    scaled = _norm_of(norm, x)
    return None if found is None or scaled is None else few_row_gated_mlp(x, scaled, *found)


def _attention(x: Tensor, norm: nn.Module, attention: Any, options: dict[str, Any]) -> Tensor | None:
    cache, tables = options.pop("past_key_values", None), options.pop("position_embeddings", None)
    if cache is None or tables is None or "q_norm" in attention._modules:
        return None
    if attention.training and attention.attention_dropout != 0.0:
        return None
    parts = attention._modules
    found = few_rows.operands(x, parts["q_proj"], parts["k_proj"], parts["v_proj"])
    last, scaled = few_rows.operands(x, parts["o_proj"]), _norm_of(norm, x)
    layer = growing_layer(cache, attention.layer_idx)
    if found is None or last is None or scaled is None or layer is None:
        return None
    head_dim, seqlen = attention.head_dim, x.shape[1]
    shape = (x.shape[0], found[0][1].shape[0] // head_dim, seqlen, head_dim)
    rows = _NewRows(shape, x.dtype, x.device)
    masks = appending(attention, layer, rows, rows, options.pop("attention_mask", None), **options)
    if masks is None:
        return None
    # transformers' tables hold every angle twice, for the two channels of its pair.
    rotation = layouts.first_half_of(tables[0]), layouts.first_half_of(tables[1])
    out = last[0][0], last[1][0] if last[1] else None
    scale = scale_or_default(masks["softmax_scale"], head_dim)
    window = window_bounds(masks["window_size"], masks["causal"])

    def attend(keys: Tensor, values: Tensor, used: Tensor) -> Tensor:
        rest: Any = (used, masks["leftpad"], scale, window, masks["softcap"])
        return few_row_attention(x, scaled, *found, out, rotation, (keys, values), *rest)

    return cast(Tensor, layer.append(x, seqlen, attend))
