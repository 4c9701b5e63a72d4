"""Runs of the trainer that are measured: on the package's own sources, without TensorBoard and progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aquila2.training.options import Options, parse_options


def options_for(
    folder: Path, *, preset: str, tokenizer: dict[str, int], seqlen: int, rows: int, steps: int, **run: Any
) -> Options:
    """Options of a run.

    Args:
        folder: The run's.
        preset: Names the model.
        tokenizer: Options of the section `tokenizer`.
        seqlen: Tokens of a row.
        rows: Of a step, all at once.
        steps: How many there are.
        run: More options of the section `run`.
    """
    sources = [{"name": "code", "path": "builtin:python-code"}, {"name": "english", "path": "builtin:english"}]
    return parse_options(
        {
            "model": {"preset": preset},
            "tokenizer": tokenizer,
            "data": {"sources": sources, "seq_len": seqlen, "heldout_rows": 1},
            "batch": {"micro": rows, "size": rows},
            "train": {"samples": rows * steps},
            "run": {"folder": str(folder), "tensorboard": False, "progress": False, **run},
        }
    )
