"""Parts written as Megatron writes them become the model that they came from, bit for bit, or one sentence."""

from __future__ import annotations

import enum
import json
import random
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aquila2 import Aquila2Config, Aquila2ForCausalLM, from_pretrained
from aquila2.cli import main
from aquila2.megatron import from_megatron
from aquila2.megatron.files import read_part
from tests.aquila2.megatron.shards import Writer


def model_of(**changes: Any) -> Aquila2ForCausalLM:
    config = Aquila2Config.named(
        "tiny", vocab_size=301, num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=4, **changes
    )
    model = Aquila2ForCausalLM(config.replace(initializer_range=0.2)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def assert_same(loaded: Aquila2ForCausalLM, model: Aquila2ForCausalLM) -> None:
    ids = torch.arange(34).view(2, 17) * 7
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("core", [False, True], ids=["legacy", "core"])
@pytest.mark.parametrize("stages", [[4], [1, 3]], ids=["one stage", "uneven stages"])
@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [4, 8], ids=["GQA", "MHA"])
def test_layouts(tmp_path: Path, core: bool, stages: list[int], tensor: int, kv_heads: int) -> None:
    model = model_of()
    model = Aquila2ForCausalLM(model.config.replace(num_key_value_heads=kv_heads)).eval()
    Writer(model, tensor, stages, core=core).write(tmp_path / "iter_0000070")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("70\n")
    assert_same(from_megatron(tmp_path, model.config), model)


@pytest.mark.parametrize("version", [0, 1.0, 2.0])
@pytest.mark.parametrize("tensor", [1, 4])
def test_versions(tmp_path: Path, version: float, tensor: int) -> None:
    model = Aquila2ForCausalLM(model_of().config.replace(num_key_value_heads=8)).eval()
    Writer(model, tensor, [2, 2], version=version).write(tmp_path / "release")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    assert_same(from_megatron(tmp_path, model.config), model)


@pytest.mark.parametrize("stages", [[4], [2, 2]])
@pytest.mark.parametrize("core", [False, True], ids=["legacy", "core"])
def test_tied_head_and_biases(tmp_path: Path, stages: list[int], core: bool) -> None:
    model = model_of(tie_word_embeddings=True, attention_bias=True)
    Writer(model, 2, stages, core=core).write(tmp_path)
    loaded = from_megatron(tmp_path, model.config)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same(loaded, model)


def test_virtual_stages_are_numbered_through(tmp_path: Path) -> None:
    model = model_of()
    Writer(model, 2, [1, 1], virtual=2).write(tmp_path)
    assert_same(from_megatron(tmp_path, model.config), model)


@pytest.mark.parametrize("told", [False, True], ids=["asked", "told by the file"])
def test_interleaved_values(tmp_path: Path, told: bool) -> None:
    model = model_of(attention_bias=True)
    writer = Writer(model, 2, [4], patched=True)
    writer.arguments = {"rotary_interleaved_patch": True} if told else {}
    writer.write(tmp_path)
    assert_same(from_megatron(tmp_path, model.config, interleaved_values=not told), model)


def test_dtype_is_that_of_the_layers_unless_asked(tmp_path: Path) -> None:
    model = model_of()
    writer = Writer(model, 2, [4])
    writer.weights = {name: value if "embed" in name else value.bfloat16() for name, value in writer.weights.items()}
    writer.write(tmp_path)
    assert {p.dtype for p in from_megatron(tmp_path, model.config).parameters()} == {torch.bfloat16}
    wide = from_megatron(tmp_path, model.config, dtype=torch.float32)
    assert torch.equal(wide.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_other_objects_of_megatron_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What real files keep beside the weights: random states of numpy and of Python, and an enumeration's member."""
    enums = types.ModuleType("megatron.core.enums")
    enums.ModelType = enum.Enum("ModelType", "encoder_or_decoder", module=enums.__name__)
    model = model_of()
    Writer(model, 1, [4]).write(tmp_path)
    file = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    content["rng_state"] = [{"np_rng_state": np.random.get_state(), "random_rng_state": random.getstate()}]
    content["args"].model_type = enums.ModelType.encoder_or_decoder
    with monkeypatch.context() as patched:
        for name in ("megatron", "megatron.core", enums.__name__):
            patched.setitem(sys.modules, name, enums)
        torch.save(content, file)
    assert_same(from_megatron(tmp_path, model.config), model)


class Evil:
    """A pickled call, of what would show."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    model = model_of()
    Writer(model, 1, [4]).write(tmp_path)
    file = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    torch.save({**content, "args": Evil(tmp_path / "run")}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"tensors, plain values and argparse\.Namespace only, got \S+$"):
        from_megatron(tmp_path, model.config)
    assert not (tmp_path / "run").exists()


def test_a_file_from_before_torch_1_6(tmp_path: Path) -> None:
    model = model_of()
    Writer(model, 1, [4]).write(tmp_path)
    file = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    torch.save(torch.load(file, weights_only=False), file, _use_new_zipfile_serialization=False)
    assert_same(from_megatron(tmp_path, model.config), model)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 5}, r"holds 4 layers, the config has 5"),
        ({"vocab_size": 400}, r"embedding: it must have at least vocab_size = 400 rows .*, got 304"),
        ({"intermediate_size": 96}, r"must have the shape \(96, 64\) by the config, got \(192, 64\)"),
        ({"num_key_value_heads": 1}, r"num_key_value_heads must be a multiple of the 2 .* ranks, got 1"),
        ({"num_key_value_heads": 2}, r"must have the shape \(48, 64\) by the config, got \(64, 64\)"),
        ({"attention_bias": True}, r"lacks out_bias of layer 0"),
        ({"tie_word_embeddings": True}, r"a head that is not its embedding; tie_word_embeddings must be false"),
    ],
)
def test_another_config_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    model = model_of()
    Writer(model, 2, [4]).write(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        from_megatron(tmp_path, model.config.replace(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads 4, the config has 8"),
        ({"num_attention_heads": 8, "group_query_attention": False}, "num_key_value_heads 8, the config has 4"),
        ({"layernorm_epsilon": 1e-6}, "rms_norm_eps 1e-06, the config has 1e-05"),
        ({"apply_layernorm_1p": True}, "apply_layernorm_1p True, which an Aquila2 has not"),
    ],
)
def test_other_arguments_are_one_sentence(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    model = model_of()
    writer = Writer(model, 2, [4])
    writer.arguments = arguments
    writer.write(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        from_megatron(tmp_path, model.config)


def test_the_arguments_of_its_own_run_are_taken(tmp_path: Path) -> None:
    model = model_of()
    writer = Writer(model, 2, [4])
    writer.arguments = {
        "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": model.config.intermediate_size, "kv_channels": 8,
        "num_attention_heads": 8, "group_query_attention": True, "num_query_groups": 4, "norm_epsilon": 1e-5,
        "rotary_base": 10000, "rotary_interleaved": False, "num_experts": None,
    }  # fmt: skip
    writer.write(tmp_path)
    assert_same(from_megatron(tmp_path, model.config), model)


def broken(tmp_path: Path, case: str) -> tuple[type[Exception], str]:
    first, second = tmp_path / "mp_rank_00_000" / "model_optim_rng.pt", tmp_path / "mp_rank_01_001"
    content = torch.load(first, weights_only=False)
    encoder = content["model"]["language_model"]["encoder"]
    if case == "part missing":
        (second / "model_optim_rng.pt").unlink()
        second.rmdir()
        return FileNotFoundError, "parts of 2 stages and 2 ranks, and lacks stage 1 rank 1"
    if case == "no file":
        (second / "model_optim_rng.pt").unlink()
        return FileNotFoundError, "mp_rank_01_001 has no model_optim_rng.pt or model_rng.pt"
    if case == "experts":
        second.rename(tmp_path / "mp_rank_01_001_000")
        return ValueError, "experts are not imported"
    if case == "no iteration":
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("soon")
        return ValueError, "must hold the number of an iteration or the word release, got 'soon'"
    if case == "cut off":
        first.write_bytes(first.read_bytes()[:5000])
        return ValueError, "model_optim_rng.pt cannot be read"
    if case == "unknown tensor":
        encoder["layers.0.self_attention.sink"] = torch.ones(3)
        sentence = "an Aquila2 has no tensor language_model.encoder.layers.0.self_attention.sink"
    elif case == "tensor missing":
        del encoder["layers.1.mlp.dense_4h_to_h.weight"]
        sentence = "lacks down of layer 1"
    elif case == "ranks differ":
        encoder["layers.1.input_layernorm.weight"] += 1
        sentence = "input_norm of layer 1: it must be the same on all tensor-parallel ranks"
    elif case == "old and grouped":
        content["checkpoint_version"] = 1.0
        sentence = "checkpoint_version must be at least 2 where queries are grouped, got 1"
    elif case == "odd version":
        content["checkpoint_version"] = "three"
        sentence = "model_optim_rng.pt must have a number as checkpoint_version, got 'three'"
    elif case == "no model":
        del content["model"]
        sentence = "has no model in it"
    else:
        raise AssertionError(case)
    torch.save(content, first)
    return ValueError, sentence


CASES = [
    "part missing", "no file", "experts", "no iteration", "cut off", "unknown tensor", "tensor missing",
    "ranks differ", "old and grouped", "odd version", "no model",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_checkpoint_is_one_sentence(tmp_path: Path, case: str) -> None:
    model = model_of()
    Writer(model, 2, [2, 2]).write(tmp_path)
    kind, sentence = broken(tmp_path, case)
    with pytest.raises(kind, match=sentence) as caught:
        from_megatron(tmp_path, model.config)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_pickles_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model_optim_rng.pt"
    torch.save({"model": {"a": torch.ones(3)}, "checkpoint_version": None}, file)
    assert read_part(file).version == 0
    with zipfile.ZipFile(file) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    (name,) = [name for name in members if name.endswith("data.pkl")]
    for place in range(len(members[name])):
        for byte in (b"", b"\xff", b"t", b"R"):  # nothing, no instruction, one on an empty stack, a call
            damaged = members[name][:place] + byte + members[name][place + 1 :]
            with zipfile.ZipFile(file, "w") as written:
                for member, content in {**members, name: damaged}.items():
                    written.writestr(member, content)
            try:
                read_part(file)
            except ValueError as error:
                assert str(error).startswith(str(file)) and "\n" not in str(error)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of()
    Writer(model, 2, [2, 2]).write(tmp_path / "parts")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_hf()))
    arguments = ["import-megatron", str(tmp_path / "parts"), str(tmp_path / "out")]
    assert main([*arguments, "--config", str(tmp_path / "config.json")]) == 0
    assert f"{model.config.num_parameters:,} parameters in float32" in capsys.readouterr().out
    assert_same(from_pretrained(tmp_path / "out"), model)
    assert main([*arguments, "--config", "7b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
