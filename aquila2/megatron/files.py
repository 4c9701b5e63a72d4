"""The files of a Megatron checkpoint: where they are, and what they hold, without running anything of theirs."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

LATEST_FILE = "latest_checkpointed_iteration.txt"
PART_FILES = ("model_optim_rng.pt", "model_rng.pt")  # the second beside a distributed optimizer, in older versions
PART_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?")
CHUNK = re.compile(r"model(\d*)")  # model, or model0, model1, ... of a virtual pipeline

# Packages whose objects Megatron keeps beside the weights: random states, enumerations, states of fp8.
UNUSED = ("numpy", "megatron", "flagscale", "transformer_engine", "signal", "_io")


class Unused:
    """Stands in for an object that the weights do not need: whatever the file says of it, it is nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class Part:
    """What one rank of Megatron's saved.

    Attributes:
        file: Where it stands.
        chunks: Flat names and tensors of the model, once for each virtual stage.
        version: The checkpoint's, which fixes the order of queries, keys and values; 0 where the file has none.
        arguments: Those that the run had, as far as the file tells.
    """

    file: Path
    chunks: list[dict[str, Tensor]]
    version: float
    arguments: Mapping[str, Any]


def find_parts(folder: Path) -> list[list[Path]]:
    """The files of a checkpoint, by pipeline stage and tensor-parallel rank.

    Args:
        folder: One with `mp_rank_TT` or `mp_rank_TT_PPP` in it, or one above them that has
            `latest_checkpointed_iteration.txt`.

    Raises:
        FileNotFoundError: There is none, or some of a full grid are missing.
        ValueError: The file that tells the newest iteration does not, or a folder's name has another form.
    """
    place = _iteration(folder)
    found: dict[tuple[int, int], Path] = {}
    for entry in sorted(place.glob("mp_rank_*")):
        match = PART_FOLDER.fullmatch(entry.name)
        if match is None:
            raise ValueError(f"{entry} must be named mp_rank_TT or mp_rank_TT_PPP; experts are not imported")
        file = next((entry / name for name in PART_FILES if (entry / name).is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{entry} has no {' or '.join(PART_FILES)}")
        key = (int(match[2] or 0), int(match[1]))
        if key in found:
            raise ValueError(f"{entry} and {found[key].parent} are the same stage and rank")
        found[key] = file
    if not found:
        raise FileNotFoundError(f"{place} has no mp_rank_* folders")
    stages, ranks = (max(key[axis] for key in found) + 1 for axis in (0, 1))
    absent = [(s, r) for s in range(stages) for r in range(ranks) if (s, r) not in found]
    if absent:
        listed = ", ".join(f"stage {stage} rank {rank}" for stage, rank in absent)
        raise FileNotFoundError(f"{place} has parts of {stages} stages and {ranks} ranks, and lacks {listed}")
    return [[found[stage, rank] for rank in range(ranks)] for stage in range(stages)]


def _iteration(folder: Path) -> Path:
    """The folder itself, or that of the newest iteration in it."""
    latest = folder / LATEST_FILE
    if not latest.is_file():
        return folder
    text = latest.read_text(encoding="utf-8").strip()
    if text != "release" and not text.isdecimal():
        raise ValueError(f"{latest} must hold the number of an iteration or the word release, got {text!r:.60}")
    return folder / (text if text == "release" else f"iter_{int(text):07d}")


def read_part(file: Path) -> Part:
    """Reads what one rank saved; its tensors are memory-mapped where the file allows it.

    Nothing of the file is run. Of other objects only `argparse.Namespace` is made; those of packages that Megatron
    keeps beside the weights become an `Unused`.

    Raises:
        ValueError: The file is damaged, names other objects, or holds no model.
    """
    zipped = zipfile.is_zipfile(file)
    try:
        named = set(get_unsafe_globals_in_checkpoint(str(file))) if zipped else set()
        unused = [(Unused, name) for name in sorted(named) if name.split(".")[0] in UNUSED]
        with safe_globals([argparse.Namespace, *unused]):
            content = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        culprit = match[1] if match else " ".join(str(error).split())
        raise ValueError(f"{file} may hold tensors, plain values and argparse.Namespace only, got {culprit}") from None
    except Exception as error:  # the instructions of a damaged pickle fail in all ways that there are
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    chunks = _chunks(content) if isinstance(content, dict) else []
    if not chunks:
        raise ValueError(f"{file} has no model in it")
    arguments = content.get("args")
    version = content.get("checkpoint_version") or 0
    if not isinstance(version, (int, float)):
        raise ValueError(f"{file} must have a number as checkpoint_version, got {version!r:.60}")
    return Part(file, chunks, float(version), vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def _chunks(content: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    matches = [match for key in content if isinstance(key, str) and (match := CHUNK.fullmatch(key))]
    ordered = sorted(matches, key=lambda match: int(match[1] or 0))
    return [_flat(content[match[0]]) for match in ordered if isinstance(content[match[0]], dict)]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """All tensors of nested dictionaries, by their keys joined with dots."""
    found: dict[str, Tensor] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
    return found
