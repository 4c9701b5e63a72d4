"""The training loop: accumulate, clip, step, enter in the ledger, save; a run goes on wherever it was stopped."""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from aquila2.device import usable_device
from aquila2.heurimentor.data.stream import BatchStream, Part
from aquila2.heurimentor.engine.gradients import GradientSum
from aquila2.heurimentor.engine.keeper import Keeper, Order, Suspects
from aquila2.heurimentor.engine.world import World, ranks_of
from aquila2.heurimentor.ledger.book import NAME, share_out
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.heurimentor.monitor.intervals import Estimate
from aquila2.heurimentor.monitor.speed import Speed
from aquila2.heurimentor.monitor.weights import largest_scores, weight_moments
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import (
    checkpoint_to_continue,
    head_of,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from aquila2.training.data import heldout_batches, prepare, tokenizer_id
from aquila2.training.lock import only_run_in
from aquila2.training.memory import keep_freed_memory
from aquila2.training.metrics import MetricsLog, heldout_loss
from aquila2.training.optim import make_adamw
from aquila2.training.options import Options
from aquila2.training.setup import claim, tokenizer_for
from aquila2.training.signals import StopRequest


@dataclass
class Progress:
    """Where a run stands; samples are those of the stream, skipped ones included."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    heldout: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What `train` returns: model, tokenizer, the domains' held-out losses before and after, and why it ended."""

    model: Aquila2ForCausalLM
    tokenizer: Aquila2Tokenizer
    heldout_before: dict[str, Estimate]
    heldout_after: dict[str, Estimate]
    progress: Progress
    checkpoint: Path
    stopped_by: int | None
    rank: int = 0


class RankReport(NamedTuple):
    """A rank's part of a step: its share of the mean loss, the digest of its rows, seconds at work and for data."""

    loss: float
    digest: int
    busy: float
    wait: float


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
    with ranks_of(options.train.device) as (world, name), ExitStack() as stack:
        device = usable_device(name, "train.device")

        def make_ready() -> None:
            stack.enter_context(only_run_in(folder))
            claim(folder, options)
            prepare(options.data, tokenizer_for(options, folder / "tokenizer"), folder / "data")

        world.tell(make_ready)
        torch.manual_seed(options.train.seed)
        tokenizer = Aquila2Tokenizer.from_pretrained(folder / "tokenizer")
        config = options.model_config(
            len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        )
        model = Aquila2ForCausalLM(config).to(device).train()
        model.set_activation_checkpointing(options.train.activation_checkpointing)
        return Loop(options, model, tokenizer, device, world).run()


class Loop:
    """One run: a model, a stream of batches, and what is written about them."""

    def __init__(
        self,
        options: Options,
        model: Aquila2ForCausalLM,
        tokenizer: Aquila2Tokenizer,
        device: torch.device,
        world: World,
    ) -> None:
        self.options, self.model, self.tokenizer, self.device, self.world = options, model, tokenizer, device, world
        self.folder = Path(options.run.folder)
        self.optimizer = make_adamw(model, options.optimizer)
        self.gradients = GradientSum(model.parameters(), world)
        self.loss = torch.compile(model.loss, fullgraph=True, dynamic=True) if options.train.compile else model.loss
        self.bf16 = options.train.precision == "bf16"
        self.stream = BatchStream(self.folder, options.data.seq_len, tokenizer_id(tokenizer))
        self.heldout = heldout_batches(self.folder / "data", options.data, options.batch.micro)
        self.speed = Speed(model.config, options.data.seq_len, device, world.size)
        self.progress = Progress()
        self.keeper: Keeper | None = None

    def run(self) -> Result:
        """Trains to the end or to a signal."""
        total = self.options.train.samples
        checkpoint = self.world.tell(self._checkpoint_to_continue)
        if checkpoint is not None:
            self._resume(checkpoint)
        finished = self.progress.samples >= total
        with ExitStack() as stack:
            self.world.tell(lambda: self._open_files(stack, checkpoint, finished))
            if checkpoint is None:
                self.progress.heldout = self._measure()
            before = after = self.progress.heldout
            with StopRequest() as stop, self._bar(total) as bar:
                stopped_by = 0
                while self.progress.samples < total and not stopped_by:
                    before_it = self.progress.step
                    after = self._one_step(bar) or after
                    if self.progress.step > before_it and self._due(self.options.run.save_every):
                        checkpoint = self._save()
                    stopped_by = self.world.largest(stop.received or 0)
                if checkpoint is None or step_of(checkpoint) != self.progress.step:
                    checkpoint = self._save()
            if finished:
                after = heldout_loss(self.model, self.heldout, self.device, self.bf16, self.world)
            elif not stopped_by and not self._due(self.options.run.eval_every):
                after = self._measure()
        return Result(
            self.model,
            self.tokenizer,
            before,
            after,
            self.progress,
            checkpoint,
            stopped_by or None,
            self.world.rank,
        )

    def _one_step(self, bar: tqdm[Any]) -> dict[str, Estimate]:
        """One optimizer step with its record; returns held-out losses where they were due, else nothing."""
        started = time.perf_counter()
        order = self.world.tell(lambda: self._first().order())
        if order is None:  # what was left was skipped
            self.progress.samples = self.options.train.samples
            return {}
        self.stream.open(order.segments)
        places = share_out(order.count, order.shares)[self.world.rank]
        part = self.stream.part(order.draws, places, self.options.batch.micro, order.quarantined)
        waited = time.perf_counter() - started
        applied = self._update(order, places, part, waited)
        if applied is None:  # its samples are skipped
            bar.n = self.progress.samples
            return {}
        reports, loss, norm = applied
        tokens = order.count * self.options.data.seq_len
        busy = [report.busy for report in reports]
        speed = self.speed.values(tokens, time.perf_counter() - started, busy)
        values = {"loss": loss, "lr": order.rate, "grad_norm": norm, "samples": order.end, **speed}
        values["data_wait"] = max(report.wait for report in reports)
        digest = sum(report.digest for report in reports)
        self.progress.samples = self.world.tell(lambda: self._first().commit(order, digest, values, busy))
        self.progress.step = order.step
        self.progress.tokens += tokens
        bar.update(order.count)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed['tokens_per_second']:,.0f} tokens/s", refresh=False)
        return self._measure() if self._due(self.options.run.eval_every) else {}

    def _update(
        self, order: Order, places: range, part: Part, waited: float
    ) -> tuple[list[RankReport], float, float] | None:
        """Gradients of all micro-batches on all ranks, weighted by their targets, clipped, and applied.

        Returns what every rank reports, the loss and the norm of the gradient; None where the monitor has the step
        skipped, or the run go back.
        """
        started = time.perf_counter()
        count = max(1, self.world.sum(sum(batch.num_targets for batch in part.batches)))
        losses = []
        for index, whole in enumerate(part.batches):
            batch = whole.to(self.device)
            if index == len(part.batches) - 1:
                self.gradients.begin()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(
                    batch.input_ids, batch.targets, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen
                )
            weighted = loss * (batch.num_targets / count)
            weighted.backward()
            losses.append(weighted.detach())
        mean = float(sum(losses, start=torch.zeros((), device=self.device)))
        busy = time.perf_counter() - started
        self.gradients.finish()
        reports = self.world.gather(RankReport(mean, part.digest, busy, waited))
        total = sum(report.loss for report in reports)
        limit = self.options.optimizer.clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        alert = self.world.tell(lambda: self._first().judge(total, norm))
        if alert is not None:
            suspects = self.world.gather(self._suspects(order, places, part, losses, count))
            verdict = self.world.tell(lambda: self._first().verdict(order, alert, total, norm, suspects))
            if not verdict.applies:
                self.optimizer.zero_grad(set_to_none=True)
                self.progress.samples = order.end
                if verdict.checkpoint is not None:
                    self._resume(verdict.checkpoint)
                    back = verdict.checkpoint
                    self.progress.samples = self.world.tell(lambda: self._first().go_back(back, order, alert, suspects))
                return None
        for group in self.optimizer.param_groups:
            group["lr"] = order.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return reports, total, norm

    def _suspects(self, order: Order, places: range, part: Part, losses: list[torch.Tensor], count: int) -> Suspects:
        """This rank's worst batch: one whose loss is not finite, else the one of the largest mean loss."""
        means = [
            float(loss) * count / max(1, batch.num_targets) for loss, batch in zip(losses, part.batches, strict=True)
        ]
        if not means:
            return Suspects(-math.inf, [])
        worst = max(range(len(means)), key=lambda i: (not math.isfinite(means[i]), means[i]))
        micro = self.options.batch.micro
        rows = places[worst * micro : (worst + 1) * micro]
        documents = self.stream.documents(order.draws, rows)
        return Suspects(means[worst], [f"{domain}/{entry.id}" for domain, entry in documents])

    def _measure(self) -> dict[str, Estimate]:
        losses = heldout_loss(self.model, self.heldout, self.device, self.bf16, self.world)
        self.world.tell(lambda: self._first().measured(self.progress.step, losses))
        self.world.tell(self._look_inside)
        return losses

    def _look_inside(self) -> None:
        """The first rank's look at weights, and at attention over the first held-out batch of every domain."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            firsts = [several[0].to(self.device) for several in self.heldout.values() if several]
            scores = largest_scores(self.model, firsts)
        self._first().inside(self.progress.step, self.progress.tokens, weight_moments(self.model), scores)

    def _checkpoint_to_continue(self) -> Path | None:
        """The newest checkpoint that is whole and whose steps the ledger has not undone."""
        checkpoints = self.folder / "checkpoints"
        heads = [head for path in list_checkpoints(checkpoints) if (head := head_of(path))]
        ledger = self.folder / NAME
        objection = None
        if heads and ledger.is_file():
            objection = Lineage.of(scan(ledger, max(head.offset for head in heads)).lines).objection
        return checkpoint_to_continue(checkpoints, self._say, objection)

    def _open_files(self, stack: ExitStack, checkpoint: Path | None, finished: bool) -> None:
        """Opens what the first rank writes; a finished run's ledger stays closed."""
        log = MetricsLog(self.folder, self.progress.step, self.options.run.tensorboard)
        stack.callback(log.close)
        if not finished:
            head = head_of(checkpoint) if checkpoint else None
            if checkpoint and head is None:
                raise ValueError(f"{checkpoint} does not tell where the ledger stood, so the run cannot go on from it")
            self.keeper = Keeper(self.options, head, self.world.size, log)
            stack.callback(self.keeper.close)

    def _first(self) -> Keeper:
        """The keeper, which the first rank has while its run is not at its end."""
        assert self.keeper is not None
        return self.keeper

    def _save(self) -> Path:
        return self.world.tell(self._save_here)

    def _save_here(self) -> Path:
        lineage = self._first().lineage
        state = {
            "step": self.progress.step,
            "samples": lineage.samples,
            "tokens": self.progress.tokens,
            "heldout_before": self.progress.heldout,
            "drawn": lineage.schedule.counts(lineage.samples),
        }
        head = self._first().head()
        checkpoints = self.folder / "checkpoints"
        return save_checkpoint(
            checkpoints, self.model, self.optimizer, self.tokenizer, state, self.options.run.keep, head
        )

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.model, self.optimizer)
        self.progress = Progress(state["step"], state["samples"], state["tokens"])
        self.progress.heldout = {domain: Estimate(*values) for domain, values in state["heldout_before"].items()}
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
            disable=not (self.options.run.progress and self.world.is_first),
            file=sys.stderr,
        )

    def _say(self, sentence: str) -> None:
        if self.world.is_first:
            print(sentence, file=sys.stderr, flush=True)
