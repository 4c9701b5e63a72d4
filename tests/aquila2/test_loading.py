"""Loading a checkpoint in one pass: the same bits as loading what was verified before, and no change goes unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aquila2.checkpoint import save_pretrained
from aquila2.heurimentor.verified import MANIFEST, NotVerified, read_manifest, verified_folder
from aquila2.model import Aquila2ForCausalLM
from aquila2.training import loading, trainer
from aquila2.training.checkpoints import MOMENTS
from aquila2.training.loading import load_checkpoint, load_verified, places_in
from aquila2.training.optim import make_adamw
from aquila2.training.options import OptimizerOptions
from tests.aquila2.heurimentor.runs import options_for, write_texts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Aquila2ForCausalLM]:
    """A checkpoint and the model that it was made of."""
    folder = tmp_path_factory.mktemp("loading")
    write_texts(folder / "texts")
    result = trainer.train(options_for(folder / "texts", folder / "run", train={"samples": 8}))
    return result.checkpoint, result.model


def other_than(model: Aquila2ForCausalLM) -> tuple[Aquila2ForCausalLM, torch.optim.Optimizer]:
    other = Aquila2ForCausalLM(model.config)
    return other, make_adamw(other, OptimizerOptions())


def state_of(model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    moments = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    return {**dict(model.named_parameters()), **moments}


@pytest.mark.parametrize("places", ["all", "none"])
def test_both_ways_of_loading_give_the_same_bits(
    made: tuple[Path, Aquila2ForCausalLM], monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    path, model = made
    if places == "none":  # as where ranks have parts of the tensors, or a GPU has them
        monkeypatch.setattr(loading, "_memory_of", lambda tensor: None)
    one, other = other_than(model), other_than(model)
    torch.manual_seed(1)
    assert load_verified(path, *one) == load_checkpoint(path, *other)
    found, expected = state_of(*one), state_of(*other)
    assert found.keys() == expected.keys() and len(found) == 4 * len(list(model.parameters()))
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(torch.equal(found[name], tensor) for name, tensor in model.named_parameters())


def test_every_tensor_of_a_whole_model_is_read_where_it_belongs(made: tuple[Path, Aquila2ForCausalLM]) -> None:
    path, model = made
    weights = dict(model.named_parameters())
    places = places_in(path / "model.safetensors", weights)
    assert places.keys() == weights.keys()
    assert sum(len(place.memory) for place in places.values()) == sum(p.nbytes for p in weights.values())
    with safe_open(path / MOMENTS, framework="pt") as stored:
        moments = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
    assert places_in(path / MOMENTS, moments).keys() == moments.keys()


def test_weights_in_several_files_are_read_where_they_belong_too(
    made: tuple[Path, Aquila2ForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = made
    with verified_folder(tmp_path / "step-1", read_manifest(path)["facts"]) as folder:
        save_pretrained(model, folder, max_shard_bytes=100_000)
        for file in path.iterdir():
            if file.name not in (MANIFEST, "model.safetensors", "config.json"):
                shutil.copy(file, folder)
    assert len(list((tmp_path / "step-1").glob("model-*.safetensors"))) > 2
    monkeypatch.setattr(loading, "fill", lambda *arguments: pytest.fail("a tensor was copied"))
    loaded, optimizer = other_than(model)
    load_verified(tmp_path / "step-1", loaded, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_tensors_of_another_form_have_no_place(made: tuple[Path, Aquila2ForCausalLM]) -> None:
    path, model = made
    name, weight = next(iter(model.named_parameters()))
    others = (weight.bfloat16(), weight.half(), weight.T, weight[1:], weight.to("meta"), weight[:0])
    for other in others:
        assert places_in(path / "model.safetensors", {name: other.detach()}) == {}, other.shape
    assert places_in(path / "model.safetensors", {"nobody": weight}) == {}
    assert places_in(path / "nothing.safetensors", {name: weight}) == {}


def test_a_damaged_header_is_found_by_its_hash(made: tuple[Path, Aquila2ForCausalLM], tmp_path: Path) -> None:
    path, model = made
    content = (path / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    entries = [header[name] for name in names]
    same = [i for i, entry in enumerate(entries) if entry["shape"] == entries[-1]["shape"]]
    overlapping = {**header, names[same[0]]: entries[same[1]]}
    odd = [
        {**header, names[0]: entry}
        for entry in ([], {}, {**entries[0], "data_offsets": [1.5, 2]}, {**entries[0], "data_offsets": "ab"})
    ]
    texts = [b"[]", b"{", b"\xff", *(json.dumps(changed).encode() for changed in (overlapping, *odd))]
    for length, text in [(1 << 62, b"{}"), *((len(text), text) for text in texts)]:
        shutil.rmtree(tmp_path / "step-1", ignore_errors=True)
        shutil.copytree(path, tmp_path / "step-1")
        damaged = (length.to_bytes(8, "little") + text + content)[: len(content)]
        (tmp_path / "step-1" / "model.safetensors").write_bytes(damaged)
        with pytest.raises(NotVerified, match=r"model\.safetensors is not as it was written"):
            load_verified(tmp_path / "step-1", *other_than(model))


def test_a_flipped_bit_and_a_cut_in_any_file_are_found_while_loading(
    made: tuple[Path, Aquila2ForCausalLM], tmp_path: Path
) -> None:
    path, model = made
    loaded = other_than(model)
    names = sorted(file.name for file in path.iterdir())
    assert {"model.safetensors", MOMENTS, "rng.safetensors", "state.json", "config.json", MANIFEST} < set(names)
    for name in names:
        content = (path / name).read_bytes()
        place = 2 * len(content) // 3
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        for damaged in (flipped, content[:place], b""):
            shutil.rmtree(tmp_path / "step-1", ignore_errors=True)
            shutil.copytree(path, tmp_path / "step-1")
            (tmp_path / "step-1" / name).write_bytes(damaged)
            with pytest.raises(NotVerified, match=name):
                load_verified(tmp_path / "step-1", *loaded)
