"""A run's folder before the first step: whose it is, its options, its tokenizer."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from aquila2.atomic import atomic_write
from aquila2.heurimentor.ledger.book import NAME
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.data import source_documents
from aquila2.training.options import Options, changed_options, dump_options, load_options


def claim(folder: Path, options: Options) -> None:
    """Stores the options of a new run, and refuses to continue a run with other ones.

    A run without a checkpoint has nothing to continue, as where its first command failed: it takes the new options.
    """
    stored = folder / "config.yaml"
    if stored.is_file() and any((folder / "checkpoints").glob("step-*")):
        changed = changed_options(load_options(stored), options)
        if changed:
            raise ValueError(
                f"run.folder {folder} holds a run with another {', '.join(changed)}; give another folder or its options"
            )
    elif stored.is_file():
        _take_new_options(folder, stored, options)
    atomic_write(stored, dump_options(options))


def _take_new_options(folder: Path, stored: Path, options: Options) -> None:
    """Says what changes, and makes the run make its tokenizer and data again."""
    try:
        changed = changed_options(load_options(stored), options)
    except ValueError:
        changed = ["configuration"]
    if changed:
        print(
            f"{folder} has no checkpoint yet, so its run starts with the new {', '.join(changed)}",
            file=sys.stderr,
            flush=True,
        )
        made = folder / "tokenizer"
        given = options.tokenizer.path
        if given is None or Path(given).resolve() != made.resolve():
            (made / "tokenizer.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "data", ignore_errors=True)
        for name in ("metrics.jsonl", NAME):
            (folder / name).unlink(missing_ok=True)


def tokenizer_for(options: Options, folder: Path) -> Aquila2Tokenizer:
    """The run's tokenizer: already made, named in the options, or trained on an equal sample of every source."""
    if (folder / "tokenizer.json").is_file():
        return Aquila2Tokenizer.from_pretrained(folder)
    if options.tokenizer.path is not None:
        tokenizer = Aquila2Tokenizer.from_pretrained(options.tokenizer.path)
    else:
        share = options.tokenizer.sample_bytes // len(options.data.sources)
        texts: list[str] = []
        for source in options.data.sources:
            taken = 0
            for document in source_documents(source):
                if taken >= share:
                    break
                texts.append(document.text)
                taken += len(document.text.encode())
        tokenizer = Aquila2Tokenizer.train(texts, options.tokenizer.vocab_size)
    tokenizer.save_pretrained(folder)
    return tokenizer
