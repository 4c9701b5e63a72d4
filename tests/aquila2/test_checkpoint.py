"""Loading and saving: safetensors, shards, old .bin files, and everything that can be wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aquila2 import Aquila2ForCausalLM, SwiGLU, from_pretrained, save_pretrained


def assert_same(first: Aquila2ForCausalLM, second: Aquila2ForCausalLM) -> None:
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_round_trip(tmp_path: Path, tiny_model: Aquila2ForCausalLM, max_shard_bytes: int, tied: bool) -> None:
    model = Aquila2ForCausalLM(tiny_model.config.replace(tie_word_embeddings=True)) if tied else tiny_model
    save_pretrained(model, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (max_shard_bytes < 10**9)
    loaded = from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    if tied:
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_sharded_over_single_and_back(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    for max_shard_bytes in (10**9, 100_000, 200_000, 10**9):
        save_pretrained(tiny_model, tmp_path, max_shard_bytes=max_shard_bytes)
        assert_same(from_pretrained(tmp_path), tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_dtype(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    save_pretrained(tiny_model, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert from_pretrained(tmp_path).lm_head.weight.dtype == torch.bfloat16
    assert from_pretrained(tmp_path, dtype=torch.float32).lm_head.weight.dtype == torch.float32


def test_old_bin_shards_with_derived_tables(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_model.config.to_hf()))
    tensors = tiny_model.state_dict()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:10], "pytorch_model-00002-of-00002.bin": names[10:]}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(from_pretrained(tmp_path), tiny_model)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_single_bin(tmp_path: Path, tiny_model: Aquila2ForCausalLM, zipped: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_model.config.to_hf()))
    state = tiny_model.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(from_pretrained(tmp_path), tiny_model)


def test_transformers_reads_what_we_write_and_we_read_what_it_writes(
    tmp_path: Path, tiny_model: Aquila2ForCausalLM
) -> None:
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(304, (1, 9))
    save_pretrained(tiny_model, tmp_path / "ours", max_shard_bytes=100_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(theirs(ids).logits, tiny_model(ids).logits, rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(from_pretrained(tmp_path / "theirs"), tiny_model)


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    save_pretrained(tiny_model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.7.extra"] = tensors.pop("model.norm.weight").clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight, unexpected model\.layers\.7\.extra"):
        from_pretrained(tmp_path)


def test_wrong_shape_is_named(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    save_pretrained(tiny_model, tmp_path)
    with pytest.raises(
        ValueError, match=r"lm_head\.weight must have the shape \(312, 64\), got \(304, 64\)|embed_tokens"
    ):
        from_pretrained(tmp_path, config=tiny_model.config.replace(vocab_size=312))


def test_missing_files(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        from_pretrained(tmp_path)
    save_pretrained(tiny_model, tmp_path, max_shard_bytes=100_000)
    shard = next(tmp_path.glob("model-00002-*"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"names files that are not there: {shard.name}"):
        from_pretrained(tmp_path)
    for file in [*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"]:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors, pytorch_model\.bin or index"):
        from_pretrained(tmp_path)


def test_index_that_disagrees_with_its_shard(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    save_pretrained(tiny_model, tmp_path, max_shard_bytes=100_000)
    index = tmp_path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    del entries["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"does not hold what the index says: missing none, unexpected model\.norm"):
        from_pretrained(tmp_path)


def test_duplicate_key_in_an_index(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    save_pretrained(tiny_model, tmp_path, max_shard_bytes=100_000)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"weight_map": {', '"weight_map": {"lm_head.weight": "elsewhere",'))
    with pytest.raises(ValueError, match=r"the key 'lm_head\.weight' twice"):
        from_pretrained(tmp_path)


def test_weights_are_memory_mapped(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list a process's mapped files")
    save_pretrained(tiny_model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert str(tmp_path / "model.safetensors") in maps.read_text()
    assert loaded.lm_head.weight.requires_grad


def test_failed_save_leaves_the_old_model(
    tmp_path: Path, tiny_model: Aquila2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(tiny_model, tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("aquila2.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(Aquila2ForCausalLM(tiny_model.config), tmp_path)
    assert_same(from_pretrained(tmp_path), tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


FORMS = {"one file": 10**9, "shards": 100_000, "other shards": 200_000}


def write_form(form: str, model: Aquila2ForCausalLM, folder: Path) -> None:
    if form == "bin":
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(model.config.to_hf()))
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        save_pretrained(model, folder, max_shard_bytes=FORMS[form])


@pytest.mark.parametrize("new", FORMS)
@pytest.mark.parametrize("old", [*FORMS, "bin"])
def test_a_save_cut_anywhere_never_leaves_a_mixture(
    tmp_path: Path, tiny_model: Aquila2ForCausalLM, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """From its n-th step on nothing that touches the disk works any more, as if the process had been killed there."""
    other = Aquila2ForCausalLM(tiny_model.config.replace(rope_theta=77.0)).eval()
    outcomes: list[str] = []
    left = 0

    def dying(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("killed")
            return function(*arguments, **options)

        return call

    for step in range(1000):
        folder = tmp_path / str(step)
        write_form(old, tiny_model, folder)
        left = step
        with monkeypatch.context() as context:
            context.setattr("aquila2.checkpoint.save_file", dying(save_file))
            for name in ("replace", "unlink", "fsync"):
                context.setattr(os, name, dying(getattr(os, name)))
            context.setattr(Path, "write_text", dying(Path.write_text))
            try:
                save_pretrained(other, folder, max_shard_bytes=FORMS[new])
                finished = True
            except OSError:
                finished = False
        try:
            loaded = from_pretrained(folder)
            found = tiny_model if loaded.config == tiny_model.config else other
            assert loaded.config == found.config
            assert_same(loaded, found)
            outcomes.append("new" if found is other else "old")
        except FileNotFoundError:
            outcomes.append("refused")
        if finished:
            break
    assert outcomes == sorted(outcomes, key=["old", "refused", "new"].index)
    assert outcomes[0] == "old" and outcomes[-1] == "new"


def test_mlp_factory_is_passed_on(tmp_path: Path, tiny_model: Aquila2ForCausalLM) -> None:
    class Counted(SwiGLU):
        pass

    save_pretrained(tiny_model, tmp_path)
    assert all(isinstance(layer.mlp, Counted) for layer in from_pretrained(tmp_path, mlp=Counted).model.layers)
