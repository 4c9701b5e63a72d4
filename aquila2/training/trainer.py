"""Starting a run: the folder is claimed, data and model are made ready on all ranks, and the loop begins."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from aquila2.device import usable_device
from aquila2.heurimentor.engine.placement import place
from aquila2.heurimentor.engine.world import ranks_of
from aquila2.heurimentor.probes.prompts import questions
from aquila2.heurimentor.probes.tasks import read_tasks
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import list_checkpoints
from aquila2.training.data import look_at_sources, prepare
from aquila2.training.lock import only_run_in
from aquila2.training.loop import ASKED, Loop, Result
from aquila2.training.memory import keep_freed_memory
from aquila2.training.option_rules import doubts
from aquila2.training.options import Options
from aquila2.training.setup import claim, heal_tokenizer, honour_stop, mend_data, tokenizer_for

__all__ = ["ASKED", "Loop", "Result", "train"]


def train(options: Options) -> Result:
    """Runs or continues a training run as `options` say, on one process or on the ranks that torchrun has started.

    A folder with a checkpoint is continued: the ledger tells what comes next, optimizer and random state are restored,
    so that all losses equal those of a run that was never interrupted. Ctrl-C and SIGTERM save a checkpoint after the
    current step. A folder without a checkpoint may be given other options; then the run starts with them.

    Raises:
        ValueError: The folder has checkpoints of a run with other options, or none of them is whole, or another
            run is at work in it, or train.device is not on this machine, or the ledger was changed.
        FloatingPointError: A loss or gradient is not finite; that step is neither applied nor saved.
        OtherRankFailed: Any of these, on another rank than the first.
    """
    keep_freed_memory()
    folder = Path(options.run.folder)
    with ExitStack() as stack:

        def make_ready() -> None:
            usable_device(options.train.device, "train.device")
            for task in read_tasks(options.probe.tasks):
                questions(task, options.probe.limit)
            if not (folder / "data" / "prepared.json").is_file():
                look_at_sources(options.data)
            stack.enter_context(only_run_in(folder))
            honour_stop(folder)
            for sentence in doubts(options):
                print(sentence, file=sys.stderr, flush=True)
            claim(folder, options)
            heal_tokenizer(folder)
            tokenizer = tokenizer_for(options, folder / "tokenizer")
            prepare(options.data, tokenizer, folder / "data")
            mend_data(folder, options, tokenizer)

        ranks = ranks_of(options.train.device, make_ready, options.run.timeout_minutes)
        world, name = stack.enter_context(ranks)
        device = usable_device(name, "train.device")
        torch.manual_seed(options.train.seed)
        tokenizer = Aquila2Tokenizer.from_pretrained(folder / "tokenizer")
        config = options.model_config(
            len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        )
        fresh = world.tell(lambda: not list_checkpoints(folder / "checkpoints"))
        model, placement = place(config, options.parallel, world, device, options.train.precision == "bf16", fresh)
        model.train().set_activation_checkpointing(options.train.activation_checkpointing)
        return Loop(options, model, tokenizer, device, world, placement).run()
