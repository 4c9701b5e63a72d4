"""explain() names the kernel, its tiles, and why no other runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import flagattn


def test_attention_on_the_cpu(cpu_level: str) -> None:
    q, k = torch.randn(2, 100, 6, 60), torch.randn(2, 80, 2, 60)
    explanation = flagattn.explain(flagattn.flash_attn_func, q, k, k, causal=True)
    assert explanation.kernel == f"csrc/attention/cpu, level {cpu_level}"
    assert "padded to a multiple of 8" in explanation.details["copies"]
    assert "query rows" in explanation.details["forward"] and "tiles of" in explanation.details["backward"]
    assert explanation.others["CUDA"] == "the operands are on the CPU"
    assert str(explanation).startswith("flash_attn_func\n  kernel ")


def test_tiles_are_named_where_bf16_is_multiplied_in_them(cpu_level: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, cache = torch.randn(1, 1, 4, 16).to(dtype), torch.randn(1, 50, 2, 16).to(dtype)
        for details in (
            flagattn.explain("flash_attn_func", cache, cache, cache).details,
            flagattn.explain("flash_attn_with_kvcache", q, cache, cache).details,
        ):
            in_tiles = cpu_level == "amx" and dtype is torch.bfloat16
            assert details.get("products", "").startswith("bf16 in tiles") == in_tiles


def test_every_form_is_explained() -> None:
    x, packed = torch.randn(1, 9, 2, 16), torch.randn(9, 2, 16)
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    plans = [
        flagattn.explain("flash_attn_qkvpacked_func", torch.stack((x, x, x), 2)),
        flagattn.explain("flash_attn_kvpacked_func", x, torch.stack((x, x), 2)),
        flagattn.explain("flash_attn_func", x, x, x),
        flagattn.explain("scaled_dot_product_attention", *[x.transpose(1, 2)] * 3),
    ]
    assert len({plan.details["forward"] for plan in plans}) == 1
    plans = [
        flagattn.explain("flash_attn_varlen_func", packed, packed, packed, cu, cu, 5, 5),
        flagattn.explain("flash_attn_varlen_kvpacked_func", packed, torch.stack((packed, packed), 1), cu, cu, 5, 5),
        flagattn.explain("flash_attn_varlen_qkvpacked_func", torch.stack((packed, packed, packed), 1), cu, 5),
    ]
    assert len({plan.details["forward"] for plan in plans}) == 1
    assert flagattn.explain("piecewise_attn_func", x, x, x, x, x, 3).details["forward"]
    assert flagattn.explain("piecewise_attn_varlen_func", *[packed] * 5, cu, cu, 5, 5, 3).details["forward"]


def test_decoding(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    q, cache = torch.randn(2, 1, 8, 16), torch.randn(2, 3000, 2, 16)
    cached = flagattn.explain("flash_attn_with_kvcache", q, cache, cache)
    assert (
        "the decode kernel, 6 work items of 2 key/value heads" in cached.details["forward"]
        and "none" in cached.details["backward"]
    )
    assert "decode kernel" in flagattn.explain("flash_attn_func", q, cache, cache).details["forward"]
    table = torch.zeros(2, 4, dtype=torch.int32)
    paged = flagattn.explain("flash_attn_with_kvcache", q, cache[:, :512], cache[:, :512], block_table=table)
    assert "4 work items" in paged.details["forward"]
    assert "decode kernel" in flagattn.explain("piecewise_attn_with_kvcache", q, q, *[cache] * 3, 9).details["forward"]
    many = flagattn.explain("flash_attn_with_kvcache", torch.randn(2, 90, 8, 16), cache, cache)
    assert "query rows" in many.others["decode kernel"]
    biased = flagattn.explain("flash_attn_func", q, cache, cache, alibi_slopes=torch.ones(8))
    assert "the decode kernel" in biased.details["forward"] and "ALiBi" in biased.details["scores"]
    dropped = flagattn.explain("flash_attn_func", q, cache, cache, 0.5)
    assert dropped.others["decode kernel"] == "it takes no dropout_p"


def test_one_is_singular(set_threads: Callable[[int], None]) -> None:
    set_threads(1)
    x = torch.randn(1, 200, 1, 16)
    told = flagattn.explain("flash_attn_func", x, x, x).details["forward"]
    assert "for 1 thread," in told and "rows computed side by side" in told


def test_fused_ops() -> None:
    x = torch.randn(4, 16)
    assert "csrc/norm/cpu" in flagattn.explain(flagattn.rms_norm, x, torch.ones(16)).kernel
    assert "copied first" in flagattn.explain(flagattn.swiglu, x.T, x.T).details["copies"]
    assert "csrc/loss/cpu" in flagattn.explain("cross_entropy", x, torch.zeros(4, dtype=torch.int64)).kernel
    for weight, reduction, gradients in (
        (x, "mean", "taken in the forward"),
        (x, "none", "the gradient of each loss"),
        (x.bfloat16(), "mean", "rounded once"),
    ):
        targets = torch.zeros(4, dtype=torch.int64)
        explanation = flagattn.explain("linear_cross_entropy", x.to(weight.dtype), weight, targets, reduction=reduction)
        assert gradients in explanation.details["gradients"]
    assert flagattn.explain("apply_rotary", torch.randn(1, 4, 2, 8), torch.ones(4, 4), torch.ones(4, 4)).kernel


def test_calls_that_would_raise() -> None:
    q, cu = torch.randn(1, 4, 2, 16), torch.tensor([0, 4], dtype=torch.int32)
    state = torch.random.get_rng_state()
    for name, arguments, options, sentence in (
        ("flash_attn_func", (q.double(), q, q), {}, "q is float64; supported dtypes are float32, bfloat16, float16"),
        ("flash_attn_func", (q, q[:, :, :, :8], q), {}, "must have the same head_dim"),
        ("flash_attn_func", (q, q, q), {"window_size": 3}, "window_size is 3; it must be a pair of integers"),
        ("flash_attn_func", (q, q, "v"), {"dropout_p": 0.1}, "v is of type str; it must be a tensor"),
        ("flash_attn_varlen_func", (q[0], q[0], q[0], cu.long(), cu, 4, 4), {}, "cu_seqlens_q is int64"),
        ("flash_attn_with_kvcache", (q, q, q[..., :0]), {}, "head_dim"),
        ("piecewise_attn_func", (q, q, q, q, q, 3.0), {}, "dist_threshold is of type float"),
        ("rms_norm", (q, torch.ones(3)), {}, "weight has shape"),
    ):
        explanation = flagattn.explain(name, *arguments, **options)
        assert explanation.kernel == "none" and sentence in explanation.reason and not explanation.details
    flagattn.explain("flash_attn_func", q.requires_grad_(), q, q, 0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    cache = torch.zeros(1, 9, 2, 16)
    with torch.no_grad():
        assert flagattn.explain("flash_attn_with_kvcache", q, cache, cache, q, q, cache_seqlens=2).kernel != "none"
    assert not cache.any()


def test_elsewhere_and_unknown() -> None:
    q = torch.empty(1, 4, 2, 16, device="meta")
    assert flagattn.explain("flash_attn_func", q, q, q).kernel == "none"
    with pytest.raises(ValueError, match="op is 'matmul'; it must be one of flash_attn_func"):
        flagattn.explain("matmul", q, q)
    with pytest.raises(TypeError):
        flagattn.explain("flash_attn_func", q)


def test_column_sums_and_merging() -> None:
    q, lse = torch.randn(1, 9, 2, 16), torch.zeros(1, 2, 9)
    told = flagattn.explain("attention_column_sums", q, q, lse)
    assert told.kernel.startswith("csrc/attention/cpu") and "512 keys" in told.details["sums"]
    assert "lse has shape" in flagattn.explain("attention_column_sums", q, q, lse[0]).reason
    assert flagattn.explain(flagattn.merge_attention_states, [q], [lse]).kernel == "torch's own ops"
    assert "outs has 1 parts" in flagattn.explain(flagattn.merge_attention_states, [q], []).reason


def test_every_public_op_is_known() -> None:
    others = {"explain", "build_info", "cpu_level", "Explanation"}
    for name in set(flagattn.__all__) - others:
        with pytest.raises(TypeError):
            flagattn.explain(name)


def test_what_joins_the_scores() -> None:
    x = torch.randn(1, 9, 2, 16)
    told = flagattn.explain("flash_attn_func", x, x, x, 0.1, alibi_slopes=torch.ones(2), sinks=torch.ones(2))
    assert all(word in told.details["scores"] for word in ("ALiBi", "sinks", "Philox"))
    heads_first = [x.transpose(1, 2)] * 3
    for mask, word in (
        (torch.ones(1, 1, 1, 9, dtype=torch.bool), "range of keys"),
        (torch.ones(9, 9, dtype=torch.bool), "tile by tile"),
        (torch.zeros(9, 9), "added"),
    ):
        assert word in flagattn.explain("scaled_dot_product_attention", *heads_first, mask).details["scores"]
    assert "scores" not in flagattn.explain("flash_attn_func", x, x, x).details


def test_caches_on_cuda() -> None:
    """Told without a GPU, on tensors without memory."""
    with FakeTensorMode():
        q, long, short = (
            torch.empty(shape, dtype=torch.bfloat16, device="cuda")
            for shape in ((2, 1, 8, 64), (2, 3000, 2, 64), (2, 512, 2, 64))
        )
        decoded = flagattn.explain("flash_attn_with_kvcache", q, long, long)
        assert decoded.kernel == "csrc/attention/cuda/sm80, over caches" and "none" in decoded.details["backward"]
        assert "up to 6 splits of 512 keys" in decoded.details["forward"]
        at_once = flagattn.explain("flash_attn_with_kvcache", q, short, short)
        assert "one block leads all keys" in at_once.details["forward"]
