"""Attention of Hugging Face models, and their other layers: switched on by hand.

    from flagattn.integrations import transformers as integration

    integration.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="flagattn")
    integration.fuse(model)  # also RMSNorm, SwiGLU, rotation and the cache's growth, where the model's are known

Padded batches are computed without their padding, packed ones (`position_ids` that start anew, or cu_seq_lens_q and the
like) sequence by sequence, cached generation on the cache where it lies. Causal masks, sliding windows and padding are
never formed as matrices; any other mask a model asks for is.

It serves transformers 5.x from the release on whose masks are asked for with q_length; tested is 5.23.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

import flagattn
from flagattn._attention_calls import dense_attention
from flagattn.integrations import _transformers_layers as layers
from flagattn.integrations import _transformers_layouts as layouts

NAME = "flagattn"

_native: Any = flagattn  # its results depend on flags


def register() -> str:
    """Make "flagattn" an attention implementation of transformers; returns that name.

    Afterwards `attn_implementation="flagattn"` at loading, or `model.set_attn_implementation("flagattn")`, uses it. A
    second call changes nothing.

    Raises:
        ImportError: transformers is missing, or so old that it does not ask for masks with q_length.
    """
    needed = "flagattn.integrations.transformers needs a transformers 5.x whose masks take q_length (tested: 5.23)"
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError(needed) from error
    if "q_length" not in inspect.signature(sdpa_mask).parameters:
        raise ImportError(needed)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    return NAME


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: Any = None,
    max_length_k: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every attention layer.

    Args:
        query: (batch, heads_q, seqlen_q, head_dim).
        key, value: (batch, heads_k, seqlen_k, head_dim), where heads_k divides heads_q.
        attention_mask: what `mask` gave: None, (batch, seqlen_k) with True where a key counts, (batch, 1, seqlen) with
            the number of each row's packed sequence, or a mask of four dimensions, boolean or additive.
        sliding_window: how many keys a query sees, its own included.
        s_aux: (heads_q,), the logits of attention sinks.
        position_ids: (1, seqlen) of sequences packed into a batch of one; every one begins where its position is 0.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: of sequences packed into one row, if they are known.

    Returns:
        out (batch, seqlen_q, heads_q, head_dim) and None for the probabilities, which are never formed
        (a warning says so once where they are asked for).
    """
    if kwargs.get("cache") is not None:
        raise NotImplementedError(
            "cache is given; transformers' continuous batching is not served by attn_implementation='flagattn'"
        )
    if kwargs.get("output_attentions") and not torch.compiler.is_compiling():
        _warn_of_missing_probabilities()
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if query.dtype != value.dtype or key.dtype != value.dtype:
        query, key = query.to(value.dtype), key.to(value.dtype)  # layer norms kept in fp32
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    window = (-1, -1)
    if sliding_window is not None and k.shape[1] > sliding_window:
        window = (sliding_window - 1, 0 if causal else sliding_window - 1)
    options = {
        "dropout_p": dropout,
        "softmax_scale": scaling,
        "causal": causal,
        "window_size": window,
        "softcap": softcap or 0.0,
        "sinks": s_aux,
    }
    if attention_mask is not None:
        if attention_mask.dim() == 4:
            return _with_any_mask(q, k, v, attention_mask, dropout, scaling, softcap, s_aux), None
        if attention_mask.dim() == 3:
            return _packed(q, k, v, layouts.packing_of(attention_mask), options), None
        return _with_padding(q, k, v, attention_mask, options), None
    if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        longest_q, longest_k = (_integer(length) for length in (max_length_q, max_length_k))
        packing = (cu_seq_lens_q.int(), cu_seq_lens_k.int(), longest_q, longest_k)
        return _packed(q, k, v, packing, options), None
    if position_ids is not None and q.shape[0] == 1 and q.shape[1] == k.shape[1] == position_ids.numel():
        restarts = None if torch.compiler.is_compiling() else layouts.restarts_of(position_ids)
        if restarts is not None:
            return _packed(q, k, v, restarts, options), None
    if _is_inference(q, k, v) and q.shape[1] < k.shape[1] and dropout == 0.0:
        return _cached(q, k, v, options), None
    return _native.flash_attn_func(q, k, v, **options), None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """What transformers calls once per forward pass and kind of mask: what `attention` takes as attention_mask.

    Causal masks and windows follow from the arguments of `attention`. Packed sequences are those that transformers
    finds in position_ids (without a cache and a mask: where a position does not rise by one).
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if mask_function is None:
        mask_function = causal_mask_function
    compiling = torch.compiler.is_compiling()
    hidden = attention_mask is not None or isinstance(q_offset, Tensor)
    if not layouts.follows_from_arguments(mask_function) or (hidden and compiling):
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        sizes = (batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask)
        return sdpa_mask(*sizes, **kwargs)
    sequences = None if compiling else layouts.packed_sequences(mask_function)
    if sequences is not None:
        return sequences.unsqueeze(1)
    if attention_mask is None:
        seen = int(q_offset) + q_length - kv_offset
        # The rows of a static cache that nothing was written to yet.
        return (
            None if seen >= kv_length else torch.ones(batch_size, seen, dtype=torch.bool, device=kwargs.get("device"))
        )
    attention_mask = attention_mask[:, -kv_length:]
    return None if attention_mask.shape[1] == kv_length and bool(attention_mask.all()) else attention_mask


@functools.cache  # once, not in every layer
def _warn_of_missing_probabilities() -> None:
    warnings.warn(
        "output_attentions=True gives no attentions with attn_implementation='flagattn', which never forms the "
        "probabilities; model.set_attn_implementation('eager') gives them",
        UserWarning,
        stacklevel=3,
    )


# ---- the ways through ----


def _packed(q: Tensor, k: Tensor, v: Tensor, packing: Any, options: dict[str, Any]) -> Tensor:
    rows = (operand.flatten(0, 1) for operand in (q, k, v))
    return _native.flash_attn_varlen_func(*rows, *packing, **options).unflatten(0, q.shape[:2])


def _with_padding(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, options: dict[str, Any]) -> Tensor:
    k, v = k[:, : keys.shape[1]], v[:, : keys.shape[1]]  # a static cache is longer than what was seen
    padding = layouts.padding_of(keys)
    if not options["causal"] and options["window_size"] == (-1, -1):
        # It may be cross-attention, so that the mask of the keys says nothing of the queries: all of them count.
        cu_seqlens_q = layouts.all_rows(q.shape[0], q.shape[1], q.device)
        rows = [operand.flatten(0, 1).index_select(0, padding.indices) for operand in (k, v)]
        packing = (cu_seqlens_q, padding.cu_seqlens, q.shape[1], padding.longest)
        out = _native.flash_attn_varlen_func(q.flatten(0, 1), *rows, *packing, **options)
        return cast(Tensor, out.unflatten(0, q.shape[:2]))
    if q.shape[1] == k.shape[1]:
        rows = [operand.flatten(0, 1).index_select(0, padding.indices) for operand in (q, k, v)]
        packing = (padding.cu_seqlens, padding.cu_seqlens, padding.longest, padding.longest)
        out = _native.flash_attn_varlen_func(*rows, *packing, **options)
        return layouts.scattered(out, padding.indices, q.shape[:2])
    if padding.starts is not None and _is_inference(q, k, v) and options["dropout_p"] == 0.0:
        return _cached(q, k, v, options, padding)
    # The queries are the last ones of each row, and count where their keys do.
    queries = layouts.padding_of(keys[:, -q.shape[1] :])
    rows = [q.flatten(0, 1).index_select(0, queries.indices)]
    rows += [operand.flatten(0, 1).index_select(0, padding.indices) for operand in (k, v)]
    packing = (queries.cu_seqlens, padding.cu_seqlens, queries.longest, padding.longest)
    out = _native.flash_attn_varlen_func(*rows, *packing, **options)
    return layouts.scattered(out, queries.indices, q.shape[:2])


def _cached(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], padding: layouts.Padding | None = None) -> Tensor:
    """On the cache where it lies; keys that do not count stand before those that do."""
    masks = {name: value for name, value in options.items() if name != "dropout_p"}
    if padding is not None:
        masks.update(cache_leftpad=padding.starts, cache_seqlens=k.shape[1])
    return _native.flash_attn_with_kvcache(q, k, v, **masks)


def _with_any_mask(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    k, v = k[:, : mask.shape[-1]], v[:, : mask.shape[-1]]
    joined = (dropout, None, sinks)
    out, _ = dense_attention(q, k, v, scaling, False, (-1, -1), softcap or 0.0, joined, mask)
    return out


def _is_inference(*operands: Tensor) -> bool:
    return not (torch.is_grad_enabled() and any(operand.requires_grad for operand in operands))


def _integer(value: Any) -> Any:
    return int(value.item()) if isinstance(value, Tensor) else value


# ---- layers ----


def fuse(model: nn.Module) -> int:
    """Give the model's layers of known classes forward passes on this library's ops; `unfuse` undoes it.

    RMSNorm layers go through `flagattn.rms_norm` and gated MLPs whose activation is SiLU through `flagattn.swiglu`.
    Attention layers rotate with `flagattn.apply_rotary` and let a DynamicCache grow in place, in buffers with room for
    a quarter or 64 rows more, whichever is more, instead of copying it for every token; that only while the model's
    attention implementation is "flagattn". Weights stay where they are.

    On up to eight rows, without gradients and on the CPU, the linear layers of attention, of those MLPs and of the
    logits go through a product of this library's that reads every weight once; layers with one input share a call, and
    in Llama, Mistral, Qwen2 and Qwen3 a whole gated MLP with its norm is one call, as is attention with its norm over
    a cache that grows in place (not Qwen3's). That is for plain `nn.Linear` layers in x's dtype: what hooks, adapters,
    quantised weights or autocast make of a layer is left to the layer.

    The cache grows in place without gradients (under torch.no_grad or inference_mode, as in generate), for layers with
    full attention, head dimensions that are multiples of 8, and rows of the dtype of those before; else as
    transformers lets it. Its keys and values are then views of the buffers: change them in place, and those handed out
    earlier change too.

    A layer whose `forward` somebody else has replaced, as accelerate's hooks do, keeps that one, and a warning says so;
    it is not counted. Replace or wrap a layer's `forward` afterwards and it is called for every row.

    Returns:
        How many layers were changed.
    """
    return layers.replace_forwards(model, NAME, attention)


def unfuse(model: nn.Module) -> int:
    """Give the layers that `fuse` changed their own forward passes back; returns how many.

    A layer whose `forward` somebody has replaced or wrapped since keeps that one, and what it wraps: undo that first.
    """
    return layers.restore_forwards(model)
