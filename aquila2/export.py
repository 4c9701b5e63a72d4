"""The command `aquila2 export`: the model of a run as a folder of its own, without what only training needs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from aquila2.checkpoint import from_pretrained, save_pretrained
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import checkpoint_fault, checkpoint_path, newest_valid

DTYPES = ("float32", "bfloat16", "float16")


def add_export(commands: Any) -> None:
    """Adds `export` to the parser's commands."""
    command = commands.add_parser("export", help="write the model of a run in the Hugging Face layout, verified before")
    command.add_argument("run_folder", metavar="RUN", help="folder of a training run")
    command.add_argument("out", help="folder for model and tokenizer")
    command.add_argument("--step", type=int, default=None, help="of the checkpoint; by default the newest whole one")
    command.add_argument("--dtype", choices=DTYPES, default=None, help="by default that of the checkpoint")
    command.set_defaults(run=_export)


def export(run: Path | str, out: Path | str, *, step: int | None = None, dtype: torch.dtype | None = None) -> Path:
    """Writes model and tokenizer of a checkpoint whose files agree with their hashes; returns that checkpoint.

    Args:
        run: The run's folder.
        out: A folder outside of it, made where it is missing. A model that it holds is replaced.
        step: Of the checkpoint; None takes the newest that is whole.
        dtype: Of the weights; None keeps that of the checkpoint.

    Raises:
        FileNotFoundError: There is no such checkpoint, or none is whole.
        ValueError: The checkpoint is not whole, or `out` lies in the run's folder.
    """
    folder = Path(run)
    if Path(out).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"out must lie outside of the run's folder {folder}, got {out}")
    checkpoint = _checkpoint(folder / "checkpoints", step)
    model, tokenizer = from_pretrained(checkpoint, dtype=dtype), Aquila2Tokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(out)
    save_pretrained(model, out)
    return checkpoint


def _checkpoint(folder: Path, step: int | None) -> Path:
    if step is None:
        newest = newest_valid(folder, lambda sentence: print(sentence, file=sys.stderr))
        if newest is None:
            raise FileNotFoundError(f"{folder.parent} is no run with a whole checkpoint")
        return newest
    checkpoint = checkpoint_path(folder, step)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{folder.parent} has no checkpoint of step {step}")
    fault = checkpoint_fault(checkpoint)
    if fault is not None:
        raise ValueError(f"{checkpoint} is not whole: {fault}")
    return checkpoint


def _export(parsed: argparse.Namespace) -> int:
    dtype = getattr(torch, parsed.dtype) if parsed.dtype else None
    checkpoint = export(parsed.run_folder, parsed.out, step=parsed.step, dtype=dtype)
    print(f"{parsed.out} has the model of {checkpoint}")
    return 0
