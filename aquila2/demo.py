"""The demonstration: a tokenizer and a small bilingual Aquila2 trained on real text of this machine, put to use."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from aquila2.cli import COMMAND, RECIPES, train_and_report
from aquila2.device import usable_device
from aquila2.generate import generate
from aquila2.kernel_report import kernel_report
from aquila2.sampling import Sampling
from aquila2.training.lock import LOCK, only_run_in
from aquila2.training.options import load_options
from aquila2.training.trainer import Result

MARK = "demo"  # the file that tells a demo's folder
PROMPTS = {
    "code": "def __init__(self, ",
    "English": "The following example shows how to ",
    "Chinese": "无法打开文件",
}


def run_demo(data: str | None, folder: Path, overrides: Sequence[str] = ()) -> int | None:
    """Trains as the demo recipe says, on `data` if given, generates, and compares kernels with torch's.

    An earlier demo in `folder` is replaced; another run there is left alone.

    Returns:
        What stopped training (see `aquila2.training.trainer.Result`), None if it ran to its end.

    Raises:
        ValueError: `folder` holds something that is not a demo.
    """
    started = time.perf_counter()
    changes = [f"run.folder={folder}"]
    if data is not None:
        source = {"name": "yours", "path": data, "weight": 1.0}
        changes.append(f"data.sources={yaml.safe_dump([source], default_flow_style=True, width=2**20).strip()}")
    options = load_options(RECIPES / "demo.yaml", [*changes, *overrides])
    usable_device(options.train.device, "train.device")
    _claim(folder)

    print("1. Tokenizer and training, on", ", ".join(source.name for source in options.data.sources), flush=True)
    result = train_and_report(options)
    _print_size(result)
    if result.stopped_by is not None:
        return result.stopped_by
    print("\n2. Generation (temperature 0.7, top-p 0.9, seed 0)", flush=True)
    _print_texts(result)
    print(f"\n3. Kernels against torch's, {torch.get_num_threads()} threads, medians of one run", flush=True)
    for line in kernel_report():
        print(f"   {line}", flush=True)
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s. More text from the model: {COMMAND} generate {folder} 'def '"
    )
    return None


def _claim(folder: Path) -> None:
    """Makes the folder that of a new demo, and empties it where it is an earlier one's.

    The folder and its lock stay: a run that waits to lock the file would else hold one that nobody sees.
    """
    _refuse_other_folders(folder)
    with only_run_in(folder):
        _refuse_other_folders(folder)  # somebody may have filled it before it was locked
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (LOCK, MARK):
                path.unlink()
        (folder / MARK).touch()


def _refuse_other_folders(folder: Path) -> None:
    holds = {path.name for path in folder.iterdir()} - {LOCK} if folder.exists() else set()
    if holds and not (folder / MARK).is_file():
        raise ValueError(f"--folder must be new, empty or an earlier demo, and {folder} is none of them")


def _print_size(result: Result) -> None:
    config, progress = result.model.config, result.progress
    print(
        f"model        {config.num_parameters / 1e6:.1f} M parameters, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} query and {config.num_key_value_heads} key/value heads, "
        f"vocabulary {len(result.tokenizer)}; {progress.tokens:,} tokens in {progress.step} steps"
    )


def _print_texts(result: Result) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=0)
    written = generate(
        result.model.eval(), result.tokenizer, list(PROMPTS.values()), max_new_tokens=60, sampling=sampling
    )
    for (kind, prompt), generation in zip(PROMPTS.items(), written, strict=True):
        text = f"{prompt}[{generation.text}]".replace("\n", "\n   | ")
        print(f"   {kind}:\n   | {text}", flush=True)
