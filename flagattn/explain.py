"""Which kernel would run for given inputs, how it would cut the work, and why another would not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import flagattn.activation
import flagattn.attention
import flagattn.column_sums
import flagattn.kvcache
import flagattn.linear
import flagattn.loss
import flagattn.merging
import flagattn.norm
import flagattn.piecewise
import flagattn.rotary
import flagattn.sdpa
from flagattn.build_info import CPU_LEVELS, build_info

_ATTENTION = {
    name: getattr(flagattn.attention, name)
    for name in (
        "flash_attn_func",
        "flash_attn_kvpacked_func",
        "flash_attn_qkvpacked_func",
        "flash_attn_varlen_func",
        "flash_attn_varlen_kvpacked_func",
        "flash_attn_varlen_qkvpacked_func",
    )
} | {"scaled_dot_product_attention": flagattn.sdpa.scaled_dot_product_attention}
_PIECEWISE = {
    "piecewise_attn_func": flagattn.piecewise.piecewise_attn_func,
    "piecewise_attn_varlen_func": flagattn.piecewise.piecewise_attn_varlen_func,
}
_CACHED = {name: getattr(flagattn.kvcache, name) for name in ("flash_attn_with_kvcache", "piecewise_attn_with_kvcache")}
_FUSED: dict[str, Callable[..., Any]] = {
    "rms_norm": flagattn.norm.rms_norm,
    "swiglu": flagattn.activation.swiglu,
    "apply_rotary": flagattn.rotary.apply_rotary,
    "batch_invariant_linear": flagattn.linear.batch_invariant_linear,
    "cross_entropy": flagattn.loss.cross_entropy,
    "linear_cross_entropy": flagattn.loss.linear_cross_entropy,
    "attention_column_sums": flagattn.column_sums.attention_column_sums,
}
_BY_TORCH = {"merge_attention_states": flagattn.merging.merge_attention_states}
_ALL = {**_ATTENTION, **_PIECEWISE, **_CACHED, **_FUSED, **_BY_TORCH}
_SOURCES = {
    "rms_norm": "csrc/norm/cpu",
    "swiglu": "csrc/activation/cpu",
    "apply_rotary": "csrc/rotary/cpu",
    "batch_invariant_linear": "csrc/linear/cpu",
    "cross_entropy": "csrc/loss/cpu",
    "linear_cross_entropy": "csrc/loss/cpu with products of csrc/linear/cpu",
    "attention_column_sums": "csrc/attention/cpu",
}
_CUDA_SOURCES = {
    "rms_norm": "csrc/norm/cuda/sm80",
    "swiglu": "csrc/activation/cuda/sm80",
    "apply_rotary": "csrc/rotary/cuda/sm80",
    "cross_entropy": "csrc/loss/cuda/sm80",
    "linear_cross_entropy": "csrc/loss/cuda/sm80 with products by torch's BLAS",
}


@dataclass
class Explanation:
    """The kernel by its folder and level, how it cuts the work, and for every other kernel why it is not taken."""

    op: str
    kernel: str
    reason: str
    details: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("kernel", f"{self.kernel}: {self.reason}"), *self.details.items()]
        rows += [(f"not {name}", why) for name, why in self.others.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join([self.op, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Tell which kernel a call would run, without running it.

    Args:
        op: a public function of flagattn or its name, for example `flagattn.flash_attn_func` or "rms_norm".
        args, kwargs: what the function would be called with; tensors on any device, also "meta".

    Returns:
        `Explanation`; print it. Where the call would raise, its kernel is "none" for the reason the error gives; wrong
        values inside tensors are not looked for. The tiles of the CPU kernels are those for torch's present number of
        threads.

    Raises:
        ValueError: there is no such op. TypeError: the arguments do not fit its signature.

    Not differentiable. Source: flagattn/explain.py, csrc/torch/attention_plan.cpp.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", str(op))
    function = _ALL.get(name)
    if function is None:
        raise ValueError(f"op is {name!r}; it must be one of {', '.join(_ALL)}")
    arguments = inspect.signature(function).bind(*args, **kwargs)
    arguments.apply_defaults()
    wrong = _what_is_wrong(function, arguments)
    if wrong is not None:
        return Explanation(name, "none", wrong)
    if name in _BY_TORCH:
        return Explanation(name, "torch's own ops", "a few of them, element by element, run on any device")
    if name in _FUSED:
        if name == "batch_invariant_linear":
            return _explain_linear(arguments.arguments)
        explanation = _explain_fused(name, next(iter(arguments.arguments.values())))
        if name == "linear_cross_entropy":
            explanation.details["gradients"] = _explain_head(arguments.arguments)
        if name == "attention_column_sums":
            explanation.details["sums"] = "512 keys' at a time over all rows, from products of q and k made again"
        return explanation
    return _explain_attention(name, arguments.arguments)


def _what_is_wrong(function: Callable[..., Any], arguments: inspect.BoundArguments) -> str | None:
    """The error of the call by its arguments' types, dtypes, devices and shapes: tried on tensors without memory."""
    tensors = [value for value in arguments.arguments.values() if isinstance(value, Tensor)]
    if tensors and tensors[0].device.type == "meta":
        return None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            args, kwargs = tree_map_only(Tensor, mode.from_tensor, (arguments.args, arguments.kwargs))
            function(*args, **kwargs)
    except (TypeError, ValueError, NotImplementedError) as error:
        return str(error)
    except RuntimeError:  # what only values can tell, or an operand that requires gradient
        return None
    return None


def _explain_fused(name: str, x: Tensor) -> Explanation:
    explanation = _on_device(name, _SOURCES[name], x)
    if x.stride(-1) != 1:
        explanation.details["copies"] = "the last dimension is not contiguous: the operand is copied first"
    return explanation


def _explain_linear(arguments: dict[str, Any]) -> Explanation:
    x, weight = arguments["x"], arguments["weight"]
    explanation = _on_device("batch_invariant_linear", _SOURCES["batch_invariant_linear"], x)
    in_tiles = _multiplies_in_tiles(x)
    explanation.details["sums"] = (
        "one chain of tile products over 32 terms each, in fp32"
        if in_tiles
        else "chains of 128 multiply-adds in fp32, the chains added in order"
    )
    if x.shape[:-1].numel() <= 4 and weight.stride(-1) == 1 and not in_tiles:
        explanation.details["weight"] = "read once where it lies, since up to 4 rows share it"
    else:
        explanation.details["weight"] = "packed in blocks of 96 rows, each for up to 144 rows of x"
    explanation.others["torch's BLAS"] = "its order of summation depends on the number of rows and threads"
    return explanation


def _multiplies_in_tiles(operand: Tensor) -> bool:
    """Whether the CPU kernels of attention and linear maps multiply it in the tile registers of the amx level."""
    return operand.device.type == "cpu" and operand.dtype is torch.bfloat16 and build_info().cpu_level == "amx"


def _explain_head(arguments: dict[str, Any]) -> str:
    if arguments["weight"].dtype is not torch.float32:
        return "made in the backward from logits made again, since the weight's gradient is to be rounded once"
    if arguments["reduction"] == "none":
        return "made in the backward from logits made again, since only it knows the gradient of each loss"
    return "taken in the forward, while the logits are there; made again for a gradient of lse"


def _explain_attention(name: str, arguments: dict[str, Any]) -> Explanation:
    operands = _attention_operands(name, arguments)
    q, k, v = operands[0], operands[1], operands[-1]
    explanation = _on_device(name, "csrc/attention/cpu", q)

    copies = [f"head_dim {t.shape[-1]} is padded to a multiple of 8" for t in (q, v) if t.shape[-1] % 8 != 0]
    if any(operand.stride(-1) != 1 for operand in operands):
        copies.append("an operand's last dimension is not contiguous")
    if copies:
        explanation.details["copies"] = "; ".join(copies)
    if q.device.type != "cpu":
        if q.device.type == "cuda":
            head_dim = max(q.shape[-1], v.shape[-1])
            over_cache = name in _CACHED or arguments.get("block_table") is not None
            explanation.details["forward"] = (
                _cuda_decode(head_dim, q, k, arguments) if over_cache else _cuda_forward(head_dim, name, arguments)
            )
            backward = "none: pages are read only" if over_cache else _cuda_backward(head_dim, arguments)
            explanation.details.setdefault("backward", backward)
        return explanation
    if _multiplies_in_tiles(q):
        explanation.details["products"] = (
            "bf16 in tiles, over 32 terms each; weights are rounded to bf16, sums are fp32"
        )

    packing: list[Tensor] = []
    if name in _CACHED:
        batch, seqlen_q, seqlen_k = q.shape[0], q.shape[1], k.shape[1]
        if arguments["block_table"] is not None:
            seqlen_k *= arguments["block_table"].shape[1]
    elif q.dim() == 4:
        batch, seqlen_q, seqlen_k = q.shape[0], q.shape[1], k.shape[1]
    else:
        one_for_both = "cu_seqlens" in arguments
        packing = [arguments["cu_seqlens" if one_for_both else key] for key in ("cu_seqlens_q", "cu_seqlens_k")]
        batch = packing[0].shape[0] - 1
        seqlen_q = arguments["max_seqlen" if one_for_both else "max_seqlen_q"]
        seqlen_k = arguments["max_seqlen" if one_for_both else "max_seqlen_k"]
    head_dims = [-(-tensor.shape[-1] // 8) * 8 for tensor in (q, v)]
    sizes = (batch, q.shape[-2], k.shape[-2], seqlen_q, seqlen_k, *head_dims)
    piecewise = name.startswith("piecewise")
    cut = torch.ops.flagattn.attention_plan(*sizes, piecewise, *packing)
    plan = dict(line.split("=") for line in cut.splitlines())
    threads = _counted(plan["threads"], "thread")
    joined = _what_joins_the_scores(arguments)
    if joined:
        explanation.details["scores"] = "; ".join(joined)
    terms = [term for term in ("attn_mask", "dropout_p") if _is_given(arguments.get(term))]
    decodes = plan["decodes"] == "1" and not terms
    shared = decodes and plan["forwards"] == "1"
    if decodes:
        explanation.details["few rows" if shared else "forward"] = (
            f"{'sequences of up to ' + _counted(plan['decode_rows'], 'query row') + ' go to ' if shared else ''}"
            f"the decode kernel, {_counted(plan['decode_items'], 'work item')} of {plan['decode_heads']} key/value "
            f"heads' chunk of {plan['key_chunk']} keys for {threads}: up to {plan['most_decode_columns']} query rows, "
            "heads of a group counted, read every key once"
        )
        if not shared:
            return _with_backward(explanation, plan, name, arguments)
    else:
        explanation.others["decode kernel"] = (
            f"it takes no {', '.join(terms)}"
            if terms
            else f"it takes up to {plan['most_decode_columns']} query rows, heads of a group counted"
        )
    explanation.details["forward"] = (
        f"{_counted(plan['forward_items'], 'work item')} of up to {plan['forward_columns_per_item']} query rows "
        f"(heads of a group counted) for {threads}, {plan['panel_columns']} rows computed side by side, in tiles of "
        f"{plan['forward_key_tile']} keys"
    )
    return _with_backward(explanation, plan, name, arguments)


def _cuda_width(head_dim: int) -> int:
    return next(width for width in (64, 96, 128, 192, 256) if head_dim <= width)


def _cuda_decode(head_dim: int, q: Tensor, k: Tensor, arguments: dict[str, Any]) -> str:
    """As csrc/attention/cuda/sm80/decode_schedule.h cuts the work."""
    group = q.shape[-2] // k.shape[-2]
    columns = group * (q.shape[1] if q.dim() == 4 else arguments["max_seqlen_q"])
    keys = k.shape[1] * (1 if arguments["block_table"] is None else arguments["block_table"].shape[1])
    width = _cuda_width(head_dim)
    text = (
        f"the {group} query heads of a key/value head as columns of one tile of 64 against tiles of "
        f"{32 if width > 128 else 64} keys, channels padded to {width}"
    )
    if q.dim() == 4 and (columns > 64 or keys <= 512):
        return text + "; one block leads all keys past a tile of columns"
    splits = f"; up to {-(-keys // 512)} splits of 512 keys, merged in their order by a second kernel"
    return text + splits + ("" if q.dim() == 4 else ", for sequences of up to 64 columns")


def _cuda_forward(head_dim: int, name: str, arguments: dict[str, Any]) -> str:
    """As csrc/attention/cuda/sm80/heuristics.h chooses."""
    width = _cuda_width(head_dim)
    terms = [term for term in ("attn_mask", "alibi_slopes", "dropout_p") if _is_given(arguments.get(term))]
    keys, rows = (32, 64) if width > 128 else (64, 64 if terms else 128)
    text = f"blocks of {rows} query rows of a head against tiles of {keys} keys, columns padded to {width}"
    if terms:
        text += f"; {', '.join(terms)} joined to every score"
    if name in _PIECEWISE:
        text += "; near keys first, then far ones, and tiles on the border in both"
    return text


def _cuda_backward(head_dim: int, arguments: dict[str, Any]) -> str:
    """As csrc/attention/cuda/sm80/backward_tiles.h chooses."""
    terms = [term for term in ("attn_mask", "alibi_slopes", "dropout_p") if _is_given(arguments.get(term))]
    if head_dim > 256:
        return f"none: the head dimension is {head_dim}, and the kernels take up to 256"
    with_terms = next(width for width in (64, 128, 256) if head_dim <= width)
    width = with_terms if terms else _cuda_width(head_dim)
    keys = 64 if width > 128 else 128
    rows = 128 if width == 64 and not terms else 64
    text = (
        f"blocks of {keys} keys of a key/value head against tiles of {rows} query rows, columns padded to {width}; "
        "dq added up in the order of the key tiles"
    )
    if width != 64 or not terms:
        small_rows, small_keys = {64: (64, 128), 128: (64, 64), 256: (32, 32)}[with_terms]
        text += (
            f"; {small_keys} keys against {small_rows} rows, columns padded to {with_terms}, where a block has 99 KiB "
        )
        text += "of shared memory (compute capability 8.6, 8.9 and 12)"
    mask = arguments.get("attn_mask")
    if mask is not None and mask.dtype is not torch.bool:
        text += "; the gradient of attn_mask is a pass of its own"
    return text


def _counted(number: str, thing: str) -> str:
    return f"{number} {thing}" if number == "1" else f"{number} {thing}s"


def _is_given(argument: object) -> bool:
    return argument is not None and not (isinstance(argument, float) and argument == 0.0)


def _with_backward(explanation: Explanation, plan: dict[str, str], name: str, arguments: dict[str, Any]) -> Explanation:
    if name in _CACHED or arguments.get("block_table") is not None:
        why = "caches are written in place" if name in _CACHED else "pages are read only"
        explanation.details["backward"] = f"none: {why}"
        return explanation
    explanation.details["backward"] = (
        f"{_counted(plan['backward_parts'], 'part')} of up to {plan['backward_columns_per_part']} query rows, in tiles "
        f"of {plan['backward_key_tile']} keys, the parts' shares of dk and dv summed in order"
    )
    return explanation


def _what_joins_the_scores(arguments: dict[str, Any]) -> list[str]:
    texts = []
    mask = arguments.get("attn_mask")
    if mask is not None:
        same_for_rows = all(size == 1 for size in mask.shape[-3:-1])
        if mask.dtype is not torch.bool:
            texts.append(
                "attn_mask is added to every score; tiles that it hides are skipped; its gradient is a pass of its own"
            )
        elif same_for_rows:
            texts.append("attn_mask cuts the range of keys, and is looked at score by score only between its ends")
        else:
            texts.append("attn_mask is looked at tile by tile: skipped, whole, or score by score")
    if arguments.get("alibi_slopes") is not None:
        texts.append("ALiBi is added to every score")
    if arguments.get("sinks") is not None:
        texts.append("sinks join the softmax's denominator at the end")
    if arguments.get("dropout_p", 0.0) != 0.0:
        texts.append("dropout by Philox of every weight's place")
    return texts


def _attention_operands(name: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """q, k and what follows, with v last, in the kernels' layout."""
    if name == "scaled_dot_product_attention":
        return tuple(arguments[key].transpose(1, 2) for key in ("query", "key", "value"))
    if "qkv" in arguments:
        return tuple(arguments["qkv"].unbind(-3))
    if "kv" in arguments:
        return (arguments["q"], *arguments["kv"].unbind(-3))
    if name in _CACHED:
        keys: tuple[str, ...] = ("q", "k_cache", "v_cache")
        if name.startswith("piecewise"):
            keys = ("q1", "k1_cache", "q2", "k2_cache", "v_cache")
        return tuple(arguments[key] for key in keys)
    keys = ("q1", "k1", "q2", "k2", "v") if name in _PIECEWISE else ("q", "k", "v")
    return tuple(arguments[key] for key in keys)


def _on_device(name: str, cpu_source: str, operand: Tensor) -> Explanation:
    info = build_info()
    device = operand.device.type
    if device == "cpu":
        explanation = Explanation(name, f"{cpu_source}, level {info.cpu_level}", info.cpu_level_reason)
        chosen = CPU_LEVELS.index(info.cpu_level)
        for index, level in enumerate(CPU_LEVELS):
            if index < chosen:
                explanation.others[f"level {level}"] = f"slower than {info.cpu_level}"
            elif index > chosen:
                built = level in info.cpu_levels
                explanation.others[f"level {level}"] = info.cpu_level_reason if built else "not in this build"
        explanation.others["CUDA"] = "the operands are on the CPU"
        return explanation
    if device == "cuda" and name in _CACHED:
        return Explanation(
            name,
            "csrc/attention/cuda/sm80, over caches",
            f"the operands are on {operand.device}; built for {', '.join(info.cuda_archs) or 'no architecture'}",
            details={"backward": "none: caches are written in place"},
            others={"CPU": "kernels never move operands between devices"},
        )
    if device == "cuda" and (name in _ATTENTION or name in _PIECEWISE):
        return Explanation(
            name,
            "csrc/attention/cuda/sm80",
            f"the operands are on {operand.device}; built for {', '.join(info.cuda_archs) or 'no architecture'}",
            others={"CPU": "kernels never move operands between devices"},
        )
    if device == "cuda" and name in _CUDA_SOURCES:
        return Explanation(
            name,
            _CUDA_SOURCES[name],
            f"the operands are on {operand.device}; built for {', '.join(info.cuda_archs) or 'no architecture'}",
            others={"CPU": "kernels never move operands between devices"},
        )
    return Explanation(
        name, "none", f"the operands are on {operand.device}: the call would raise or, traced, do nothing"
    )
