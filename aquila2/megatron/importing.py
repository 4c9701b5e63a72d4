"""From the parts that Megatron's ranks saved to one Aquila2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aquila2.checkpoint import check_tensors
from aquila2.config import Aquila2Config
from aquila2.megatron.files import Part, find_parts, read_part
from aquila2.megatron.layout import interleave_halves, joined, kind_of, layer_kinds, part_shape
from aquila2.model import Aquila2ForCausalLM

Kind = tuple[int | None, str]

# A field of the config, and what Megatron's arguments call it.
SAME = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "head_dim": "kv_channels",
    "rope_interleaved": "rotary_interleaved",
    "rope_theta": "rotary_base",
}
EPSILONS = ("norm_epsilon", "layernorm_epsilon")  # the name has changed


def from_megatron(
    folder: Path | str,
    config: Aquila2Config,
    *,
    dtype: torch.dtype | None = None,
    interleaved_values: bool = False,
) -> Aquila2ForCausalLM:
    """Loads a model from a checkpoint of Megatron-LM or FlagScale in tensor- and pipeline-parallel parts.

    Knows the layouts of Megatron's own classes and of its core, of checkpoint versions 0, 1 and from 2 on, virtual and
    uneven pipeline stages, padded vocabularies, and heads that are the embedding. Layers are numbered through all
    stages. What a file tells of its run's arguments must agree with the config.

    Args:
        folder: The checkpoint's, with `latest_checkpointed_iteration.txt`, or one of its iterations with `mp_rank_*`.
        config: What the weights are; the files do not say all of it.
        dtype: Of all weights; None takes that of the first layer's queries (embeddings may be kept in fp32).
        interleaved_values: The run had FlagScale's `--rotary-interleaved-patch`; it counts too where the file says so.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: No checkpoint is there, or parts of it are missing.
        ValueError: A file is damaged or holds other objects than tensors, plain values and `argparse.Namespace`, or
            names, sizes or arguments do not fit the config.
    """
    with torch.device("meta"):
        model = Aquila2ForCausalLM(config)
    stages = [[read_part(file) for file in files] for files in find_parts(Path(folder))]
    first = stages[0][0]
    _check_arguments(first, config)
    interleaved_values = interleaved_values or bool(first.arguments.get("rotary_interleaved_patch"))
    tensors = _all_tensors(stages, config)
    if interleaved_values:
        for name in (name for name in tensors if ".v_proj." in name):
            tensors[name] = interleave_halves(tensors[name], config.head_dim)
    if config.tie_word_embeddings:
        head = tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
        if not torch.equal(head, tensors["model.embed_tokens.weight"]):
            raise ValueError(f"{folder} has a head that is not its embedding; tie_word_embeddings must be false")
    wanted = dtype or tensors["model.layers.0.self_attn.q_proj.weight"].dtype
    tensors = {name: tensor.to(wanted) for name, tensor in tensors.items()}
    check_tensors(model, tensors, str(folder))
    model.load_state_dict(tensors, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def _check_arguments(part: Part, config: Aquila2Config) -> None:
    """Compares what decides over the order of rows, and over what cannot be seen in sizes."""
    theirs = part.arguments
    told = {field: theirs[name] for field, name in SAME.items() if theirs.get(name) is not None}
    for name in EPSILONS:
        told.update({"rms_norm_eps": theirs[name]} if name in theirs else {})
    if "num_attention_heads" in told:
        grouped = theirs.get("group_query_attention")
        told["num_key_value_heads"] = theirs["num_query_groups"] if grouped else told["num_attention_heads"]
    for field, value in told.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"{part.file} was saved by a model of {field} {value}, the config has {getattr(config, field)}"
            )
    for name in ("apply_layernorm_1p", "num_experts"):
        if theirs.get(name):
            raise ValueError(f"{part.file} was saved with {name} {theirs[name]}, which an Aquila2 has not")


def _all_tensors(stages: Sequence[Sequence[Part]], config: Aquila2Config) -> dict[str, Tensor]:
    """The tensors of all chunks, with layers numbered through: chunk by chunk over all stages."""
    tensors: dict[str, Tensor] = {}
    layers = 0
    virtual = {len(part.chunks) for parts in stages for part in parts}
    if len(virtual) > 1:
        raise ValueError(f"all parts must have as many virtual stages, got {sorted(virtual)}")
    for chunk in range(virtual.pop()):
        for parts in stages:
            kinds = [_kinds(part, chunk) for part in parts]
            here = 1 + max((layer for layer, _ in kinds[0] if layer is not None), default=-1)
            needed: set[Kind] = {(layer, kind) for layer in range(here) for kind in layer_kinds(config)}
            for part, held in zip(parts, kinds, strict=True):
                _check_names(part, held, needed, kinds[0])
            for layer, kind in kinds[0]:
                several = [held[layer, kind] for held in kinds]
                tensors.update(_join(parts, several, layer, layers, kind, config))
            layers += here
    if layers != config.num_hidden_layers:
        raise ValueError(
            f"{stages[0][0].file.parent.parent} holds {layers} layers, the config has {config.num_hidden_layers}"
        )
    return tensors


def _kinds(part: Part, chunk: int) -> dict[Kind, Tensor]:
    try:
        placed = [(kind_of(name), tensor) for name, tensor in part.chunks[chunk].items()]
    except ValueError as error:
        raise ValueError(f"{part.file}: {error}") from None
    return {place: tensor for place, tensor in placed if place is not None}


def _check_names(part: Part, held: Mapping[Kind, Any], needed: set[Kind], first: Mapping[Kind, Any]) -> None:
    """Every layer whole, nothing else in it, and all ranks of a stage alike."""
    inner = {place for place in held if place[0] is not None}
    for place in sorted(inner ^ needed, key=str):
        raise ValueError(f"{part.file} {'lacks' if place in needed else 'has an unexpected'} {_named(place)}")
    for place in sorted(set(held) ^ set(first), key=str):
        raise ValueError(f"{part.file} and the first rank of its stage do not both hold {_named(place)}")


def _join(
    parts: Sequence[Part], several: Sequence[Tensor], layer: int | None, before: int, kind: str, config: Aquila2Config
) -> dict[str, Tensor]:
    wanted = part_shape(kind, config, len(parts))
    for part, tensor in zip(parts, several, strict=True):
        shape = tuple(tensor.shape)
        if len(shape) != len(wanted) or any(want not in (-1, got) for want, got in zip(wanted, shape, strict=True)):
            raise ValueError(
                f"{part.file}: {_named((layer, kind))} must have the shape {_shape(wanted)} by the config, got {shape}"
            )
    try:
        found = joined(kind, several, config, parts[0].version)
    except ValueError as error:
        raise ValueError(f"{parts[0].file}: {_named((layer, kind))}: {error}") from None
    place = "" if layer is None else f"model.layers.{before + layer}."
    return {f"{place}{end}": tensor for end, tensor in found.items()}


def _named(place: Kind) -> str:
    layer, kind = place
    return kind if layer is None else f"{kind} of layer {layer}"


def _shape(wanted: tuple[int, ...]) -> str:
    return str(wanted).replace("-1", "rows")
