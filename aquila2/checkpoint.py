"""Loading and saving Aquila2 in the Hugging Face layout: config.json beside safetensors or older .bin shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aquila2.atomic import fsync_path, path_beside, settle
from aquila2.config import Aquila2Config, read_json
from aquila2.model import Aquila2ForCausalLM, MlpFactory, SwiGLU

CONFIG_FILE = "config.json"
SAFETENSORS_FILE, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN_FILE, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARD_PATTERN = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|pytorch_model-\d{5}-of-\d{5}\.bin")

ZIP_MAGIC = b"PK\3\4"  # torch.save before torch 1.6 wrote no zip; such files load too, but cannot be memory-mapped

# The first generation's shards carry a table that follows from the configuration.
DERIVED_TENSORS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def from_pretrained(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Aquila2Config | None = None,
    mlp: MlpFactory = SwiGLU,
) -> Aquila2ForCausalLM:
    """Loads a model from a folder in the Hugging Face layout.

    The model is built without memory and takes over the tensors of the files, which are memory-mapped: loading costs no
    second copy of the weights, and on the CPU in the stored dtype none at all until they are read.

    Args:
        path: Folder with `config.json` and `model.safetensors`, `pytorch_model.bin` or shards with their index.
        dtype: Convert to this dtype; None keeps what the files hold.
        device: Where the weights go.
        config: Overrides the folder's `config.json`.
        mlp: Makes the feed-forward branches (see `Aquila2ForCausalLM`).

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: The folder has no config or weights, or an index names a shard that is not there.
        ValueError: Duplicate JSON keys, missing or unexpected tensors (all named), or tensors of a wrong shape.
    """
    folder = Path(path)
    if config is None:
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}")
        config = Aquila2Config.from_json(folder / CONFIG_FILE)
    with torch.device("meta"):
        model = Aquila2ForCausalLM(config, mlp)
    tensors = {name: tensor.to(device, dtype) for name, tensor in iterate_tensors(folder)}
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    check_tensors(model, tensors, str(folder))
    model.load_state_dict(tensors, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def iterate_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of a folder's weight files, memory-mapped; tables that follow from the config are left out.

    Raises:
        FileNotFoundError: There are no weight files, or one that an index names is missing.
        ValueError: An index or a file names a tensor that the other does not.
    """
    for file, expected in _weight_files(folder):
        found = set()
        for name, tensor in _read_file(file):
            found.add(name)
            if not DERIVED_TENSORS.fullmatch(name):
                yield name, tensor
        if expected is not None and found != expected:
            raise ValueError(
                f"{file} does not hold what the index says: missing {_listed(expected - found)}, "
                f"unexpected {_listed(found - expected)}"
            )


def check_tensors(model: Aquila2ForCausalLM, tensors: Mapping[str, Tensor], source: str) -> None:
    """Compares names and shapes with what the model needs.

    Raises:
        ValueError: Names all missing and unexpected tensors, or the first tensor of a wrong shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unexpected = set(wanted) - set(tensors), set(tensors) - set(wanted)
    if missing or unexpected:
        raise ValueError(
            f"{source} does not match the model: missing {_listed(missing)}, unexpected {_listed(unexpected)}"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{source}: {name} must have the shape {shape}, got {tuple(tensors[name].shape)}")


def save_pretrained(
    model: Aquila2ForCausalLM,
    path: Path | str,
    *,
    max_shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None,
) -> None:
    """Saves a model as `config.json` and safetensors, in a form that `from_pretrained` and transformers read.

    A folder never holds a mixture of two models. All files are first written under hidden names and synced: a save
    that ends there has changed nothing. Then the old model goes, config and indexes first, and the new files get their
    names, config last. A save that ends within these few renames leaves a folder without config, which loaders refuse,
    and the new model under the hidden names.

    Args:
        model: The model.
        path: Folder, made if needed.
        max_shard_bytes: Weights beyond this size are split into several files with an index.
        dtype: Convert floating-point weights to this dtype.
    """
    tensors = weights_of(model)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_weights(tensors, model.config, path, max_shard_bytes)


def weights_of(model: Aquila2ForCausalLM) -> dict[str, Tensor]:
    """The tensors that stand for a model in files, by their names there; they share its memory."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def save_weights(
    tensors: Mapping[str, Tensor], config: Aquila2Config, path: Path | str, max_shard_bytes: int = 5_000_000_000
) -> None:
    """What `save_pretrained` does, for the tensors of `weights_of` or copies of them."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    stored = next(iter(tensors.values())).dtype
    config = config.replace(dtype=str(stored).removeprefix("torch."))

    shards = _split(tensors, max_shard_bytes)
    names = [SAFETENSORS_FILE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    held = dict(zip(names, shards, strict=True))
    documents = {CONFIG_FILE: config.to_hf()}
    if len(shards) > 1:
        weight_map = {key: name for name, shard in held.items() for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        documents = {SAFETENSORS_INDEX: index, **documents}

    beside = {name: path_beside(folder / name) for name in (*held, *documents)}
    try:
        for name, shard in held.items():
            save_file({key: tensor.contiguous() for key, tensor in shard.items()}, beside[name], {"format": "pt"})
            settle(beside[name])
        for name, document in documents.items():
            beside[name].write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            settle(beside[name])
    except BaseException:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)
        raise
    _remove_model(folder)
    for name, temporary in beside.items():
        if name == CONFIG_FILE:
            fsync_path(folder)  # the config is there only if everything else is
        os.replace(temporary, folder / name)
    fsync_path(folder)


def _remove_model(folder: Path) -> None:
    """Removes config and indexes, then the weights that they belong to."""
    for name in (CONFIG_FILE, SAFETENSORS_INDEX, BIN_INDEX):
        (folder / name).unlink(missing_ok=True)
    fsync_path(folder)
    for entry in os.listdir(folder):
        if entry in (SAFETENSORS_FILE, BIN_FILE) or SHARD_PATTERN.fullmatch(entry):
            (folder / entry).unlink()
    fsync_path(folder)


def _weight_files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """The files to read and, where an index says it, the names that each must hold."""
    for index_name in (SAFETENSORS_INDEX, BIN_INDEX):
        if (folder / index_name).is_file():
            names_of: dict[str, set[str]] = {}
            for tensor_name, file_name in read_json(folder / index_name)["weight_map"].items():
                names_of.setdefault(file_name, set()).add(tensor_name)
            absent = sorted(name for name in names_of if not (folder / name).is_file())
            if absent:
                raise FileNotFoundError(f"{folder / index_name} names files that are not there: {', '.join(absent)}")
            return [(folder / name, names) for name, names in sorted(names_of.items())]
    for file_name in (SAFETENSORS_FILE, BIN_FILE):
        if (folder / file_name).is_file():
            return [(folder / file_name, None)]
    raise FileNotFoundError(f"{folder} has no {SAFETENSORS_FILE}, {BIN_FILE} or index of shards")


def _read_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is not iterable
                yield name, opened.get_tensor(name)
    else:
        with file.open("rb") as opened_file:
            mappable = opened_file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        yield from torch.load(file, map_location="cpu", mmap=mappable, weights_only=True).items()


def _split(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
