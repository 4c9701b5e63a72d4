"""torch.nn.functional.scaled_dot_product_attention, with every mask that it takes."""

from __future__ import annotations

from torch import Tensor

from flagattn._attention_calls import dense_attention
from flagattn._checks import check_flag, check_ranks
from flagattn._errors import explained


@explained
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
    """torch.nn.functional.scaled_dot_product_attention on this library's kernels.

        out_i = sum_j softmax_j(scale query_i . key_j + attn_mask_ij) value_j

    Args:
        query: (batch, heads_q, seqlen_q, head_dim), float32, bfloat16 or float16, head_dim up to 256.
        key: (batch, heads_k, seqlen_k, head_dim), where heads_k equals heads_q, or divides it with enable_gqa.
        value: (batch, heads_k, seqlen_k, head_dim_v).
        attn_mask: broadcasts to (batch, heads_q, seqlen_q, seqlen_k). Bool: a row sees the keys where it is True.
            Float32, bfloat16 or float16: added to the scores; -inf hides a key, and so does anything below -1e38, such
            as `torch.finfo(torch.float32).min`, which torch only makes unlikely. Keys that no row of a tile sees are
            skipped, and masks that are the same for all rows and heads cost nothing where they begin or end.
        dropout_p: probability of dropping a weight, from 0 to 1; applied whenever it is not 0.
        is_causal: row i sees the keys 0 to i; unlike in `flash_attn_func` the first query is aligned with the first
            key. Not together with attn_mask, as in torch.
        scale: defaults to 1 / sqrt(head_dim).
        enable_gqa: allow fewer key/value heads than query heads.

    Returns:
        (batch, heads_q, seqlen_q, head_dim_v) in query's dtype; a transposed view of a contiguous
        (batch, seqlen_q, heads_q, head_dim_v) tensor. Rows that see no key are 0.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, device, rank or shape, or attn_mask and is_causal
            are both given.

    Differentiable once in query, key, value and an additive attn_mask, whose gradient is summed over the dimensions
    that it repeats; under autocast query, key and value are cast to its dtype. See docs/kernels/masks.md.
    """
    check_ranks((query, key, value), ("query", "key", "value"), "(batch, heads, seqlen, head_dim)")
    check_flag(is_causal, "is_causal")
    check_flag(enable_gqa, "enable_gqa")
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads and key {key.shape[1]}; they must be equal unless enable_gqa is True"
        )
    window_size = (-1, -1)
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask is given and is_causal is True; only one of them may be")
        # j <= i in terms of the kernels' j <= i + Sk - Sq + right. Keys behind the last query are seen by no row.
        seqlen_q, seqlen_k = query.shape[2], key.shape[2]
        if seqlen_k > seqlen_q:
            key, value = key[:, :, :seqlen_q], value[:, :, :seqlen_q]
            window_size = (-1, 0)
        else:
            window_size = (-1, int(seqlen_q - seqlen_k))
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    joined = (dropout_p, None, None)
    out, _ = dense_attention(
        q, k, v, scale, False, window_size, 0.0, joined, attn_mask, names=("query", "key", "value")
    )
    return out.transpose(1, 2)
