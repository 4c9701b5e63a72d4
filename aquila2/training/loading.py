"""Loading a checkpoint: its files are verified while they are read into weights and moments, in one pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from aquila2.checkpoint import check_tensors, iterate_tensors
from aquila2.heurimentor.hashing import Place
from aquila2.heurimentor.verified import verify
from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.values import fill
from aquila2.training.checkpoints import MOMENTS, NEEDED, RANDOM, state_of

MOMENT_KEYS = ("step", "exp_avg", "exp_avg_sq")
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def load_verified(path: Path, model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Does what `load_checkpoint` does, and verifies all files of the checkpoint on the way.

    Tensors that this process has whole in the host's memory are read where they belong and hashed there; of the
    others the files are hashed first. Where this raises, weights may be anything.

    Raises:
        NotVerified: Names the first file that is not as it was written.
        ValueError: See `load_checkpoint`.
    """
    moments = _new_moments(model, optimizer)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    shards = [file.name for file in path.glob("model*.safetensors")]
    wanted = {**dict.fromkeys(shards, weights), MOMENTS: moments}
    places = {file: places_in(path / file, tensors) for file, tensors in wanted.items()}
    verify(path, places={file: list(found.values()) for file, found in places.items()})
    return _load(path, model, optimizer, moments, {name for found in places.values() for name in found})


def load_checkpoint(path: Path, model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads weights, optimizer and random state in place, and returns the rest of the state.

    A rank that has parts of the tensors takes these: a run goes on however its model is divided, or whole.
    Everything is copied into memory of torch's own alignment, since products of matrices may round differently on
    memory-mapped weights, and a continued run is to give the same bits.

    Raises:
        ValueError: A trainer has written it that kept less than a run needs to go on.
    """
    return _load(path, model, optimizer, _new_moments(model, optimizer), set())


def places_in(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Where a safetensors file has the values of tensors, and their memory, in the order of the file.

    Left out are those that it has in another form, or that are not whole and in one piece in the host's memory. A file
    that cannot be read has none: whoever verifies it says why.
    """
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            entries = json.loads(opened.read(min(size, file.stat().st_size)))
        found = {
            name: Place(8 + size + entries[name]["data_offsets"][0], memory)
            for name, tensor in tensors.items()
            if (memory := _memory_of(tensor)) is not None and _is_in_this_form(entries.get(name), tensor)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
    ordered = dict(sorted(found.items(), key=lambda item: item[1].start))
    ends = [8 + size, *(place.start + len(place.memory) for place in ordered.values())]
    apart = all(end <= place.start for end, place in zip(ends, ordered.values(), strict=False))
    return ordered if apart else {}


def _is_in_this_form(entry: Any, tensor: Tensor) -> bool:
    """Whether what a header says of a tensor is this one's type and size."""
    if entry is None or entry["dtype"] != DTYPES.get(tensor.dtype) or entry["shape"] != list(tensor.shape):
        return False
    begin, end = entry["data_offsets"]
    return isinstance(begin, int) and bool(end - begin == tensor.nbytes)


def _memory_of(tensor: Tensor) -> memoryview | None:
    if type(tensor.data) is not Tensor or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return tensor.data.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else None


def _new_moments(model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Memory for the moments of all parameters, in the place of that of the old ones; named as in checkpoints."""
    optimizer.state.clear()
    moments = {}
    for name, parameter in model.named_parameters():
        moments[f"{name}/step"] = torch.empty((), device=parameter.device)
        for key in ("exp_avg", "exp_avg_sq"):
            moments[f"{name}/{key}"] = torch.empty_like(parameter, requires_grad=False)
    return moments


def _load(
    path: Path,
    model: Aquila2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    moments: dict[str, Tensor],
    there: set[str],
) -> dict[str, Any]:
    """Fills weights and moments but those that are there, sets the random state and returns the rest."""
    state = state_of(path)
    missing = [name for name in NEEDED if name not in state]
    if missing or not all(isinstance(values, list) for values in state["heldout_before"].values()):
        raise ValueError(
            f"{path} is of an older trainer, whose state.json keeps no {', '.join(missing) or 'intervals of losses'}; "
            "go on with that one, or begin another run.folder"
        )
    tensors = dict(iterate_tensors(path))
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    with torch.device("meta"):
        check_tensors(Aquila2ForCausalLM(model.config), tensors, str(path))  # of which this rank may have some layers
    stored = load_file(path / MOMENTS)
    for name, parameter in model.named_parameters():
        if name not in there:
            fill(parameter, tensors[name])
        if f"{name}/step" not in stored:  # saved before the first step
            continue
        for key in MOMENT_KEYS:
            if f"{name}/{key}" not in there:
                fill(moments[f"{name}/{key}"], stored[f"{name}/{key}"])
        optimizer.state[parameter] = {key: moments[f"{name}/{key}"] for key in MOMENT_KEYS}
    torch.set_rng_state(load_file(path / RANDOM)["torch"])
    return state
