"""Checkpoints of a run: written beside, synced, hashed and renamed; the newest whose hashes agree is loaded.

A run goes on from a whole checkpoint or not at all: what is faulty is set aside before anything is written, so that it
neither counts among the checkpoints that are kept nor is taken for progress.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aquila2.atomic import atomic_path, atomic_write, fsync_path, sha256_of
from aquila2.checkpoint import iterate_tensors, save_pretrained
from aquila2.config import read_json
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer

STEP_FOLDER = re.compile(r"step-(\d{8})")
FAULTY = ".faulty"
MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path,
    model: Aquila2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokenizer: Aquila2Tokenizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Writes `folder/step-N`, N from state["step"], and removes older ones until `keep` are left.

    The one just written always stays, and so does what has a later step: nobody has looked whether that is whole.
    A checkpoint is also a model folder: `from_pretrained` and `Aquila2Tokenizer.from_pretrained` read it. The manifest
    with the SHA-256 of every file is written last, then the folder gets its name, so a folder with that name is whole.

    Raises:
        ValueError: keep is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    target = folder / f"step-{state['step']:08d}"
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_pretrained(model, temporary)
    tokenizer.save_pretrained(temporary)
    for name, tensors in (
        ("optimizer.safetensors", _optimizer_tensors(model, optimizer)),
        ("rng.safetensors", {"torch": torch.get_rng_state()}),
    ):
        with atomic_path(temporary / name) as path:
            save_file(tensors, path)
    atomic_write(temporary / "state.json", json.dumps(state, indent=2) + "\n")
    hashes = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
    atomic_write(temporary / MANIFEST, json.dumps(hashes, indent=2) + "\n")
    fsync_path(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    fsync_path(folder)
    older = [path for path in list_checkpoints(folder) if path < target]
    for old in older[keep - 1 :]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    found = [path for path in folder.glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, reverse=True)


def newest_valid(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files agree with their hashes; tells `report` what is skipped and why."""
    for path in list_checkpoints(folder):
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        report(f"skipping {path}: {fault}")
    return None


def checkpoint_to_continue(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint; None where the run has none at all.

    Faulty ones are renamed to `step-N.faulty`, with a sentence to `report` for each, unless no other is left.

    Raises:
        ValueError: There are checkpoints and none is whole.
    """
    faults = {path: checkpoint_fault(path) for path in list_checkpoints(folder)}
    whole = [path for path, fault in faults.items() if fault is None]
    aside = [path for path in folder.glob(f"step-*{FAULTY}") if STEP_FOLDER.fullmatch(path.stem)]
    if not whole and (faults or aside):
        reasons = [f"{path.name}: {fault}" for path, fault in faults.items()] + [path.name for path in sorted(aside)]
        raise ValueError(
            f"{folder} holds no whole checkpoint among {len(reasons)} ({'; '.join(reasons)}); restore one, or start "
            "again from step 0 by removing the run's folder or giving another run.folder"
        )
    for path, fault in faults.items():
        if fault is not None:
            set_aside = path.with_suffix(FAULTY)
            shutil.rmtree(set_aside, ignore_errors=True)
            path.rename(set_aside)
            report(f"{path} is set aside as {set_aside.name}: {fault}")
    return whole[0] if whole else None


def checkpoint_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is."""
    try:
        hashes: dict[str, str] = read_json(path / MANIFEST)
        for name, expected in hashes.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256_of(path / name) != expected:
                return f"{name} does not have the hash in its manifest"
    except (OSError, ValueError, AttributeError) as error:
        return f"its manifest cannot be read ({error})"
    return None


def load_checkpoint(path: Path, model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads weights, optimizer and random state in place, and returns the rest of the state.

    Everything is copied into memory of torch's own alignment, since products of matrices may round differently on
    memory-mapped weights, and a continued run is to give the same bits.
    """
    tensors = dict(iterate_tensors(path))
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    stored = load_file(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        entries = {key: stored[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {
            "step": entries["step"].to(parameter.device, copy=True),
            "exp_avg": torch.empty_like(parameter).copy_(entries["exp_avg"]),
            "exp_avg_sq": torch.empty_like(parameter).copy_(entries["exp_avg_sq"]),
        }
    torch.set_rng_state(load_file(path / "rng.safetensors")["torch"])
    state: dict[str, Any] = read_json(path / "state.json")
    return state


def _optimizer_tensors(model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensors[f"{name}/{key}"] = optimizer.state[parameter][key].contiguous()
    return tensors
