"""Writes an Aquila2 as Megatron's ranks would: the inverse of the import, from Megatron's own description."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aquila2 import Aquila2ForCausalLM

LEGACY = {
    "qkv": "self_attention.query_key_value",
    "out": "self_attention.dense",
    "gate_up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
CORE = {
    "qkv": "self_attention.linear_qkv",
    "out": "self_attention.linear_proj",
    "gate_up": "mlp.linear_fc1",
    "down": "mlp.linear_fc2",
    "norm1": "input_layernorm",
    "norm2": "pre_mlp_layernorm",
}


def joined_qkv(q: Tensor, k: Tensor, v: Tensor, groups: int, dim: int, version: float) -> Tensor:
    """One rank's rows in the order of a version."""
    rest = q.shape[1:]
    if version == 0:
        return torch.cat([q, k, v])
    if version == 1:
        return torch.stack([rows.reshape(-1, dim, *rest) for rows in (q, k, v)], dim=2).flatten(0, 2)
    return torch.cat([rows.reshape(groups, -1, dim, *rest) for rows in (q, k, v)], dim=1).flatten(0, 2)


def interleaved(values: Tensor, dim: int) -> Tensor:
    """Rows of values in the order from which FlagScale's patch makes the given one."""
    order = torch.arange(dim).reshape(dim // 2, 2).T.flatten()
    return values.unflatten(0, (-1, dim))[:, order].flatten(0, 1)


class Writer:
    """Parts of a model on `tensor` ranks and stages of `stages` layers each.

    Attributes:
        virtual: Chunks of every stage, dealt out in turns.
        pad: Rows that every rank's embedding gets beyond the vocabulary, all of the last part's end.
    """

    def __init__(
        self,
        model: Aquila2ForCausalLM,
        tensor: int,
        stages: list[int],
        *,
        version: float = 3.0,
        core: bool = False,
        virtual: int = 1,
        padded: int | None = None,
        patched: bool = False,
    ) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.config, self.tensor, self.stages, self.version = model.config, tensor, stages, version
        self.core, self.virtual, self.patched = core, virtual, patched
        self.padded = padded or -(-model.config.vocab_size // (8 * tensor)) * 8 * tensor
        self.arguments: dict[str, Any] = {}

    def write(self, folder: Path) -> None:
        """Writes every rank's file below `folder`."""
        for stage in range(len(self.stages)):
            for rank in range(self.tensor):
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if len(self.stages) > 1 else "")
                (folder / name).mkdir(parents=True)
                torch.save(self.content(rank, stage), folder / name / "model_optim_rng.pt")

    def content(self, rank: int, stage: int) -> dict[str, Any]:
        chunks = [self.chunk(rank, stage, turn) for turn in range(self.virtual)]
        models = {"model": chunks[0]} if len(chunks) == 1 else {f"model{i}": chunk for i, chunk in enumerate(chunks)}
        content = {"args": Namespace(**self.arguments), "iteration": 7, "optimizer": {"step": torch.ones(1)}, **models}
        return content if self.version == 0 else {**content, "checkpoint_version": self.version}

    def chunk(self, rank: int, stage: int, turn: int) -> dict[str, Any]:
        per_turn = sum(self.stages)
        begin = turn * per_turn + sum(self.stages[:stage])
        layers: dict[str, Tensor] = {}
        for local in range(self.stages[stage]):
            layers.update({f"layers.{local}.{name}": v for name, v in self.layer(begin + local, rank).items()})
        first = stage == turn == 0
        last = (stage, turn) == (len(self.stages) - 1, self.virtual - 1)
        embedding = self.vocabulary("model.embed_tokens.weight", rank)
        tied = self.config.tie_word_embeddings
        if last:
            layers["final_layernorm.weight"] = self.weights["model.norm.weight"]
        head = self.vocabulary("lm_head.weight", rank)
        if self.core:
            flat = {f"decoder.{name}": value for name, value in layers.items()}
            flat |= {"embedding.word_embeddings.weight": embedding} if first else {}
            return flat | ({"output_layer.weight": head} if last and not tied else {})
        language: dict[str, Any] = {"encoder": layers}
        language |= {"embedding": {"word_embeddings": {"weight": embedding}}} if first else {}
        language |= {"output_layer": {"weight": head}} if last and not tied else {}
        model: dict[str, Any] = {"language_model": language}
        return model | ({"word_embeddings_for_head": {"weight": head}} if last and tied and not first else {})

    def layer(self, index: int, rank: int) -> dict[str, Tensor]:
        names, config, prefix = CORE if self.core else LEGACY, self.config, f"model.layers.{index}."
        mine = {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}
        dim, groups = config.head_dim, config.num_key_value_heads // self.tensor
        found = {
            f"{names['out']}.weight": self.part(mine["self_attn.o_proj.weight"], rank, 1),
            f"{names['gate_up']}.weight": torch.cat(
                [self.part(mine[f"mlp.{name}_proj.weight"], rank) for name in ("gate", "up")]
            ),
            f"{names['down']}.weight": self.part(mine["mlp.down_proj.weight"], rank, 1),
            f"{names['norm1']}.weight": mine["input_layernorm.weight"],
            f"{names['norm2']}.weight": mine["post_attention_layernorm.weight"],
        }
        for end in ("weight", "bias") if config.attention_bias else ("weight",):
            q, k, v = (mine[f"self_attn.{name}_proj.{end}"] for name in "qkv")
            v = interleaved(v, dim) if self.patched else v
            parts = [self.part(rows, rank) for rows in (q, k, v)]
            found[f"{names['qkv']}.{end}"] = joined_qkv(*parts, groups, dim, self.version)
        if config.attention_bias:
            found[f"{names['out']}.bias"] = mine["self_attn.o_proj.bias"]
        return found

    def vocabulary(self, name: str, rank: int) -> Tensor:
        rows = self.weights[name]
        padding = torch.full((self.padded - len(rows), rows.shape[1]), float("nan"))
        return self.part(torch.cat([rows, padding]), rank)

    def part(self, whole: Tensor, rank: int, dim: int = 0) -> Tensor:
        return whole.chunk(self.tensor, dim)[rank].clone()
