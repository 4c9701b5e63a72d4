"""Tensors of another kind in the place of every operand of every function, and numbers that are none of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flagattn

Call = tuple[Callable[..., Any], dict[str, Any]]


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def merge(**parts: Tensor) -> Any:
    return flagattn.merge_attention_states([parts["out"], parts["other"]], [parts["lse"], parts["other_lse"]])


def calls() -> dict[str, Call]:
    random = torch.randn
    q, k = random(2, 4, 4, 16), random(2, 4, 2, 16)
    packed_q, packed_k = random(8, 4, 16), random(8, 2, 16)
    packed = {
        "cu_seqlens_q": integers(0, 3, 8),
        "max_seqlen_q": 5,
        "cu_seqlens_k": integers(0, 4, 8),
        "max_seqlen_k": 5,
    }
    paged = random(4, 4, 2, 16)
    pages = {"block_table": integers(0, 1, 2, 3).view(2, 2)}
    lengths = {"cache_seqlens": integers(3, 4)}
    one, new, cache = random(2, 1, 4, 16), random(2, 1, 2, 16), random(2, 8, 2, 16)
    rotary = {"rotary_cos": random(16, 8), "rotary_sin": random(16, 8)}
    options = {"alibi_slopes": random(4), "sinks": random(4)}
    heads_first = q.transpose(1, 2)
    targets = {"targets": torch.arange(4), "token_weights": random(4).abs()}
    pair = {"q1": q, "k1": k, "q2": q, "k2": k, "v": k, "dist_threshold": 2}
    packed_pair = {"q1": packed_q, "k1": packed_k, "q2": packed_q, "k2": packed_k, "v": packed_k, "dist_threshold": 2}
    return {
        "dense": (flagattn.flash_attn_func, {"q": q, "k": k, "v": k, **options}),
        "kvpacked": (flagattn.flash_attn_kvpacked_func, {"q": q, "kv": random(2, 4, 2, 2, 16)}),
        "qkvpacked": (flagattn.flash_attn_qkvpacked_func, {"qkv": random(2, 4, 3, 2, 16)}),
        "varlen": (flagattn.flash_attn_varlen_func, {"q": packed_q, "k": packed_k, "v": packed_k, **packed}),
        "pages": (flagattn.flash_attn_varlen_func, {"q": packed_q, "k": paged, "v": paged, **packed, **pages}),
        "varlen_kvpacked": (
            flagattn.flash_attn_varlen_kvpacked_func,
            {"q": packed_q, "kv": random(8, 2, 2, 16), **packed},
        ),
        "varlen_qkvpacked": (
            flagattn.flash_attn_varlen_qkvpacked_func,
            {"qkv": random(8, 3, 2, 16), "cu_seqlens": integers(0, 3, 8), "max_seqlen": 5},
        ),
        "cache": (
            flagattn.flash_attn_with_kvcache,
            {"q": one, "k_cache": cache, "v_cache": cache.clone(), "k": new, "v": new, **rotary, **lengths, **options}
            | {"cache_batch_idx": integers(1, 0), "cache_leftpad": integers(0, 1)},
        ),
        "paged_cache": (
            flagattn.flash_attn_with_kvcache,
            {"q": one, "k_cache": paged, "v_cache": paged, **lengths, **pages},
        ),
        "piecewise": (flagattn.piecewise_attn_func, {**pair, "sinks": random(4)}),
        "piecewise_varlen": (flagattn.piecewise_attn_varlen_func, {**packed_pair, **packed}),
        "piecewise_cache": (
            flagattn.piecewise_attn_with_kvcache,
            {
                "q1": one,
                "q2": one,
                "k1_cache": cache,
                "k2_cache": cache.clone(),
                "v_cache": cache.clone(),
                "dist_threshold": 2,
            }
            | {"k1": new, "k2": new, "v": new, **lengths},
        ),
        "sdpa": (
            flagattn.scaled_dot_product_attention,
            {"query": heads_first, "key": heads_first, "value": heads_first, "attn_mask": random(4, 4)},
        ),
        "column_sums": (flagattn.attention_column_sums, {"q": q, "k": k, "lse": random(2, 4, 4)}),
        "merge": (merge, {"out": q, "other": q, "lse": random(2, 4, 4), "other_lse": random(2, 4, 4)}),
        "rms_norm": (flagattn.rms_norm, {"x": random(4, 16), "weight": random(16), "residual": random(4, 16)}),
        "swiglu": (flagattn.swiglu, {"gate": random(4, 16), "up": random(4, 16)}),
        "rotary": (
            flagattn.apply_rotary,
            {"x": q, "cos": random(4, 8), "sin": random(4, 8), "positions": torch.arange(4)},
        ),
        "cross_entropy": (flagattn.cross_entropy, {"logits": random(4, 16), **targets}),
        "linear_cross_entropy": (
            flagattn.linear_cross_entropy,
            {"hidden": random(4, 16), "weight": random(32, 16), **targets},
        ),
        "linear": (flagattn.batch_invariant_linear, {"x": random(4, 16), "weight": random(32, 16), "bias": random(32)}),
    }


def nested(tensor: Tensor, layout: torch.layout) -> Tensor:
    parts = list(tensor.unbind()) if tensor.dim() > 1 else [tensor, tensor]
    return torch.nested.nested_tensor(parts, layout=layout)


class Elsewhere(torch.Tensor):
    """A tensor of a device that this process does not have."""

    @staticmethod
    def __new__(cls, like: Tensor) -> Elsewhere:
        sizes: Any = (like.shape, like.stride())
        return torch.Tensor._make_wrapper_subclass(cls, *sizes, dtype=like.dtype, device="xpu:1")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} on XPU")


def compressed(tensor: Tensor) -> Tensor:
    return tensor.to_sparse_csr(dense_dim=tensor.dim() - 2) if tensor.dim() >= 2 else tensor.to_sparse()


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nested": (lambda x: nested(x, torch.strided), "{} is a nested tensor; it must be dense"),
    "jagged": (lambda x: nested(x, torch.jagged), "{} is a nested tensor; it must be dense"),
    "sparse": (lambda x: x.to_sparse(), "{} has the layout sparse_coo; it must be dense"),
    "compressed": (compressed, "{} has the layout sparse_c"),
    "blocked": (lambda x: x.float().to_mkldnn(), "{} has the layout mkldnn; it must be dense"),
    "quantized": (
        lambda x: torch.quantize_per_tensor(x.float().contiguous(), 0.1, 0, torch.qint8),
        "{} is quantized (qint8)",
    ),
    "meta": (lambda x: x.to("meta"), "{} is on meta"),
    "elsewhere": (Elsewhere, "{} is on xpu:1; there are kernels for CPU and CUDA"),
    "complex": (lambda x: x.to(torch.complex64), "{} is "),
}
PARTS = {"out": "outs[0]", "other": "outs[1]", "lse": "lses[0]", "other_lse": "lses[1]"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", calls())
def test_every_operand(name: str, kind: str) -> None:
    make, message = KINDS[kind]
    function, arguments = calls()[name]
    function(**arguments)
    for operand, value in arguments.items():
        if not isinstance(value, Tensor) or (kind == "meta" and name == "qkvpacked"):
            continue  # a single operand may lie anywhere
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as raised:
            function(**{**arguments, operand: make(value)})
        said = str(raised.value)
        shown = PARTS.get(operand, operand) if function is merge else operand
        if shown in ("kv", "qkv", "cu_seqlens") and kind in ("meta", "complex"):
            shown = ""  # its parts are named
        if kind == "meta":  # which of two that differ is named is the check's choice
            assert "meta" in said and shown in said, said
        else:
            assert message.format(shown).lstrip() in said, said
        assert "\n" not in said and len(said) < 260, said


def test_all_operands_on_meta_are_traced() -> None:
    for name, (function, arguments) in calls().items():
        on_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
        result = function(**on_meta)
        first = result[0] if isinstance(result, tuple) else result
        assert first.device.type == "meta", name


def test_a_cache_that_is_read_negated_is_refused() -> None:
    function, arguments = calls()["cache"]
    with pytest.raises(ValueError, match=r"v_cache is a view that torch negates .* give v_cache.resolve_neg"):
        function(**{**arguments, "v_cache": torch._neg_view(arguments["v_cache"])})


NUMBERS = [
    ("cross_entropy", "ignore_index", 2**70, ValueError, "it must be from -9223372036854775808 to 9223372036854775807"),
    ("cross_entropy", "ignore_index", -(2**63) - 1, ValueError, "targets is int64"),
    ("linear_cross_entropy", "ignore_index", 2**63, ValueError, "ignore_index is 9223372036854775808"),
    ("cross_entropy", "ignore_index", 1.0, TypeError, "it must be an integer"),
    ("cross_entropy", "z_loss", "1", TypeError, "z_loss is of type str; it must be a float"),
    ("cross_entropy", "label_smoothing", None, TypeError, "label_smoothing is None; it must be a float"),
    ("linear_cross_entropy", "z_loss", 10**400, ValueError, "z_loss is an integer of 1329 bits; it must fit into 64"),
    ("dense", "softmax_scale", 2**70, None, ""),
    ("dense", "softmax_scale", 10**400, ValueError, "softmax_scale is an integer of 1329 bits"),
    ("sdpa", "scale", 10**400, ValueError, "scale is an integer of 1329 bits"),
    ("varlen", "max_seqlen_q", 2**70, ValueError, "max_seqlen_q is an integer of 71 bits; it must fit into 64"),
    ("cache", "rotary_interleaved", "no", TypeError, "rotary_interleaved is of type str; it must be of type bool"),
    ("rms_norm", "eps", "small", TypeError, "eps is of type str; it must be a float"),
    ("rms_norm", "offset", None, TypeError, "offset is None; it must be a float"),
]


@pytest.mark.parametrize(("name", "argument", "value", "error", "message"), NUMBERS)
def test_numbers(name: str, argument: str, value: Any, error: type[Exception] | None, message: str) -> None:
    function, arguments = calls()[name]
    if error is None:
        function(**{**arguments, argument: value})
        return
    with pytest.raises(error) as raised:
        function(**{**arguments, argument: value})
    assert message in str(raised.value) and argument in str(raised.value)


def test_an_index_to_ignore_must_fit_the_targets() -> None:
    logits, targets = torch.randn(4, 16), torch.tensor([1, 2, -7, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="targets is int32; it must be from -2147483648 to 2147483647"):
        flagattn.cross_entropy(logits, targets, ignore_index=2**31)
    edge = targets.masked_fill(targets == -7, -(2**31))
    assert torch.equal(
        flagattn.cross_entropy(logits, edge, ignore_index=-(2**31)),
        flagattn.cross_entropy(logits, targets, ignore_index=-7),
    )


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        flagattn.swiglu(torch.ones(2))
    with pytest.raises(RuntimeError, match=r"^flagattn::cross_entropy: targets holds 5") as raised:
        flagattn.cross_entropy(torch.ones(1, 4), torch.tensor([5]))
    assert raised.value.__cause__ is None
