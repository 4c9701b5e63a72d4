"""The training loop: accumulate, clip, step, enter in the ledger, save; a run goes on wherever it was stopped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from aquila2.device import usable_device
from aquila2.heurimentor.data.schedule import OpenSegment
from aquila2.heurimentor.data.stream import BatchStream, Part
from aquila2.heurimentor.engine.keeper import Keeper, Order, Stop, Suspects, Verdict
from aquila2.heurimentor.engine.placement import Placement, place
from aquila2.heurimentor.engine.world import World, checksum, ranks_of
from aquila2.heurimentor.ledger.book import NAME, share_out
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.heurimentor.monitor.intervals import Estimate
from aquila2.heurimentor.monitor.monitor import Alert
from aquila2.heurimentor.monitor.scores import StepScores, largest_of, largest_scores
from aquila2.heurimentor.monitor.speed import Speed
from aquila2.heurimentor.monitor.weights import weight_moments
from aquila2.heurimentor.probes.prompts import questions
from aquila2.heurimentor.probes.scoring import make_probes, run_probes
from aquila2.heurimentor.probes.tasks import read_tasks
from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.gather import gathered
from aquila2.parallel.tensor import is_held_alike
from aquila2.parallel.values import clip, local, total_norm
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import (
    checkpoint_to_continue,
    contents_of,
    head_of,
    list_checkpoints,
    load_checkpoint,
    state_of,
    step_of,
)
from aquila2.training.data import heldout_batches, prepare, segment_folder, tokenizer_id
from aquila2.training.lock import only_run_in
from aquila2.training.memory import keep_freed_memory
from aquila2.training.metrics import MetricsLog, heldout_loss
from aquila2.training.optim import make_adamw
from aquila2.training.options import Options
from aquila2.training.saver import Saver
from aquila2.training.setup import claim, heal_tokenizer, heldout_ids, honour_stop, mend_data, tokenizer_for
from aquila2.training.signals import StopRequest

ASKED = -1  # in the place of a signal's number, where a decision has ended the run
WEIGHTS_EVERY = 256  # steps after which the ranks compare their weights, which they also do before every checkpoint


@dataclass
class Progress:
    """Where a run stands; samples are those of the stream, skipped ones included."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    heldout: dict[str, Estimate] = field(default_factory=dict)


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
            stack.enter_context(only_run_in(folder))
            honour_stop(folder)
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
        model, placement = place(config, options.parallel, world, device, options.train.precision == "bf16")
        model.train().set_activation_checkpointing(options.train.activation_checkpointing)
        return Loop(options, model, tokenizer, device, world, placement).run()


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
        self.scores = StepScores(model, 0 if options.train.compile else options.monitor.score_rows)
        self.bf16 = options.train.precision == "bf16"
        self.stream = BatchStream(self.folder, options.data.seq_len, tokenizer_id(tokenizer))
        self.heldout = heldout_batches(self.folder / "data", options.data, options.batch.micro)
        longest, limit = model.config.max_position_embeddings, options.probe.limit
        self.probes = world.tell(lambda: make_probes(options.probe.tasks, tokenizer, longest, limit))
        self.measured = {source.name for source in options.data.sources}
        self.watched = 0  # segments of the run whose held-out rows are among them, where they have any
        self.asked_to_stop = False
        self.saved_at = time.monotonic()
        self.speed = Speed(model.config, options.data.seq_len, device, world.size)
        self.progress = Progress()
        self.keeper: Keeper | None = None
        self.saver: Saver | None = None

    def run(self) -> Result:
        """Trains to the end or to a signal."""
        total = self.options.train.samples
        checkpoint = self.world.tell(self._checkpoint_to_continue)
        if checkpoint is not None:
            self._resume(checkpoint)
        finished = self.progress.samples >= total
        with ExitStack() as stack:
            self.world.tell(lambda: self._open_files(stack, checkpoint, finished))
            self._watch(self.world.tell(lambda: self._segments(checkpoint)))
            if checkpoint is None:
                self.progress.heldout = self._measure()
                self._probe()
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
                        checkpoint = self._save()
                if checkpoint is None or step_of(checkpoint) != self.progress.step:
                    checkpoint = self._save(last=True)
                elif not finished:
                    self.world.tell(lambda: self._saver().wait())
            if finished:
                after = heldout_loss(self.model, self.heldout, self.device, self.bf16, self.placement.data)
            elif not stopped_by and not self._due(self.options.run.eval_every):
                after = self._measure()
            if not (finished or stopped_by or self._due(self.options.probe.every)):
                self._probe()
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
        started = self.clock()
        order = self.world.tell(self._next_order)
        if isinstance(order, Stop):
            self.asked_to_stop = True
            return {}
        if order is None:  # what was left was skipped
            self.progress.samples = self.options.train.samples
            return {}
        self.stream.open(order.segments)
        self._watch(order.segments)
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
            self._probe()
        return self._measure() if self._due(self.options.run.eval_every) else {}

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
        busy = self.clock() - started
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
            suspects = self.placement.data.gather(self._suspects(order, places, part, losses, count))
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
        if self.placement.pipeline is not None:
            micro = self.options.batch.micro
            return self.placement.pipeline.passes(self.placement.stage_batches(part, count, micro, self.device))
        losses = []
        for index, whole in enumerate(part.batches):
            batch = whole.to(self.device)
            if index == len(part.batches) - 1:
                self.placement.gradients.begin()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(
                    batch.input_ids, batch.targets, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen
                )
            weighted = loss * (batch.num_targets / count)
            weighted.backward()
            losses.append(weighted.detach())
        return losses

    def _suspects(self, order: Order, places: range, part: Part, losses: list[torch.Tensor], count: int) -> Suspects:
        """This rank's worst batch: one whose loss is not finite, else the one of the largest mean loss."""
        means = [
            float(loss) * count / max(1, batch.num_targets) for loss, batch in zip(losses, part.batches, strict=True)
        ]
        if not means:
            return Suspects(self.world.rank, -math.inf, [])
        worst = max(range(len(means)), key=lambda i: (not math.isfinite(means[i]), means[i]))
        micro = self.options.batch.micro
        rows = places[worst * micro : (worst + 1) * micro]
        documents = self.stream.documents(order.draws, rows)
        return Suspects(self.world.rank, means[worst], [f"{domain}/{entry.id}" for domain, entry in documents])

    def _go_back(self, to: Path | None, order: Order, alert: Alert, suspects: list[Suspects]) -> bool:
        """Undoes the steps since a checkpoint, if there is one; whether it has."""
        if to is not None:
            self._resume(to)
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

    def _compare_weights(self) -> None:
        """Compares what several ranks have of weights that are one."""
        parameters = list(self.model.parameters())
        self._compare(self.placement.copies, parameters)
        self._compare(self.placement.sharers, [parameter for parameter in parameters if is_held_alike(parameter)])

    def _compare(self, holders: World, parameters: list[torch.nn.Parameter]) -> None:
        """Sends the first holder's weights and moments to the others where one has others, and has it told."""
        if holders.size == 1:
            return
        sums = holders.gather(checksum(local(parameter) for parameter in parameters))
        ranks = self.world.gather(sums[holders.rank] != sums[0])
        differ = [rank for rank, differs in enumerate(ranks) if differs]
        if differ:
            holders.spread(local(parameter) for parameter in parameters)
            states = [self.optimizer.state[parameter] for parameter in parameters]
            holders.spread(local(state[key]) for state in states for key in sorted(state))
            self.world.tell(lambda: self._first().ranks_differ(self.progress.step, differ))

    def _segments(self, checkpoint: Path | None) -> list[OpenSegment]:
        """The segments of the run so far; the ledger of a finished one is not open, and may be gone."""
        if self.keeper is not None:
            return list(self.keeper.lineage.schedule.segments)
        ledger, head = self.folder / NAME, head_of(checkpoint) if checkpoint else None
        lines = scan(ledger, head.offset if head else 0).lines if ledger.is_file() else []
        return list(Lineage.of(lines).schedule.segments)

    def _watch(self, segments: Sequence[OpenSegment]) -> None:
        """Measures held-out losses also on sources that came while the run was at work."""
        if len(segments) == self.watched:
            return
        self.watched = len(segments)
        known = {source.name for source in self.options.data.sources}
        names = [(info.domain, Path(info.folder).name) for info in segments]
        data = self.folder / "data"
        added = [
            (domain, name)
            for domain, name in names
            if name not in known and segment_folder(data, name, "heldout").is_dir()
        ]
        self.measured = known | {name for _, name in added}
        self.heldout = heldout_batches(data, self.options.data, self.options.batch.micro, added)

    def _measure(self) -> dict[str, Estimate]:
        losses = heldout_loss(self.model, self.heldout, self.device, self.bf16, self.placement.data)
        self.world.tell(lambda: self._first().measured(self.progress.step, losses))
        self._look_inside()
        return losses

    def _probe(self) -> None:
        """Asks the questions of the task files, where there are any."""
        if self.probes:
            most = self.options.batch.micro * self.options.data.seq_len
            found = run_probes(self.model, self.probes, most, self.device, self.bf16, self.placement.data)
            chances = {probe.task.name: probe.chance for probe in self.probes}
            self.world.tell(lambda: self._first().probed(self.progress.step, found, chances))

    def _look_inside(self) -> None:
        """A look at weights, and at attention over the first held-out batch of every domain."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            firsts = [several[0].to(self.device) for several in self.heldout.values() if several]
            scores = largest_of(self.world.gather(largest_scores(self.model, firsts)))
        stages = self.placement.stages.gather(weight_moments(self.model))
        moments = {kind: [pair for stage in stages for pair in stage[kind]] for kind in stages[0]}
        self.world.tell(lambda: self._first().inside(self.progress.step, self.progress.tokens, moments, scores))

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
        head, heldout = self._first().head(), heldout_ids(self.folder, self.measured)
        contents = contents_of(model, optimizer, state, head, heldout)
        return self._saver().save(contents, last, owned=self.placement.divided)

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.model, self.optimizer)
        self.placement.copies.spread(local(parameter) for parameter in self.model.parameters())
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
