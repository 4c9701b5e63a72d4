"""The sizes and options of Aquila2, with every published model by name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROPE_SCALINGS = ("none", "linear", "dynamic")
OUR_ARCHITECTURES = ("AquilaForCausalLM", "AquilaModel", "LlamaForCausalLM")


def ffn_size(hidden_size: int, multiplier: float = 1.0, multiple_of: int = 256) -> int:
    """Width of the SwiGLU layer by the rule the published sizes follow.

    floor(floor(8 h / 3) * multiplier), rounded up to the next multiple of `multiple_of`. 7B: 1.0 and 256; 34B and
    70B: 1.3 and 4096.
    """
    width = int(int(4 * hidden_size * 2 / 3) * multiplier)
    return math.ceil(width / multiple_of) * multiple_of


@dataclass(frozen=True, kw_only=True)
class Aquila2Config:
    """Everything that fixes an Aquila2's shape and arithmetic.

    Attributes:
        vocab_size: Rows of the embedding and of the output head.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the SwiGLU layer.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads; divides the query heads. Equal to them it is multi-head attention.
        head_dim: Channels per head; 0 means hidden_size / num_attention_heads.
        max_position_embeddings: Context length of the pre-training; dynamic NTK scaling starts beyond it.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: "none", "linear" (positions divided by the factor) or "dynamic" (NTK, base grows with length).
        rope_scaling_factor: Factor of the scaling.
        rope_interleaved: Channels 2i and 2i + 1 form a rotary pair (the older Aquila-7B), not i and i + head_dim / 2.
        rms_norm_eps: Epsilon of the norms.
        norm_init: Initial gain of every norm (1 for 7B, 0.3 for 34B, 0.25 for 70B).
        initializer_range: Standard deviation of the normal initialisation of all matrices.
        attention_bias: Adds biases to the q, k, v and o projections (no published Aquila2 has them).
        tie_word_embeddings: The output head is the embedding matrix.
        bos_token_id, eos_token_id, pad_token_id: Special ids; None where the model has none.
        dtype: Name of the dtype in which the weights are published.
    """

    vocab_size: int = 100008
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: str = "none"
    rope_scaling_factor: float = 1.0
    rope_interleaved: bool = False
    rms_norm_eps: float = 1e-5
    norm_init: float = 1.0
    initializer_range: float = 0.02
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 100006
    eos_token_id: int | None = 100007
    pad_token_id: int | None = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size must be a multiple of num_attention_heads where head_dim is not given, "
                    f"got {self.hidden_size} and {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads, "
                f"got {self.num_key_value_heads} and {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embedding, got {self.head_dim}")
        if self.rope_scaling not in ROPE_SCALINGS:
            raise ValueError(f"rope_scaling must be one of {', '.join(ROPE_SCALINGS)}, got {self.rope_scaling!r}")
        if self.rope_scaling_factor < 1.0:
            raise ValueError(f"rope_scaling_factor must be at least 1, got {self.rope_scaling_factor}")

    @property
    def num_parameters(self) -> int:
        """Number of trained values of the plain model (dense SwiGLU layers)."""
        heads, kv_heads, width = self.num_attention_heads, self.num_key_value_heads, self.hidden_size
        attention = 2 * width * heads * self.head_dim + 2 * width * kv_heads * self.head_dim
        if self.attention_bias:
            attention += (heads + 2 * kv_heads) * self.head_dim + width
        layer = attention + 3 * width * self.intermediate_size + 2 * width
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * width
        return embeddings + self.num_hidden_layers * layer + width

    def replace(self, **changes: Any) -> Aquila2Config:
        """A copy with the named fields changed."""
        if ("hidden_size" in changes or "num_attention_heads" in changes) and "head_dim" not in changes:
            changes["head_dim"] = 0
        return dataclasses.replace(self, **changes)

    @classmethod
    def named(cls, name: str, **changes: Any) -> Aquila2Config:
        """The configuration of a published or small model by its name, e.g. `Aquila2Config.named("aquilachat2-34b")`.

        Args:
            name: A key of `aquila2.config.PRESETS`, in any case.
            changes: Fields to change.

        Raises:
            ValueError: The name is not known.
        """
        preset = PRESETS.get(name.lower())
        if preset is None:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
        return preset.replace(**changes) if changes else preset

    @classmethod
    def from_hf(cls, entries: Mapping[str, Any]) -> Aquila2Config:
        """The configuration described by the entries of a Hugging Face `config.json`.

        Understands the `rope_scaling` form of the published files and the `rope_parameters` form of transformers 5.
        Keys that are missing take the defaults of the published modelling code (theta 1e4, eps 1e-6, as many key/value
        heads as query heads, bos 1, eos 2), not ours.

        Raises:
            ValueError: The entries describe a model that Aquila2 is not (another activation, rope type, architecture).
        """
        for architecture in entries.get("architectures") or ():
            if architecture not in OUR_ARCHITECTURES:
                raise ValueError(f"architectures must name one of {', '.join(OUR_ARCHITECTURES)}, got {architecture!r}")
        if entries.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act must be 'silu', got {entries['hidden_act']!r}")
        if entries.get("mlp_bias"):
            raise ValueError("mlp_bias must be false, got true")
        rope = dict(entries.get("rope_parameters") or {})
        rope.update(entries.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type")) or "none"
        scaling = "none" if kind == "default" else kind
        heads = entries["num_attention_heads"]
        return cls(
            vocab_size=entries["vocab_size"],
            hidden_size=entries["hidden_size"],
            intermediate_size=entries["intermediate_size"],
            num_hidden_layers=entries["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=entries.get("num_key_value_heads") or heads,
            head_dim=entries.get("head_dim") or 0,
            max_position_embeddings=entries.get("max_position_embeddings", 2048),
            rope_theta=float(entries.get("rope_theta", rope.get("rope_theta", 10000.0))),
            rope_scaling=scaling,
            rope_scaling_factor=float(rope.get("factor", 1.0)) if scaling != "none" else 1.0,
            rope_interleaved=entries.get("rope_interleaved", False),
            rms_norm_eps=entries.get("rms_norm_eps", 1e-6),
            norm_init=entries.get("norm_init", 1.0),
            initializer_range=entries.get("initializer_range", 0.02),
            attention_bias=entries.get("attention_bias", False),
            tie_word_embeddings=entries.get("tie_word_embeddings", False),
            bos_token_id=entries.get("bos_token_id", 1),
            eos_token_id=entries.get("eos_token_id", 2),
            pad_token_id=entries.get("pad_token_id"),
            dtype=entries.get("torch_dtype", entries.get("dtype")) or "float32",
        )

    def to_hf(self) -> dict[str, Any]:
        """The entries of a `config.json` that transformers, vLLM and `from_hf` read.

        A half-split rotary model is written as Llama, which it is. An interleaved one is written as Aquila, since a
        Llama loader would rotate the wrong pairs without a word.
        """
        scaling = None
        if self.rope_scaling != "none":
            scaling = {
                "type": self.rope_scaling,
                "rope_type": self.rope_scaling,
                "factor": self.rope_scaling_factor,
            }
        entries: dict[str, Any] = {
            "architectures": ["AquilaForCausalLM" if self.rope_interleaved else "LlamaForCausalLM"],
            "model_type": "aquila" if self.rope_interleaved else "llama",
            "hidden_act": "silu",
            "rope_scaling": scaling,
            "torch_dtype": self.dtype,
        }
        kept = {field.name for field in dataclasses.fields(self)} - {"dtype", "rope_scaling", "rope_scaling_factor"}
        entries.update({name: getattr(self, name) for name in sorted(kept)})
        return entries

    @classmethod
    def from_json(cls, path: Path | str) -> Aquila2Config:
        """Reads a `config.json`; a key that stands twice is an error, not silently the last one.

        Raises:
            ValueError: A duplicate key, or a model that is not an Aquila2.
        """
        return cls.from_hf(read_json(Path(path)))


def read_json(path: Path) -> Any:
    """Parses a JSON file and refuses objects with duplicate keys, which JSON parsers otherwise resolve to the last.

    One published 34B-16K `config.json` has `rope_scaling` twice, the second time null, and so loses its scaling.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise ValueError(f"{path} has the key {key!r} twice (first {entries[key]!r}, then {value!r})")
            entries[key] = value
        return entries

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_duplicates)


def _presets() -> dict[str, Aquila2Config]:
    base_7b = Aquila2Config(dtype="float16")
    base_34b = Aquila2Config(
        hidden_size=6144, intermediate_size=24576, num_hidden_layers=60, num_attention_heads=48, num_key_value_heads=8,
        max_position_embeddings=4096, norm_init=0.3, initializer_range=0.0165, dtype="bfloat16",
    )  # fmt: skip
    base_70b = Aquila2Config(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        max_position_embeddings=4096, norm_init=0.25, initializer_range=0.0149, dtype="bfloat16",
    )  # fmt: skip
    second_generation: dict[str, Any] = {
        "vocab_size": 143973, "max_position_embeddings": 8192, "rope_theta": 1e6,
        "bos_token_id": 143717, "eos_token_id": 143718, "pad_token_id": None, "dtype": "bfloat16",
    }  # fmt: skip
    small: dict[str, Any] = {"bos_token_id": 4102, "eos_token_id": 4103, "vocab_size": 4104}
    return {
        "aquila2-7b": base_7b,
        "aquilachat2-7b": base_7b,
        "aquilachat2-7b-16k": base_7b.replace(
            max_position_embeddings=16384, rope_scaling="linear", rope_scaling_factor=8.0
        ),
        "aquila2-34b": base_34b,
        "aquilachat2-34b": base_34b,
        "aquilachat2-34b-16k": base_34b.replace(rope_scaling="linear", rope_scaling_factor=4.0),
        "aquila2-70b-expr": base_70b,
        "aquilachat2-70b-expr": base_70b,
        "aquila2-7b-2024": base_7b.replace(**second_generation),
        "aquila2-34b-2024": base_34b.replace(**second_generation),
        "tiny": Aquila2Config(
            hidden_size=64, intermediate_size=ffn_size(64, multiple_of=32), num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, **small,
        ),
        "4m": Aquila2Config(
            hidden_size=256, intermediate_size=ffn_size(256, multiple_of=64), num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, **small,
        ),
        "25m": Aquila2Config(
            hidden_size=384, intermediate_size=ffn_size(384), num_hidden_layers=12,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=2048,
            **{**small, "vocab_size": 8200, "bos_token_id": 8198, "eos_token_id": 8199},
        ),
        "100m": Aquila2Config(
            hidden_size=768, intermediate_size=ffn_size(768), num_hidden_layers=12, num_attention_heads=12,
            num_key_value_heads=4, max_position_embeddings=2048,
            **{**small, "vocab_size": 16392, "bos_token_id": 16390, "eos_token_id": 16391},
        ),
    }  # fmt: skip


PRESETS: dict[str, Aquila2Config] = _presets()
