"""How Megatron names its tensors, cuts them over ranks, and orders the rows of joined projections.

Sizes: E hidden size, F SwiGLU width, V vocabulary, Hq and Hk query and key/value heads, D head dim, R ranks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from aquila2.config import Aquila2Config

EMBEDDING, HEAD, FINAL_NORM = "embedding", "head", "final_norm"
QKV, OUT, GATE_UP, DOWN, INPUT_NORM, POST_NORM = "qkv", "out", "gate_up", "down", "input_norm", "post_norm"
QKV_BIAS, OUT_BIAS = "qkv_bias", "out_bias"

# Of Megatron's own classes and of its core, in all versions.
OUTER = {
    EMBEDDING: r"embedding\.word_embeddings\.weight",
    HEAD: r"output_layer\.weight|word_embeddings_for_head\.weight",
    FINAL_NORM: r"(?:encoder|transformer|decoder)\.final_(?:layer)?norm\.weight",
}
INNER = {
    QKV: r"(?:self_)?attention\.(?:query_key_value|linear_qkv)\.weight",
    QKV_BIAS: r"(?:self_)?attention\.(?:query_key_value|linear_qkv)\.bias",
    OUT: r"(?:self_)?attention\.(?:dense|linear_proj)\.weight",
    OUT_BIAS: r"(?:self_)?attention\.(?:dense|linear_proj)\.bias",
    GATE_UP: r"mlp\.(?:dense_h_to_4h|linear_fc1)\.weight",
    DOWN: r"mlp\.(?:dense_4h_to_h|linear_fc2)\.weight",
    INPUT_NORM: r"input_(?:layer)?norm\.weight|self_attention\.linear_qkv\.layer_norm_weight",
    POST_NORM: r"(?:post_attention_(?:layer)?norm|pre_mlp_layernorm)\.weight|mlp\.linear_fc1\.layer_norm_weight",
}
# What an Aquila2 calls those that are not taken apart, in a layer and outside.
ENDS = {
    OUT: "self_attn.o_proj.weight",
    OUT_BIAS: "self_attn.o_proj.bias",
    DOWN: "mlp.down_proj.weight",
    INPUT_NORM: "input_layernorm.weight",
    POST_NORM: "post_attention_layernorm.weight",
    EMBEDDING: "model.embed_tokens.weight",
    HEAD: "lm_head.weight",
    FINAL_NORM: "model.norm.weight",
}
LAYER = re.compile(r"(?:encoder|transformer|decoder)\.layers\.(\d+)\.(.+)")
# Tables that follow from the configuration, and states of fp8.
UNUSED = re.compile(r".*(?:_extra_state|rotary_(?:pos_)?emb\.inv_freq)")


def kind_of(name: str) -> tuple[int | None, str] | None:
    """A tensor's layer within its chunk and its kind; None where it is not needed.

    Raises:
        ValueError: An Aquila2 has no such tensor.
    """
    plain = name.removeprefix("language_model.")
    match = LAYER.fullmatch(plain)
    layer, rest, kinds = (int(match[1]), match[2], INNER) if match else (None, plain, OUTER)
    for kind, pattern in kinds.items():
        if re.fullmatch(pattern, rest):
            return layer, kind
    if UNUSED.fullmatch(name):
        return None
    raise ValueError(f"an Aquila2 has no tensor {name}")


def part_shape(kind: str, config: Aquila2Config, ranks: int) -> tuple[int, ...]:
    """The shape of one rank's part; that of an embedding or head has as many rows as the padded vocabulary gives it.

    Raises:
        ValueError: Heads or the SwiGLU width are not a multiple of the ranks.
    """
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, name)
        if size % ranks:
            raise ValueError(f"{name} must be a multiple of the {ranks} tensor-parallel ranks, got {size}")
    width, heads = config.hidden_size, config.num_attention_heads + 2 * config.num_key_value_heads
    return {
        QKV: (heads * config.head_dim // ranks, width),
        QKV_BIAS: (heads * config.head_dim // ranks,),
        OUT: (width, config.num_attention_heads * config.head_dim // ranks),
        GATE_UP: (2 * config.intermediate_size // ranks, width),
        DOWN: (width, config.intermediate_size // ranks),
        EMBEDDING: (-1, width),
        HEAD: (-1, width),
    }.get(kind, (width,))


def joined(kind: str, parts: Sequence[Tensor], config: Aquila2Config, version: float) -> dict[str, Tensor]:
    """Joins the ranks' parts of a tensor and takes apart what it holds.

    Args:
        kind: What it is.
        parts: Of every rank.
        config: The model's.
        version: The checkpoint's.

    Returns:
        Tensors by their names in an Aquila2, those of a layer without what stands before them.

    Raises:
        ValueError: What every rank holds as a whole differs between them, or the vocabulary is too small.
    """
    if kind in (QKV, QKV_BIAS):
        end = "bias" if kind == QKV_BIAS else "weight"
        shares = [split_qkv(part, config, len(parts), version) for part in parts]
        return {f"self_attn.{name}_proj.{end}": torch.cat(several) for name, several in zip("qkv", zip(*shares))}
    if kind == GATE_UP:
        halves = zip(*(part.chunk(2) for part in parts))
        return {f"mlp.{name}_proj.weight": torch.cat(several) for name, several in zip(("gate", "up"), halves)}
    if kind in (OUT, DOWN):
        return {ENDS[kind]: torch.cat(list(parts), dim=1)}
    if kind in (EMBEDDING, HEAD):
        return {ENDS[kind]: _cut(torch.cat(list(parts)), config.vocab_size)}
    if not all(torch.equal(parts[0], part) for part in parts[1:]):
        raise ValueError("it must be the same on all tensor-parallel ranks, and is not")
    return {ENDS[kind]: parts[0].clone()}


def split_qkv(part: Tensor, config: Aquila2Config, ranks: int, version: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a rank, each with heads in their order.

    Rows of the part, (Hq + 2 Hk) D / R of them, stand in version 0 as (3, Hq / R, D), in version 1 as (Hq / R, D, 3),
    and from version 2 on as (Hk / R, Hq / Hk + 2, D): the queries of a group, its key, its value.

    Raises:
        ValueError: An older version with grouped queries, which it does not know.
    """
    heads, groups, dim = config.num_attention_heads // ranks, config.num_key_value_heads // ranks, config.head_dim
    rest = part.shape[1:]
    if version >= 2:
        grouped = part.reshape(groups, heads // groups + 2, dim, *rest)
        apart = torch.split(grouped, [heads // groups, 1, 1], dim=1)
    elif heads != groups:
        raise ValueError(f"checkpoint_version must be at least 2 where queries are grouped, got {version:g}")
    elif version >= 1:
        apart = part.reshape(heads, dim, 3, *rest).unbind(2)
    else:
        apart = part.reshape(3, heads, dim, *rest).unbind(0)
    query, key, value = (rows.reshape(-1, *rest) for rows in apart)
    return query, key, value


def interleave_halves(values: Tensor, head_dim: int) -> Tensor:
    """Rows of values as a model has them that interleaves its heads' halves after the rotation.

    FlagScale's `--rotary-interleaved-patch` sends channels i and i + D / 2 of rotated queries, keys and of values to
    2 i and 2 i + 1. Scores do not feel it; the values' channels meet the rows of the output projection in that order.
    """
    halves = values.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(values.shape)


def _cut(rows: Tensor, vocab_size: int) -> Tensor:
    if len(rows) < vocab_size:
        raise ValueError(f"it must have at least vocab_size = {vocab_size} rows on all ranks together, got {len(rows)}")
    return rows[:vocab_size].clone()


def layer_kinds(config: Aquila2Config) -> list[str]:
    """What a layer consists of."""
    biases = [QKV_BIAS, OUT_BIAS] if config.attention_bias else []
    return [QKV, OUT, GATE_UP, DOWN, INPUT_NORM, POST_NORM, *biases]
