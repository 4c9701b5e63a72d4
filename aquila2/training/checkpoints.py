"""Checkpoints of a run: written beside, synced, hashed and renamed; the newest whose hashes agree is loaded.

A run goes on from a whole checkpoint or not at all: what is newer and faulty is set aside before anything is written,
so that it neither counts among the checkpoints that are kept nor is taken for progress.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from aquila2.atomic import atomic_path, atomic_write
from aquila2.checkpoint import save_weights, weights_of
from aquila2.config import Aquila2Config, read_json
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
MOMENTS, RANDOM = "optimizer.safetensors", "rng.safetensors"
FAULTY, UNDONE = ".faulty", ".undone"
NEEDED = ("step", "samples", "tokens", "heldout_before")  # of a checkpoint's state, to go on from it


class Contents(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: After which it is made; names the folder.
        config: The model's,
        weights: its tensors by their names in files,
        moments: and the optimizer's as `parameter/key`, of those parameters that it has stepped.
        random: The state of torch's generator.
        state: The rest, JSON text.
        head: Where the ledger stands.
        heldout: The ids of the held-out segments, by the names of their sources.
    """

    step: int
    config: Aquila2Config
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    random: Tensor
    state: str
    head: Head | None = None
    heldout: Mapping[str, str] = MappingProxyType({})


def contents_of(
    model: Aquila2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    head: Head | None = None,
    heldout: Mapping[str, str] | None = None,
) -> Contents:
    """What a checkpoint of this moment holds; its weights and moments are those in use, and change with them.

    Args:
        model: The model,
        optimizer: and its optimizer.
        state: JSON values; "step" names the folder.
        head: See `Contents`.
        heldout: See `Contents`.
    """
    moments = {
        f"{name}/{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    text = json.dumps(finite(state), indent=2, allow_nan=False) + "\n"
    random = torch.get_rng_state()
    return Contents(state["step"], model.config, weights_of(model), moments, random, text, head, dict(heldout or {}))


def save_checkpoint(
    folder: Path, contents: Contents, tokenizer: Aquila2Tokenizer, keep: int, options: Options | None = None
) -> Path:
    """Writes `folder/step-N`, and removes older ones until `keep` are left.

    The one just written always stays, and so does what has a later step: nobody has looked whether that is whole.
    A checkpoint is also a model folder: `from_pretrained` and `Aquila2Tokenizer.from_pretrained` read it. The manifest
    with the SHA-256 of every file, and with the ledger's head, is written last, then the folder gets its name, so a
    folder with that name is whole. `options.yaml` in it is the run's configuration, which `aquila2 train` takes.

    Args:
        folder: The run's checkpoints.
        contents: What is saved.
        tokenizer: Its files are saved too.
        keep: How many stay.
        options: The run's.

    Raises:
        ValueError: keep is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    target = checkpoint_path(folder, contents.step)
    facts: dict[str, Any] = {"ledger": contents.head.facts()} if contents.head else {}
    with verified_folder(target, {**facts, "heldout": dict(contents.heldout)}) as temporary:
        save_weights(contents.weights, contents.config, temporary)
        tokenizer.save_pretrained(temporary)
        for name, tensors in (
            (MOMENTS, {key: value.contiguous() for key, value in contents.moments.items()}),
            (RANDOM, {"torch": contents.random}),
        ):
            with atomic_path(temporary / name) as path:
                save_file(tensors, path)
        if options is not None:
            atomic_write(temporary / OPTIONS, dump_options(options))
        atomic_write(temporary / "state.json", contents.state)
    keep_newest(target, PREFIX, keep)
    return target


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands in the folder of a run's checkpoints."""
    return folder / f"{PREFIX}{step:08d}"


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
    folder: Path,
    report: Callable[[str], None],
    objection: Callable[[Head], str | None] | None = None,
    fault: Callable[[Path], str | None] | None = None,
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
        reason = objected or (fault or checkpoint_fault)(path)
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


def checkpoint_fault(path: Path, read: Callable[[Path], object] = verify) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is; `read` raises it."""
    try:
        read(path)
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
