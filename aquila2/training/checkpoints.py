"""Checkpoints of a run: written beside, synced, hashed and renamed; the newest whose hashes agree is loaded.

A run goes on from a whole checkpoint or not at all: what is newer and faulty is set aside before anything is written,
so that it neither counts among the checkpoints that are kept nor is taken for progress.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aquila2.atomic import atomic_path, atomic_write
from aquila2.checkpoint import iterate_tensors, save_pretrained
from aquila2.config import read_json
from aquila2.heurimentor.ledger.lineage import Head
from aquila2.heurimentor.verified import (
    NotVerified,
    keep_newest,
    numbered_folders,
    read_manifest,
    set_aside,
    verified_folder,
    verify,
)
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.finite import finite, numbers
from aquila2.training.options import Options, dump_options

PREFIX = "step-"
OPTIONS = "options.yaml"
FAULTY, UNDONE = ".faulty", ".undone"


def save_checkpoint(
    folder: Path,
    model: Aquila2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokenizer: Aquila2Tokenizer,
    state: dict[str, Any],
    keep: int,
    head: Head | None = None,
    options: Options | None = None,
    heldout: Mapping[str, str] | None = None,
) -> Path:
    """Writes `folder/step-N`, N from state["step"], and removes older ones until `keep` are left.

    The one just written always stays, and so does what has a later step: nobody has looked whether that is whole.
    A checkpoint is also a model folder: `from_pretrained` and `Aquila2Tokenizer.from_pretrained` read it. The manifest
    with the SHA-256 of every file, and with the ledger's `head`, is written last, then the folder gets its name, so a
    folder with that name is whole. `options.yaml` in it is the run's configuration, which `aquila2 train` takes.

    Args:
        folder: The run's checkpoints.
        model: Its weights are saved,
        optimizer: its moments, of those parameters that it has stepped,
        tokenizer: and its files.
        state: JSON values; "step" names the folder.
        keep: How many stay.
        head: Where the ledger stands.
        options: The run's.
        heldout: The ids of the held-out segments, by the names of their sources.

    Raises:
        ValueError: keep is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    target = folder / f"{PREFIX}{state['step']:08d}"
    facts: dict[str, Any] = {"ledger": head.facts()} if head else {}
    with verified_folder(target, {**facts, "heldout": dict(heldout or {})}) as temporary:
        save_pretrained(model, temporary)
        tokenizer.save_pretrained(temporary)
        for name, tensors in (
            ("optimizer.safetensors", _optimizer_tensors(model, optimizer)),
            ("rng.safetensors", {"torch": torch.get_rng_state()}),
        ):
            with atomic_path(temporary / name) as path:
                save_file(tensors, path)
        if options is not None:
            atomic_write(temporary / OPTIONS, dump_options(options))
        atomic_write(temporary / "state.json", json.dumps(finite(state), indent=2, allow_nan=False) + "\n")
    keep_newest(target, PREFIX, keep)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    return numbered_folders(folder, PREFIX)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_valid(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files agree with their hashes; tells `report` what is skipped and why."""
    for path in list_checkpoints(folder):
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        report(f"skipping {path}: {fault}")
    return None


def checkpoint_to_continue(
    folder: Path, report: Callable[[str], None], objection: Callable[[Head], str | None] | None = None
) -> Path | None:
    """The newest whole checkpoint; None where the run has none at all.

    Only what is newer than it is looked at, and read: what is older does not matter while this one is whole. Newer ones
    are faulty and renamed to `step-N.faulty`, with a sentence to `report` for each, unless no other is left. Those to
    which there is an objection, because the ledger says that their steps were undone, become `step-N.undone`.

    Raises:
        ValueError: There are checkpoints and none is whole.
    """
    wrong: dict[Path, tuple[str, str]] = {}
    chosen = None
    for path in list_checkpoints(folder):
        head = head_of(path)
        objected = objection(head) if objection and head else None
        reason = objected or checkpoint_fault(path)
        if reason is None:
            chosen = path
            break
        wrong[path] = (reason, UNDONE if objected else FAULTY)
    aside = [path for path in folder.glob(f"{PREFIX}*{FAULTY}") if path.stem.removeprefix(PREFIX).isdecimal()]
    if chosen is None and (wrong or aside):
        reasons = [f"{path.name}: {reason}" for path, (reason, _) in wrong.items()]
        reasons += [path.name for path in sorted(aside)]
        raise ValueError(
            f"{folder} holds no whole checkpoint among {len(reasons)} ({'; '.join(reasons)}); restore one, or start "
            "again from step 0 by removing the run's folder or giving another run.folder"
        )
    for path, (reason, ending) in wrong.items():
        report(f"{path} is set aside as {set_aside(path, ending).name}: {reason}")
    return chosen


def checkpoint_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is."""
    try:
        verify(path)
    except (NotVerified, OSError) as error:
        return str(error).removeprefix(f"{path}/")
    return None


def head_of(path: Path) -> Head | None:
    """Where the ledger stood when a checkpoint was made; None where its manifest does not tell."""
    try:
        return Head.of(read_manifest(path)["facts"]["ledger"])
    except (NotVerified, KeyError, TypeError, ValueError):
        return None


def state_of(path: Path) -> dict[str, Any]:
    """What a checkpoint keeps beside weights, optimizer and random state."""
    state: dict[str, Any] = numbers(read_json(path / "state.json"))
    return state


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
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"{name}/step" not in stored:  # saved before the first step
            continue
        entries = {key: stored[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {
            "step": entries["step"].to(parameter.device, copy=True),
            "exp_avg": torch.empty_like(parameter).copy_(entries["exp_avg"]),
            "exp_avg_sq": torch.empty_like(parameter).copy_(entries["exp_avg_sq"]),
        }
    torch.set_rng_state(load_file(path / "rng.safetensors")["torch"])
    return state_of(path)


def _optimizer_tensors(model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value.contiguous()
    return tensors
