"""The training loop: accumulate, clip, step, enter in the ledger, save; a run goes on wherever it was stopped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from aquila2.heurimentor.data.schedule import OpenSegment
from aquila2.heurimentor.data.stream import BatchStream, Part
from aquila2.heurimentor.engine.keeper import Keeper, Order, Stop, Suspects, Verdict
from aquila2.heurimentor.engine.placement import Placement
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.ledger.book import NAME, share_out
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.heurimentor.monitor.intervals import Estimate
from aquila2.heurimentor.monitor.monitor import Alert
from aquila2.heurimentor.monitor.scores import StepScores, largest_of
from aquila2.heurimentor.monitor.speed import Speed
from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.gather import gathered
from aquila2.parallel.values import clip, total_norm
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.agreement import ranks_that_differed
from aquila2.training.checkpoints import (
    contents_of,
    head_of,
    list_checkpoints,
    state_of,
    step_of,
)
from aquila2.training.continuation import Continuation
from aquila2.training.data import tokenizer_id
from aquila2.training.measuring import Measuring
from aquila2.training.metrics import MetricsLog
from aquila2.training.optim import make_adamw
from aquila2.training.options import Options
from aquila2.training.passes import run_passes, worst_batch
from aquila2.training.progress import Progress
from aquila2.training.saver import Saver
from aquila2.training.setup import heldout_ids
from aquila2.training.signals import StopRequest

ASKED = -1  # in the place of a signal's number, where a decision has ended the run
WEIGHTS_EVERY = 256  # steps after which the ranks compare their weights, which they also do before every checkpoint


@dataclass(frozen=True)
class Result:
    """What `train` returns: model, tokenizer, the domains' held-out losses before and after, where it stands.

    `stopped_by` is the signal that has ended it, or `ASKED`, and None where it is complete.
    """

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


class Loop:
    """One run: a model, a stream of batches, and what is written about them.

    Attributes:
        clock: Seconds, by which steps and the ranks' parts of them are timed.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        options: Options,
        model: Aquila2ForCausalLM,
        tokenizer: Aquila2Tokenizer,
        device: torch.device,
        world: World,
        placement: Placement,
    ) -> None:
        self.options, self.model, self.tokenizer, self.device, self.world = options, model, tokenizer, device, world
        self.folder = Path(options.run.folder)
        self.optimizer = make_adamw(model, options.optimizer)
        self.placement = placement
        self.loss = torch.compile(model.loss, fullgraph=True, dynamic=True) if options.train.compile else model.loss
        self.scores = StepScores(model, 0 if options.train.compile else options.monitor.score_rows, self.clock)
        self.bf16 = options.train.precision == "bf16"
        self.stream = BatchStream(self.folder, options.data.seq_len, tokenizer_id(tokenizer))
        self.measuring = Measuring(options, model, tokenizer, device, world, placement, self._tell)
        self.continuation = Continuation(self.folder, model, self.optimizer, world, placement)
        self.asked_to_stop = False
        self.saved_at = time.monotonic()
        self.speed = Speed(model.config, options.data.seq_len, device, world.size)
        self.progress = Progress()
        self.saved: Path | None = None  # the newest checkpoint, unless steps were undone since
        self.keeper: Keeper | None = None
        self.saver: Saver | None = None

    def run(self) -> Result:
        """Trains to the end or to a signal."""
        total = self.options.train.samples
        checkpoint, self.progress = self.continuation.start()
        self.saved = checkpoint
        finished = self.progress.samples >= total
        with ExitStack() as stack:
            self.world.tell(lambda: self._open_files(stack, checkpoint, finished))
            self.measuring.watch(self.world.tell(lambda: self._segments(checkpoint)))
            if checkpoint is None:
                self.progress.heldout = self.measuring.measure(self.progress)
                self.measuring.probe(self.progress)
            before = after = self.progress.heldout
            with StopRequest() as stop, self._bar(total) as bar:
                stopped_by = 0
                while self.progress.samples < total and not stopped_by:
                    before_it = self.progress.step
                    after = self._one_step(bar) or after
                    stepped = self.progress.step > before_it
                    if stepped and self.progress.step % WEIGHTS_EVERY == 0:
                        self._compare_weights()
                    code = self.world.largest(2 * (stop.received or 0) + self._is_late())
                    stopped_by = ASKED if self.asked_to_stop else code // 2
                    if stepped and (self._due(self.options.run.save_every) or code % 2):
                        self.saved = self._save()
                if self.saved is None or step_of(self.saved) != self.progress.step:
                    self.saved = self._save(last=True)
                elif not finished:
                    self.world.tell(lambda: self._saver().wait())
            if finished:
                after = self.measuring.losses()
            elif not stopped_by and not self._due(self.options.run.eval_every):
                after = self.measuring.measure(self.progress)
            if not (finished or stopped_by or self._due(self.options.probe.every)):
                self.measuring.probe(self.progress)
        return Result(
            self.model,
            self.tokenizer,
            before,
            after,
            self.progress,
            self.saved,
            stopped_by or None,
            self.world.rank,
        )

    def _one_step(self, bar: tqdm[Any]) -> dict[str, Estimate]:
        """One optimizer step with its record; returns held-out losses where they were due, else nothing."""
        started = self.clock()
        order = self.world.tell(self._next_order)
        if isinstance(order, Stop):
            self.asked_to_stop = True
            return {}
        if order is None:  # what was left was skipped
            self.progress.samples = self.options.train.samples
            return {}
        self.stream.open(order.segments)
        self.measuring.watch(order.segments)
        places = share_out(order.count, order.shares)[self.placement.data.rank]
        part = self.stream.part(order.draws, places, self.options.batch.micro, order.quarantined)
        part = self.placement.evened(part, self.world, self.options.data.seq_len)
        waited = self.clock() - started
        applied = self._update(order, places, part, waited)
        if applied is None:  # its samples are skipped
            bar.n = self.progress.samples
            return {}
        reports, loss, norm, scores = applied
        tokens = order.count * self.options.data.seq_len
        busy = [report.busy for report in reports]
        speed = self.speed.values(tokens, self.clock() - started, busy)
        values = {"loss": loss, "lr": order.rate, "grad_norm": norm, "samples": order.end, **speed}
        values.update({f"max_logit_layer_{layer}": score for layer, score in scores.items()})
        values["data_wait"] = max(report.wait for report in reports)
        digest = sum(report.digest for report in reports)
        self.progress.samples, undone_by = self.world.tell(lambda: self._first().commit(order, digest, values, busy))
        self.progress.step = order.step
        self.progress.tokens += tokens
        bar.update(order.count)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed['tokens_per_second']:,.0f} tokens/s", refresh=False)
        if undone_by is not None and self._go_back(
            self.world.tell(lambda: self._calm(undone_by)), order, undone_by, []
        ):
            bar.n = self.progress.samples
            return {}
        if self._due(self.options.probe.every):
            self.measuring.probe(self.progress)
        return self.measuring.measure(self.progress) if self._due(self.options.run.eval_every) else {}

    def _update(
        self, order: Order, places: range, part: Part, waited: float
    ) -> tuple[list[RankReport], float, float, dict[int, float]] | None:
        """Gradients of all micro-batches on all ranks, weighted by their targets, clipped, and applied.

        Returns what every rank reports, the loss, the norm of the gradient and the layers' largest attention scores;
        None where the monitor has the step skipped, or the run go back.
        """
        started = self.clock()
        count = max(1, self.placement.data.sum(sum(batch.num_targets for batch in part.batches)))
        self.scores.begin(part.batches)
        losses = self._passes(part, count)
        mean = float(sum(losses, start=torch.zeros((), device=self.device)))
        busy = self.clock() - started - self.scores.seconds  # a look takes as long for few samples as for many
        self.placement.gradients.finish()
        reports = self.placement.data.gather(RankReport(mean, part.digest, busy, waited))
        total = sum(report.loss for report in reports)
        limit = self.options.optimizer.clip or float("inf")
        mine = math.hypot(*self.placement.stages.gather(total_norm(self.model.parameters())))
        # One norm for all ranks: that of the rank where something is broken, which the others may not have seen.
        norms, scores = zip(*self.world.gather((mine, self.scores.take())), strict=True)
        norm = max(norms, key=lambda value: (not math.isfinite(value), value))
        alert = self.world.tell(lambda: self._first().judge(total, norm))
        if alert is not None:
            worst = worst_batch(self.stream, order.draws, places, part, losses, count, self.options.batch.micro)
            suspects = self.placement.data.gather(Suspects(self.world.rank, *worst))
            verdict = self.world.tell(lambda: self._verdict(order, alert, total, norm, suspects))
            if not verdict.applies:
                self.optimizer.zero_grad(set_to_none=True)
                if verdict.stop is not None:
                    self._stop(verdict.stop)
                self.progress.samples = order.end
                self._go_back(verdict.checkpoint, order, alert, suspects)
                return None
        clip(self.model.parameters(), limit, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = order.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return reports, total, norm, largest_of(scores)

    def _passes(self, part: Part, count: int) -> list[torch.Tensor]:
        """Forward and backward passes of all micro-batches; returns what each adds to the mean loss."""
        micro = self.options.batch.micro
        return run_passes(self.loss, part, count, self.placement, micro, self.device, self.bf16)

    def _go_back(self, to: Path | None, order: Order, alert: Alert, suspects: list[Suspects]) -> bool:
        """Undoes the steps since a checkpoint, if there is one; whether it has."""
        if to is not None:
            self.progress, self.saved = self.continuation.go_to(to), None
            self.progress.samples = self.world.tell(lambda: self._first().go_back(to, order, alert, suspects))
        return to is not None

    def _calm(self, alert: Alert) -> Path | None:
        """Where to go back to because of a finding; that may be being written."""
        self._saver().wait()
        return self._first().calm_checkpoint(alert)

    def _stop(self, reason: str) -> None:
        """Saves what stands before the step that ends the run."""
        if self.progress.step and self.world.tell(self._is_unsaved):
            self._save(last=True)
        self.world.tell(lambda: self._first().stop(reason))

    def _is_unsaved(self) -> bool:
        self._saver().wait()
        newest = list_checkpoints(self.folder / "checkpoints")[:1]
        return not newest or step_of(newest[0]) != self.progress.step

    def _segments(self, checkpoint: Path | None) -> list[OpenSegment]:
        """The segments of the run so far; the ledger of a finished one is not open, and may be gone."""
        if self.keeper is not None:
            return list(self.keeper.lineage.schedule.segments)
        ledger, head = self.folder / NAME, head_of(checkpoint) if checkpoint else None
        lines = scan(ledger, head.offset if head else 0).lines if ledger.is_file() else []
        return list(Lineage.of(lines).schedule.segments)

    def _open_files(self, stack: ExitStack, checkpoint: Path | None, finished: bool) -> None:
        """Opens what the first rank writes; a finished run's ledger stays closed."""
        log = MetricsLog(self.folder, self.progress.step if checkpoint else -1, self.options.run.tensorboard)
        stack.callback(log.close)
        if not finished:
            head = head_of(checkpoint) if checkpoint else None
            if checkpoint and head is None:
                raise ValueError(f"{checkpoint} does not tell where the ledger stood, so the run cannot go on from it")
            watched = state_of(checkpoint).get("monitor") if checkpoint else None
            self.keeper = Keeper(self.options, head, self.placement.data.size, log, watched)
            stack.callback(self.keeper.close)
            self.saver = stack.enter_context(Saver(self.folder / "checkpoints", self.tokenizer, self.options))

    def _compare_weights(self) -> None:
        """Compares what several ranks have of weights that are one; who differed is told."""
        for ranks in ranks_that_differed(self.model, self.optimizer, self.placement, self.world):
            self._tell(partial(Keeper.ranks_differ, step=self.progress.step, ranks=ranks))

    def _tell(self, work: Callable[[Keeper], None]) -> None:
        """Has the first rank's keeper do something."""
        self.world.tell(lambda: work(self._first()))

    def _first(self) -> Keeper:
        """The keeper, which the first rank has while its run is not at its end."""
        assert self.keeper is not None
        return self.keeper

    def _saver(self) -> Saver:
        """What writes checkpoints, on the first rank."""
        assert self.saver is not None
        return self.saver

    def _next_order(self) -> Order | Stop | None:
        """The next step, unless the last checkpoint could not be written."""
        self._saver().check()
        return self._first().order()

    def _verdict(self, order: Order, alert: Alert, loss: float, norm: float, suspects: list[Suspects]) -> Verdict:
        """What is done about a step; the run may go back to the checkpoint that is being written."""
        self._saver().wait()
        return self._first().verdict(order, alert, loss, norm, suspects)

    def _is_late(self) -> bool:
        """Whether the first rank finds that the last checkpoint is too long ago."""
        minutes = self.options.run.save_minutes
        return self.world.is_first and minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _save(self, last: bool = False) -> Path:
        """Saves what stands now; `last`: nothing is trained until it is written."""
        self._compare_weights()
        self.saved_at = time.monotonic()
        saved: tuple[Aquila2ForCausalLM, torch.optim.Optimizer] = self.model, self.optimizer
        if self.placement.divided:
            self.world.tell(lambda: self._saver().wait())  # one copy at a time
            if self.placement.pipeline is None or self.placement.data.is_first:
                saved = gathered(self.model, self.optimizer, self.placement.stages.group, keep=self.world.is_first)
        return self.world.tell(lambda: self._save_here(*saved, last))

    def _save_here(self, model: Aquila2ForCausalLM, optimizer: torch.optim.Optimizer, last: bool) -> Path:
        state = {
            "step": self.progress.step,
            "samples": self._first().lineage.samples,
            "tokens": self.progress.tokens,
            "heldout_before": self.progress.heldout,
            "monitor": self._first().monitor.state(),
        }
        head, heldout = self._first().head(), heldout_ids(self.folder, self.measuring.sources)
        contents = contents_of(model, optimizer, state, head, heldout)
        return self._saver().save(contents, last, owned=self.placement.divided)

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
