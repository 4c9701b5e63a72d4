"""The training loop: accumulate, clip, step, log, save; stop and continue at any step with the same bits."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from aquila2.atomic import atomic_write
from aquila2.device import usable_device
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import checkpoint_to_continue, load_checkpoint, save_checkpoint
from aquila2.training.data import Batch, BatchStream, PackedStream, heldout_batches, prepare, source_documents
from aquila2.training.lock import only_run_in
from aquila2.training.memory import keep_freed_memory
from aquila2.training.metrics import MetricsLog, heldout_loss
from aquila2.training.optim import batch_size, learning_rate, make_adamw
from aquila2.training.options import Options, changed_options, dump_options, load_options
from aquila2.training.signals import StopRequest


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    heldout: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What `train` returns: the trained model, its tokenizer, held-out losses before and after, and why it ended."""

    model: Aquila2ForCausalLM
    tokenizer: Aquila2Tokenizer
    heldout_before: dict[str, float]
    heldout_after: dict[str, float]
    progress: Progress
    checkpoint: Path
    stopped_by: int | None


def train(options: Options) -> Result:
    """Runs or continues a training run as `options` say.

    A folder with a checkpoint is continued: data position, optimizer and random state are restored, so that all losses
    equal those of a run that was never interrupted. Ctrl-C and SIGTERM save a checkpoint after the current step.
    A folder without a checkpoint may be given other options; then the run starts with them.

    Raises:
        ValueError: The folder has checkpoints of a run with other options, or none of them is whole, or another
            run is at work in it, or train.device is not on this machine.
        FloatingPointError: A loss or gradient is not finite; that step is neither applied nor saved.
    """
    keep_freed_memory()
    folder = Path(options.run.folder)
    device = usable_device(options.train.device, "train.device")
    with only_run_in(folder):
        _claim(folder, options)
        torch.manual_seed(options.train.seed)
        tokenizer = _tokenizer_for(options, folder / "tokenizer")
        prepare(options.data, tokenizer, folder / "data")
        config = options.model_config(
            len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        )
        model = Aquila2ForCausalLM(config).to(device).train()
        model.set_activation_checkpointing(options.train.activation_checkpointing)
        stream = PackedStream(folder / "data", options.data, options.train.seed)
        return Loop(options, model, tokenizer, stream, device).run()


class Loop:
    """One run: a model, a stream of batches, and what is written about them."""

    def __init__(
        self,
        options: Options,
        model: Aquila2ForCausalLM,
        tokenizer: Aquila2Tokenizer,
        stream: BatchStream,
        device: torch.device,
    ) -> None:
        self.options, self.model, self.tokenizer, self.stream, self.device = options, model, tokenizer, stream, device
        self.folder = Path(options.run.folder)
        self.optimizer = make_adamw(model, options.optimizer)
        self.loss = torch.compile(model.loss, fullgraph=True, dynamic=True) if options.train.compile else model.loss
        self.bf16 = options.train.precision == "bf16"
        self.heldout = heldout_batches(self.folder / "data", options.data, options.batch.micro)
        self.progress = Progress()

    def run(self) -> Result:
        """Trains to the end or to a signal."""
        total = self.options.train.samples
        checkpoint = checkpoint_to_continue(self.folder / "checkpoints", self._say)
        if checkpoint is not None:
            self._resume(checkpoint)
        log = MetricsLog(self.folder, self.progress.step, self.options.run.tensorboard)
        if checkpoint is None:
            self.progress.heldout = self._measure(log)
        before = after = self.progress.heldout
        finished = self.progress.samples >= total
        with StopRequest() as stop, self._bar(total) as bar:
            while self.progress.samples < total:
                after = self._one_step(log, bar) or after
                if self._due(self.options.run.save_every):
                    checkpoint = self._save()
                if stop.received is not None:
                    break
            if checkpoint is None or not checkpoint.name.endswith(f"{self.progress.step:08d}"):
                checkpoint = self._save()
        if finished:
            after = heldout_loss(self.model, self.heldout, self.device, self.bf16)
        elif stop.received is None and not self._due(self.options.run.eval_every):
            after = self._measure(log)
        log.close()
        return Result(self.model, self.tokenizer, before, after, self.progress, checkpoint, stop.received)

    def _one_step(self, log: MetricsLog, bar: tqdm[Any]) -> dict[str, float]:
        """One optimizer step with its record; returns held-out losses where they were due, else nothing."""
        started = time.perf_counter()
        rows = min(
            batch_size(self.progress.samples, self.options.batch), self.options.train.samples - self.progress.samples
        )
        micro = self.options.batch.micro
        batches = [self.stream.next_batch(min(micro, rows - first)) for first in range(0, rows, micro)]
        samples = self.progress.samples + rows
        rate = learning_rate(samples, self.options.train.samples, self.options.optimizer.lr, self.options.schedule)
        loss, norm = self._update(batches, rate)

        self.progress.step += 1
        self.progress.samples = samples
        tokens = sum(batch.input_ids.numel() for batch in batches)
        self.progress.tokens += tokens
        speed = tokens / (time.perf_counter() - started)
        values = {"loss": loss, "lr": rate, "grad_norm": norm, "samples": samples, "tokens_per_second": speed}
        log.write("train", self.progress.step, values)
        bar.update(rows)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        return self._measure(log) if self._due(self.options.run.eval_every) else {}

    def _update(self, batches: list[Batch], rate: float) -> tuple[float, float]:
        """Gradients of all micro-batches, weighted by their targets, clipped, and applied; returns loss and norm."""
        count = max(1, sum(batch.num_targets for batch in batches))
        total = torch.zeros((), device=self.device)
        for batch in batches:
            part = batch.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(part.input_ids, part.targets, cu_seqlens=part.cu_seqlens, max_seqlen=part.max_seqlen)
            weighted = loss * (part.num_targets / count)
            weighted.backward()
            total += weighted.detach()
        limit = self.options.optimizer.clip or float("inf")
        mean = float(total)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not (math.isfinite(norm) and math.isfinite(mean)):
            raise FloatingPointError(
                f"step {self.progress.step + 1} has the gradient norm {norm} and the loss {mean}, so the run stops "
                "there with nothing of that step applied or saved; try a smaller optimizer.lr in another run.folder"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean, norm

    def _measure(self, log: MetricsLog) -> dict[str, float]:
        losses = heldout_loss(self.model, self.heldout, self.device, self.bf16)
        log.write("heldout", self.progress.step, losses)
        return losses

    def _save(self) -> Path:
        state = {
            "step": self.progress.step,
            "samples": self.progress.samples,
            "tokens": self.progress.tokens,
            "heldout_before": self.progress.heldout,
            "stream": self.stream.state(),
        }
        return save_checkpoint(
            self.folder / "checkpoints", self.model, self.optimizer, self.tokenizer, state, self.options.run.keep
        )

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.model, self.optimizer)
        self.stream.load_state(state["stream"])
        self.progress = Progress(state["step"], state["samples"], state["tokens"], state["heldout_before"])
        self._say(f"continuing {checkpoint}")

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _bar(self, total: int) -> tqdm[Any]:
        return tqdm(
            total=total,
            initial=self.progress.samples,
            desc="training",
            unit="row",
            dynamic_ncols=True,
            disable=not self.options.run.progress,
            file=sys.stderr,
        )

    def _say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)


def _claim(folder: Path, options: Options) -> None:
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
        (folder / "data" / "prepared.json").unlink(missing_ok=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)


def _tokenizer_for(options: Options, folder: Path) -> Aquila2Tokenizer:
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
