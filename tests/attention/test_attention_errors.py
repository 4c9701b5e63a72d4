"""Bad arguments raise from Python, in one sentence that names the argument, what came and what is allowed."""

from __future__ import annotations

import pytest
import torch

import flagattn

Q = torch.randn(2, 5, 4, 16)
K = torch.randn(2, 7, 2, 16)
PACKED = torch.randn(9, 2, 16)
CU = torch.tensor([0, 4, 9], dtype=torch.int32)


def dense(q=Q, k=K, v=K, **options):
    return flagattn.flash_attn_func(q, k, v, **options)


def varlen(q=PACKED, k=PACKED, v=PACKED, cu_q=CU, cu_k=CU, max_q=5, max_k=5, **options):
    return flagattn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, **options)


def piecewise(q1=Q, k1=K, q2=Q, k2=K, v=K, dist_threshold=3, **options):
    return flagattn.piecewise_attn_func(q1, k1, q2, k2, v, dist_threshold, **options)


Q_HEADS_FIRST, K_HEADS_FIRST = Q.transpose(1, 2), K.transpose(1, 2)


def sdpa(query=Q_HEADS_FIRST, key=K_HEADS_FIRST, value=K_HEADS_FIRST, **options):
    return flagattn.scaled_dot_product_attention(query, key, value, **options)


WRONG_ARGUMENTS = [
    # Types and dtypes
    ("q_is_none", dense, {"q": None}, TypeError, "q is None; it must be a tensor"),
    ("v_is_a_list", dense, {"v": [1.0]}, TypeError, "v is of type list; it must be a tensor"),
    ("q_is_double", dense, {"q": Q.double()},
     TypeError, "q is float64; supported dtypes are float32, bfloat16, float16"),
    ("q_is_integer", dense, {"q": Q.int()}, TypeError, "q is int32"),
    ("dtypes_differ", dense, {"k": K.half()}, TypeError, "k is float16, v is float32; their dtypes must be equal"),
    ("devices_differ", dense, {"v": K.to("meta")}, ValueError, "v is on meta; their devices must be equal"),
    # Ranks and shapes
    ("q_has_three_dims", dense, {"q": Q[0]},
     ValueError, r"q has shape \(5, 4, 16\); it must be \(batch, seqlen, heads"),
    ("k_has_five_dims", dense, {"k": K[None]}, ValueError, "k has shape"),
    ("batches_differ", dense, {"q": Q[:1]}, ValueError, "q and k must have the same batch size"),
    ("k_and_v_lengths_differ", dense, {"v": K[:, 1:]}, ValueError, "k and v may differ in the last dimension only"),
    ("k_and_v_heads_differ", dense, {"v": K[:, :, :1]}, ValueError, "k and v may differ in the last dimension only"),
    ("head_dims_differ", dense, {"q": Q[..., :8]}, ValueError, "q and k must have the same head_dim"),
    ("heads_do_not_divide", dense, {"q": Q[:, :, :3]},
     ValueError, "heads of q must be a positive multiple of that of k"),
    ("no_heads", dense, {"q": Q[:, :, :0]}, ValueError, "heads of q must be a positive multiple"),
    ("head_dim_too_large", dense, {"q": torch.zeros(1, 2, 1, 264), "k": torch.zeros(1, 2, 1, 264),
     "v": torch.zeros(1, 2, 1, 8)}, ValueError, "q has head_dim 264; it must be from 1 to 256"),
    ("value_dim_zero", dense, {"v": K[..., :0]}, ValueError, "v has head_dim 0; it must be from 1 to 256"),
    # Numbers
    ("window_of_one", dense, {"window_size": (3,)}, TypeError, r"window_size is \(3,\); it must be a pair of integers"),
    ("window_of_floats", dense, {"window_size": (3.0, 1)}, TypeError, "window_size is"),
    ("window_is_none", dense, {"window_size": None}, TypeError, "window_size is None; it must be a pair of integers"),
    ("window_below", dense, {"window_size": (-2, 1)}, ValueError, "each side must be >= 0, or -1 for no bound"),
    ("softcap_negative", dense, {"softcap": -1.0}, ValueError, "softcap is -1.0; it must be finite and >= 0"),
    ("softcap_nan", dense, {"softcap": float("nan")}, ValueError, "softcap is nan"),
    ("scale_nan", dense, {"softmax_scale": float("nan")}, ValueError, "softmax_scale is nan; it must be finite"),
    ("scale_infinite", dense, {"softmax_scale": float("inf")}, ValueError, "softmax_scale is inf; it must be finite"),
    ("scale_is_text", dense, {"softmax_scale": "a"}, TypeError, "softmax_scale is of type str; it must be a float"),
    ("softcap_is_text", dense, {"softcap": "a"}, TypeError, "softcap is of type str; it must be a float"),
    ("scale_is_a_tensor", dense, {"softmax_scale": torch.ones(())}, TypeError, "softmax_scale is a tensor"),
    ("causal_is_text", dense, {"causal": "False"}, TypeError, "causal is of type str; it must be True or False"),
    ("causal_is_none", varlen, {"causal": None}, TypeError, "causal is None; it must be True or False"),
    ("causal_is_two", piecewise, {"causal": 2}, TypeError, "causal is 2; it must be True or False"),
    ("causal_is_a_tensor", dense, {"causal": torch.ones(())}, TypeError, "causal is of type Tensor"),
    ("is_causal_is_text", sdpa, {"is_causal": "no"}, TypeError, "is_causal is of type str; it must be True or False"),
    ("gqa_is_text", sdpa, {"enable_gqa": "no"}, TypeError, "enable_gqa is of type str; it must be True or False"),
    ("length_is_true", varlen, {"max_q": True}, TypeError, "max_seqlen_q is of type bool; it must be an integer"),
    # What joins the scores
    ("dropout_below", dense, {"dropout_p": -0.1}, ValueError, "dropout_p is -0.1; it must be from 0 to 1"),
    ("dropout_above", dense, {"dropout_p": 1.5}, ValueError, "dropout_p is 1.5; it must be from 0 to 1"),
    ("dropout_tensor", dense, {"dropout_p": torch.ones(())}, TypeError, "dropout_p is of type Tensor; it must be a"),
    ("alibi_number", dense, {"alibi_slopes": 0.5}, TypeError, "alibi_slopes is of type float; it must be a tensor or"),
    ("alibi_double", dense, {"alibi_slopes": torch.ones(4).double()}, TypeError, "alibi_slopes is float64"),
    ("alibi_shape", dense, {"alibi_slopes": torch.ones(3)},
     ValueError, r"alibi_slopes has shape \(3,\); it must be \(heads_q,\) or \(batch, heads_q\) of 2 sequences and 4"),
    ("alibi_batch", dense, {"alibi_slopes": torch.ones(3, 4)}, ValueError, r"alibi_slopes has shape \(3, 4\)"),
    ("alibi_gradient", dense, {"alibi_slopes": torch.ones(4, requires_grad=True)},
     ValueError, "alibi_slopes requires a gradient, but attention is not differentiated in it; detach it"),
    ("alibi_device", dense, {"alibi_slopes": torch.ones(4, device="meta")}, ValueError, "alibi_slopes is on meta"),
    ("sinks_list", dense, {"sinks": [1.0]}, TypeError, "sinks is of type list; it must be a tensor or None"),
    ("sinks_integer", dense, {"sinks": torch.ones(4).int()}, TypeError, "sinks is int32"),
    ("sinks_shape", dense, {"sinks": torch.ones(2)}, ValueError, r"sinks has shape \(2,\); it must be \(heads_q,\)"),
    ("sinks_packed", varlen, {"sinks": torch.ones(1, 2)}, ValueError, r"sinks has shape \(1, 2\)"),
    ("piecewise_sinks", piecewise, {"sinks": torch.ones(2)}, ValueError, r"sinks has shape \(2,\)"),
    ("mask_list", sdpa, {"attn_mask": [True], "enable_gqa": True},
     TypeError, "attn_mask is of type list; it must be a tensor or None"),
    ("mask_double", sdpa, {"attn_mask": torch.ones(5, 7).double(), "enable_gqa": True},
     TypeError, "attn_mask is float64; it must be bool, float32, bfloat16 or float16"),
    ("mask_shape", sdpa, {"attn_mask": torch.ones(5, 6), "enable_gqa": True},
     ValueError, r"attn_mask has shape \(5, 6\); it must broadcast to .* = \(2, 4, 5, 7\)"),
    ("mask_heads", sdpa, {"attn_mask": torch.ones(2, 2, 5, 7), "enable_gqa": True}, ValueError, "it must broadcast to"),
    ("mask_rank", sdpa, {"attn_mask": torch.ones(1, 2, 4, 5, 7), "enable_gqa": True}, ValueError, "must broadcast to"),
    ("mask_device", sdpa, {"attn_mask": torch.ones(5, 7, device="meta"), "enable_gqa": True},
     ValueError, "attn_mask is on meta, but query is on cpu; they must be on one device"),
    ("mask_and_causal", sdpa, {"attn_mask": torch.ones(5, 7), "is_causal": True, "enable_gqa": True},
     ValueError, "attn_mask is given and is_causal is True; only one of them may be"),
    ("block_table", varlen, {"block_table": CU},
     ValueError, r"k has shape \(9, 2, 16\); it must be \(pages, page_size, heads, head_dim\)"),
    # Packed
    ("packed_q_is_dense", varlen, {"q": Q},
     ValueError, r"q has shape \(2, 5, 4, 16\); it must be \(total, heads, head_dim\)"),
    ("cu_seqlens_long", varlen, {"cu_q": CU.long()}, TypeError, "cu_seqlens_q is int64; it must be int32"),
    ("cu_seqlens_list", varlen, {"cu_k": [0, 4]}, TypeError, "cu_seqlens_k is of type list; it must be a tensor"),
    ("cu_seqlens_matrix", varlen, {"cu_q": CU[None]},
     ValueError, r"cu_seqlens_q has shape \(1, 3\); it must be \(batch"),
    ("cu_seqlens_empty", varlen, {"cu_q": CU[:0], "cu_k": CU[:0]}, ValueError, "cu_seqlens_q has shape"),
    ("cu_seqlens_lengths", varlen, {"cu_q": CU[:2]}, ValueError, "their shapes must be equal"),
    ("max_seqlen_float", varlen, {"max_q": 5.0}, TypeError, "max_seqlen_q is of type float; it must be an integer"),
    ("max_seqlen_none", varlen, {"max_k": None}, TypeError, "max_seqlen_k is None; it must be an integer"),
    # Wrong values inside cu_seqlens come from the op
    ("cu_seqlens_start", varlen, {"cu_q": CU + 1}, RuntimeError, "cu_seqlens_q starts with 1; it must start with 0"),
    ("cu_seqlens_fall", varlen, {"cu_k": torch.tensor([0, 6, 4], dtype=torch.int32), "max_k": 9}, RuntimeError,
     "cu_seqlens_k falls from 6 to 4"),
    ("cu_seqlens_end", varlen, {"cu_q": CU + torch.tensor([0, 0, 1], dtype=torch.int32), "max_q": 9}, RuntimeError,
     "cu_seqlens_q ends with 10, but the tensor has 9 rows"),
    ("max_seqlen_small", varlen, {"max_q": 4}, RuntimeError, "length 5, but its max_seqlen is 4"),
    ("max_seqlen_negative", varlen, {"max_q": -1}, RuntimeError, "max_seqlen_q is -1"),
    # Piecewise
    ("q2_none", piecewise, {"q2": None}, TypeError, "q2 is None; it must be a tensor"),
    ("q2_dtype", piecewise, {"q2": Q.half()},
     TypeError, "q2 is float16, but q1 is float32; their dtypes must be equal"),
    ("k2_shape", piecewise, {"k2": K[:, 1:]}, ValueError, r"k2 has shape \(2, 6, 2, 16\), but k1 has \(2, 7, 2, 16\)"),
    ("threshold_float", piecewise, {"dist_threshold": 3.0}, TypeError, "dist_threshold is of type float"),
    ("threshold_none", piecewise, {"dist_threshold": None}, TypeError, "dist_threshold is None; it must be an integer"),
    # torch's signature
    ("sdpa_heads_without_gqa", sdpa, {},
     ValueError, "query has 4 heads and key 2; they must be equal unless enable_gqa"),
    ("sdpa_rank", sdpa, {"query": Q[0]},
     ValueError, r"query has shape .* it must be \(batch, heads, seqlen, head_dim\)"),
    ("sdpa_names", sdpa, {"key": K.transpose(1, 2).half(), "enable_gqa": True},
     TypeError, "query is float32, key is float16"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [row[1:] for row in WRONG_ARGUMENTS],
    ids=[r[0] for r in WRONG_ARGUMENTS],
)
def test_wrong_argument(function, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        function(**arguments)
    assert "\n" not in str(raised.value).split("\nException raised from")[0].strip()


@pytest.mark.parametrize(
    ("function", "tensor", "message"),
    [
        (flagattn.flash_attn_qkvpacked_func, Q, r"qkv has shape .* it must be \(batch, seqlen, 3, heads, head_dim\)"),
        (flagattn.flash_attn_qkvpacked_func, Q[:, :, None], "it must be"),
        (
            lambda kv: flagattn.flash_attn_kvpacked_func(Q, kv),
            K,
            r"kv has shape .* \(batch, seqlen, 2, heads, head_dim\)",
        ),
        (lambda qkv: flagattn.flash_attn_varlen_qkvpacked_func(qkv, CU, 5), PACKED, "qkv has shape"),
        (lambda kv: flagattn.flash_attn_varlen_kvpacked_func(PACKED, kv, CU, CU, 5, 5), PACKED, "kv has shape"),
    ],
    ids=["qkv_rank", "qkv_parts", "kv_rank", "varlen_qkv_rank", "varlen_kv_rank"],
)
def test_wrong_packed_operand(function, tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(tensor)


@pytest.mark.parametrize(
    ("outs", "lses", "error", "message"),
    [
        ([], [], ValueError, "outs has 0 parts"),
        ([Q], [], ValueError, "outs has 1 parts and lses 0"),
        ([Q, Q[:, 1:]], [torch.zeros(2, 4, 5)] * 2, ValueError, r"outs\[1\] has shape"),
        (
            [Q],
            [torch.zeros(2, 5, 4)],
            ValueError,
            r"lses\[0\] has shape \(2, 5, 4\); with outs of .* it must be \(2, 4, 5\)",
        ),
        ([Q], [None], TypeError, r"lses\[0\] is of type NoneType"),
        ([Q[0, 0]], [Q[0, 0]], ValueError, r"outs\[0\] has shape"),
    ],
    ids=["none", "counts", "outs_differ", "lse_shape", "lse_type", "rank"],
)
def test_wrong_parts(outs: list, lses: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        flagattn.merge_attention_states(outs, lses)


def test_alibi_slopes_of_a_parameter_are_taken_without_grad() -> None:
    slopes = torch.ones(4)
    with torch.no_grad():
        out = dense(alibi_slopes=slopes.clone().requires_grad_())
    assert torch.equal(out, dense(alibi_slopes=slopes)) and not torch.equal(out, dense())


def test_second_derivatives_are_refused() -> None:
    q = Q.clone().requires_grad_()
    for out in (dense(q), piecewise(q1=q)):
        (gradient,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="no double backward"):
            torch.autograd.grad(gradient.sum(), q)


def test_raw_op_refuses_what_it_would_read_wrongly() -> None:
    tail = (None, None, 5, 7, 1.0, -1, -1, 0.0)
    op = torch.ops.flagattn.attention_forward
    with pytest.raises(RuntimeError, match="last dimension must be contiguous"):
        op(Q.transpose(2, 3).contiguous().transpose(2, 3), K, K, *tail)
    with pytest.raises(RuntimeError, match="multiples of 8"):
        op(Q[..., :12], K[..., :12], K, *tail)
    with pytest.raises(RuntimeError, match="must be given together"):
        op(PACKED, PACKED, PACKED, CU, None, 5, 7, 1.0, -1, -1, 0.0)
