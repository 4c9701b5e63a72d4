"""Published sizes, the JSON form, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aquila2 import PRESETS, Aquila2Config
from aquila2.config import ffn_size

# Name: parameters in billions, layers, hidden, FFN, heads, kv heads, vocabulary, positions, theta, bos, eos.
PUBLISHED = {
    "aquila2-7b": (7.296, 32, 4096, 11008, 32, 32, 100008, 2048, 1e4, 100006, 100007),
    "aquilachat2-7b-16k": (7.296, 32, 4096, 11008, 32, 32, 100008, 16384, 1e4, 100006, 100007),
    "aquila2-34b": (33.69, 60, 6144, 24576, 48, 8, 100008, 4096, 1e4, 100006, 100007),
    "aquilachat2-34b-16k": (33.69, 60, 6144, 24576, 48, 8, 100008, 4096, 1e4, 100006, 100007),
    "aquila2-70b-expr": (70.09, 80, 8192, 28672, 64, 8, 100008, 4096, 1e4, 100006, 100007),
    "aquila2-7b-2024": (7.66, 32, 4096, 11008, 32, 32, 143973, 8192, 1e6, 143717, 143718),
    "aquila2-34b-2024": (34.23, 60, 6144, 24576, 48, 8, 143973, 8192, 1e6, 143717, 143718),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    config = Aquila2Config.named(name)
    billions, *fields = PUBLISHED[name]
    assert config.num_parameters / 1e9 == pytest.approx(billions, rel=1e-3)
    assert fields == [
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.max_position_embeddings,
        config.rope_theta,
        config.bos_token_id,
        config.eos_token_id,
    ]
    assert config.head_dim == 128


def test_long_context_and_norm_init() -> None:
    assert Aquila2Config.named("AquilaChat2-7B-16K").rope_scaling_factor == 8.0
    assert Aquila2Config.named("aquilachat2-34b-16k").rope_scaling == "linear"
    assert Aquila2Config.named("aquila2-34b").norm_init == 0.3
    assert Aquila2Config.named("aquila2-70b-expr").norm_init == 0.25


def test_ffn_rule_gives_the_published_widths() -> None:
    assert ffn_size(4096) == 11008
    assert ffn_size(6144, 1.3, 4096) == 24576
    assert ffn_size(8192, 1.3, 4096) == 28672


@pytest.mark.parametrize("name", PRESETS)
def test_json_form_keeps_everything(name: str, tmp_path: Path) -> None:
    config = Aquila2Config.named(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert Aquila2Config.from_json(tmp_path / "config.json") == config


def test_missing_keys_take_the_published_defaults() -> None:
    entries = {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = Aquila2Config.from_hf(entries)
    assert (config.num_key_value_heads, config.rms_norm_eps, config.rope_theta) == (4, 1e-6, 1e4)
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)


def test_duplicate_key_is_refused(tmp_path: Path) -> None:
    text = json.dumps(Aquila2Config.named("aquilachat2-34b-16k").to_hf())
    (tmp_path / "config.json").write_text(text[:-1] + ', "rope_scaling": null}')
    with pytest.raises(ValueError, match="the key 'rope_scaling' twice"):
        Aquila2Config.from_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
        ({"hidden_size": 66}, "hidden_size must be a multiple"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be one of none, linear, dynamic"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"rope_scaling": "linear", "rope_scaling_factor": 0.5}, "rope_scaling_factor must be at least 1"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aquila2Config.named("tiny").replace(**changes)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures must name one of"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"mlp_bias": True}, "mlp_bias must be false"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling must be one of"),
    ],
)
def test_other_models_are_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aquila2Config.from_hf({**Aquila2Config.named("tiny").to_hf(), **entry})


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="name must be one of aquila2-7b, "):
        Aquila2Config.named("aquila3")
