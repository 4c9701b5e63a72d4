"""The first rank's part of a run: it keeps ledger, metrics and monitor, and tells all ranks what the next step is."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aquila2.atomic import atomic_write
from aquila2.heurimentor.data.schedule import Draws, OpenSegment
from aquila2.heurimentor.engine.settings import Settings
from aquila2.heurimentor.engine.shares import Shares
from aquila2.heurimentor.ledger.book import NAME, Book, share_out
from aquila2.heurimentor.ledger.chain import Line, scan
from aquila2.heurimentor.ledger.control import answer_requests, rejected_requests
from aquila2.heurimentor.ledger.lineage import Head, Lineage
from aquila2.heurimentor.mentor.decisions import Decision, config_decisions
from aquila2.heurimentor.monitor.intervals import Estimate
from aquila2.heurimentor.monitor.monitor import Alert, Monitor
from aquila2.heurimentor.monitor.weights import pooled, trajectory
from aquila2.training.checkpoints import (
    checkpoint_fault,
    checkpoint_to_continue,
    head_of,
    list_checkpoints,
    state_of,
    step_of,
)
from aquila2.training.data import segment_folder
from aquila2.training.metrics import MetricsLog, read_metrics
from aquila2.training.options import Options
from aquila2.training.setup import STOPPED

MOST_DOCUMENTS = 8  # named in a sentence
MOST_REFUSED = 8  # steps in a row
MOST_RETURNS = 3  # to the same checkpoint

Moments = Sequence[tuple[float, float]]
Curves = tuple[int, Mapping[str, Sequence[float]]]  # tokens trained, and per kind the deviations of the layers


@dataclass(frozen=True)
class Order:
    """What all ranks do in a step.

    Attributes:
        step: Its number.
        draws: Its samples.
        segments: All segments of the run.
        quarantined: Documents whose targets do not count, from a sample on.
        shares: How the ranks share the samples.
        rate: The learning rate.
        stage: The name of the stage.
    """

    step: int
    draws: Draws
    segments: list[OpenSegment]
    quarantined: Mapping[tuple[int, int], int]
    shares: list[int]
    rate: float
    stage: str

    @property
    def first(self) -> int:
        """The number of its first sample."""
        return int(self.draws.samples[0])

    @property
    def end(self) -> int:
        """The sample after its last."""
        return self.first + self.count

    @property
    def count(self) -> int:
        """Its samples."""
        return len(self.draws.samples)


class Suspects(NamedTuple):
    """What a rank, of those that have other samples, says of a step: its worst batch's mean loss and documents."""

    rank: int
    loss: float
    documents: list[str]


class Verdict(NamedTuple):
    """Whether a step is applied; if not, the checkpoint to go back to or why the run stops; neither: it is skipped."""

    applies: bool
    checkpoint: Path | None = None
    stop: str | None = None


class Committed(NamedTuple):
    """A step that was entered: the next free sample, and what the run is to go back for, if anything."""

    samples: int
    undone_by: Alert | None


class Stop(NamedTuple):
    """In the place of an order: a decision that the run saves and ends here, and who took it."""

    by: str


class Keeper:
    """Keeps the ledger of a run, its metrics and its monitor.

    Args:
        options: The run's.
        head: What the checkpoint that training goes on from knows of the ledger; None starts at step 0.
        ranks: How many ranks there are.
        log: Where metrics and alerts go.
        watched: The monitor's state, which that checkpoint keeps.

    Raises:
        ValueError: The ledger is not what was once written, or the checkpoint is not of its lineage.
        FileNotFoundError: There is a checkpoint and no ledger.
    """

    def __init__(
        self,
        options: Options,
        head: Head | None,
        ranks: int,
        log: MetricsLog,
        watched: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.folder, self.log = options, Path(options.run.folder), log
        self.curves: Curves | None = None
        self._look_back(watched)
        self.stops = 0
        self.shares = Shares()
        self.refused = 0
        self.returns: Counter[int] = Counter()
        if head is None and not _has_recipe(self.folder, options):
            # A beginning that no step stands on, and that a crash has cut off.
            (self.folder / NAME).unlink(missing_ok=True)
        if head is None and not (self.folder / NAME).exists():
            self.book = _begin(self.folder, options)
        else:
            self.book = Book(self.folder, head)
        self.stops = len(self._stop_lines())  # a run that is continued goes on
        if self.book.cut:
            _say(f"{self.book.cut} bytes behind the last right line of {NAME} were cut; they are kept beside it")
        if options.train.shares == "equal" or len(self.lineage.ranks) != ranks:
            self.share([1] * ranks)

    def _look_back(self, watched: Mapping[str, Any] | None) -> None:
        """Takes up what the metrics and a checkpoint know of the steps so far."""
        records = read_metrics(self.folder)
        self.monitor = Monitor(self.options.monitor, records, watched)
        looks = [record for record in records if record["kind"] == "weights"]
        self.curves = (looks[-1]["tokens"], looks[-1]["layers"]) if looks else None

    @property
    def lineage(self) -> Lineage:
        """The steps that the weights stand on, and the decisions in force."""
        return self.book.lineage

    def share(self, shares: Sequence[int]) -> None:
        """Enters how the ranks share a step from now on, where that is news."""
        if self.lineage.ranks != list(shares):
            self.book.set_ranks(shares)

    def _stop_lines(self) -> list[Line]:
        return [line for line, _ in self.lineage.applied if line.record["what"] == "stop"]

    def order(self) -> Order | Stop | None:
        """The next step, after all requests that wait were answered; None where the run is at its end."""
        before = rejected_requests(self.folder)
        for line in answer_requests(self.book):
            _say(_sentence(line))
        for path, reason in rejected_requests(self.folder).items():
            if path not in before:
                _say(f"a request was refused: {reason}")
        stops = self._stop_lines()
        if len(stops) > self.stops:
            self.stops = len(stops)
            _say(f"the run ends here: {_sentence(stops[-1])}")
            return Stop(str(stops[-1].record["by"]))
        lineage, options = self.lineage, self.options
        settings = Settings.of(options, lineage)
        count = settings.count(options, lineage.samples)
        if count < 1:
            return None
        if lineage.room is not None:
            count = min(count, lineage.room)
        draws = self.book.plan(count)
        return Order(
            lineage.step + 1,
            draws,
            list(lineage.schedule.segments),
            dict(lineage.schedule.quarantined),
            list(lineage.ranks),
            settings.rate(options, lineage.samples + count),
            settings.stage,
        )

    def judge(self, loss: float, norm: float) -> Alert | None:
        """What the monitor has against applying the step at hand."""
        return self.monitor.judge(loss, norm)

    def verdict(self, order: Order, alert: Alert, loss: float, norm: float, ranks: Sequence[Suspects]) -> Verdict:
        """Tells an alert with the documents that it may come from; what is done about the step.

        A step that is not applied is entered as a decision to skip its samples, so that a continued run skips them too.
        """
        worst = _worst(ranks)
        documents = ", ".join(worst.documents[:MOST_DOCUMENTS])
        self._tell(order.step, alert, rank=worst.rank, documents=worst.documents)
        policy = getattr(self.options.monitor, alert.kind)
        if policy == "warn":
            return Verdict(True)
        self.refused += 1
        if policy == "skip" and self.refused <= MOST_REFUSED:
            skip = {"first": order.first, "samples": order.count}
            self.book.decide("skip", skip, by=f"monitor: {alert.sentence}")
            return Verdict(False)
        again = f", the {self.refused}th in a row" if self.refused > 1 else ""
        if policy == "rewind":
            checkpoint = checkpoint_to_continue(self.folder / "checkpoints", _say, self.lineage.objection)
            if checkpoint is not None and self.returns[step_of(checkpoint)] < MOST_RETURNS:
                return Verdict(False, checkpoint)
            again += f", and went back {MOST_RETURNS} times" if checkpoint else ", and has no checkpoint to go back to"
        return Verdict(
            False,
            stop=f"step {order.step} has the gradient norm {norm} and the loss {loss}{again}, so the run stops there "
            f"with nothing of that step applied or saved; rank {worst.rank} fares worst, with the documents "
            f"{documents or 'unknown'}; try a smaller optimizer.lr in another run.folder",
        )

    def stop(self, reason: str) -> None:
        """Ends the run, and leaves the reason for whatever would start it again by itself.

        Raises:
            FloatingPointError: Always.
        """
        atomic_write(self.folder / STOPPED, reason + "\n")
        raise FloatingPointError(reason)

    def ranks_differ(self, step: int, ranks: Sequence[int]) -> None:
        """Tells that ranks had other weights than the first."""
        names = ", ".join(f"rank {rank}" for rank in ranks)
        sentence = f"{names} had other weights than rank 0, which were sent to all; are the machines alike?"
        self._tell(step, Alert("ranks_differ", names, sentence))

    def go_back(self, checkpoint: Path, order: Order, alert: Alert, ranks: Sequence[Suspects]) -> int:
        """Undoes the steps since a checkpoint, and skips all samples from there to the end of a step.

        What made a step jump lies as often in the steps before it as in its own documents. Returns the next sample.
        """
        step = step_of(checkpoint)
        self.returns[step] += 1
        self.book.rewind(step, head_of(checkpoint))
        self.stops = len(self._stop_lines())
        count = order.end - self.lineage.samples
        skip = {"first": self.lineage.samples, "samples": count}
        self.book.decide("skip", skip, by=f"monitor: {alert.sentence}")
        self.log.go_back(step)
        self._look_back(state_of(checkpoint).get("monitor"))
        sentence = (
            f"{alert.sentence}; the run goes back from step {order.step} to step {step} and skips {count} samples"
        )
        more = {"rank": _worst(ranks).rank, "documents": _worst(ranks).documents} if ranks else {}
        self._tell(step, Alert("rewind", alert.subject, sentence), **more)
        return self.lineage.samples

    def calm_checkpoint(self, alert: Alert) -> Path | None:
        """The newest whole checkpoint from before the loss began to rise; newer ones are set aside.

        Where there is none, or the run came back to it too often, it saves and ends.
        """
        calm = self.lineage.step - self.monitor.risen_for()
        folder = self.folder / "checkpoints"
        older = [path for path in list_checkpoints(folder) if step_of(path) <= calm]
        chosen = next((path for path in older if checkpoint_fault(path) is None), None)
        if chosen is None or self.returns[step_of(chosen)] >= MOST_RETURNS:
            why = (
                f"it went back {MOST_RETURNS} times"
                if chosen
                else f"no whole checkpoint is from before step {calm + 1}"
            )
            self.book.decide("stop", f"{alert.kind}: {alert.sentence}, and {why}", by="monitor")
            return None

        def objection(head: Head) -> str | None:
            return self.lineage.objection(head) or (f"the loss rises since step {calm}" if head.step > calm else None)

        return checkpoint_to_continue(folder, _say, objection)

    def commit(self, order: Order, digest: int, values: Mapping[str, float], busy: Sequence[float]) -> Committed:
        """Enters that all ranks have taken the step, in the ledger and in the metrics."""
        self.book.commit(order.count, digest, {key: values[key] for key in ("loss", "grad_norm", "lr")})
        self.refused = 0
        self.log.write("train", order.step, values)
        rows = [len(part) for part in share_out(order.count, order.shares)]
        undone_by = self._found(order.step, self.monitor.step(values, busy, rows))
        if self.options.train.shares == "speed":
            proposal = self.shares.proposed(rows, busy)
            if proposal is not None:
                self.share(proposal)
                _say(f"after step {order.step}: the ranks take {', '.join(map(str, proposal))} samples of a step")
        return Committed(self.lineage.samples, undone_by)

    def measured(self, step: int, found: Mapping[str, Estimate]) -> None:
        """Takes the domains' held-out losses."""
        losses = {domain: estimate.mean for domain, estimate in found.items()}
        self.log.write("heldout", step, losses)
        self.log.write("heldout_interval", step, {domain: estimate.half for domain, estimate in found.items()})
        drawn: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        counts = self.lineage.schedule.counts(self.lineage.samples)
        for info, count in zip(self.lineage.schedule.segments, counts, strict=True):
            drawn[info.domain] += count
            rows[info.domain] += info.rows
        epochs = {domain: drawn[domain] / count for domain, count in rows.items()}
        self.log.write("epochs", step, epochs)
        stage = Settings.of(self.options, self.lineage).stage
        self._found(step, self.monitor.measured(losses, epochs, stage))

    def probed(self, step: int, found: Mapping[str, Estimate], chances: Mapping[str, float]) -> None:
        """Takes the shares of right answers, per task and metric, and per task what guessing would get."""
        shares = {name: estimate.mean for name, estimate in found.items()}
        self.log.write("probe", step, shares)
        self.log.write("probe_interval", step, {name: estimate.half for name, estimate in found.items()})
        self.log.write("probe_chance", step, dict(chances))
        stage = Settings.of(self.options, self.lineage).stage
        self._found(step, self.monitor.probed(shares, stage))

    def inside(self, step: int, tokens: int, moments: Mapping[str, Moments], scores: Mapping[int, float]) -> None:
        """Takes mean and spread of the weights, layer by layer, and the largest attention scores of some layers."""
        values: dict[str, Any] = {"tokens": tokens}
        for kind, layers in moments.items():
            values[f"{kind}_mean"], values[f"{kind}_std"] = pooled(layers)
        curves = {kind: [std for _, std in layers] for kind, layers in moments.items()}
        self.log.write("weights", step, {**values, "layers": curves})
        self.log.write("attention", step, {f"layer_{layer}": score for layer, score in scores.items()})
        if self.curves is not None and tokens > self.curves[0]:
            self.log.write("trajectory", step, trajectory(self.curves[1], curves, tokens - self.curves[0]))
        self.curves = (tokens, curves)

    def _found(self, step: int, alerts: Sequence[Alert]) -> Alert | None:
        """Tells findings; decides that the run ends where one is to stop it, and returns one to go back for."""
        undone_by = None
        for alert in alerts:
            self._tell(step, alert)
            policy = getattr(self.options.monitor, alert.kind)
            if policy == "stop" and len(self._stop_lines()) == self.stops:
                self.book.decide("stop", f"{alert.kind}: {alert.sentence}", by="monitor")
            elif policy == "rewind":
                undone_by = alert
        return undone_by

    def _tell(self, step: int, alert: Alert, **more: Any) -> None:
        values = {"alert": alert.kind, "subject": alert.subject, "sentence": alert.sentence, **more}
        self.log.write("alert", step, values)
        documents = more.get("documents")
        where = f" (rank {more['rank']}, documents {', '.join(documents[:MOST_DOCUMENTS])})" if documents else ""
        _say(f"monitor, step {step}: {alert.sentence}{where}")

    def head(self) -> Head:
        """What a checkpoint of this moment keeps; ledger and metrics are on the disk then."""
        self.book.sync()
        self.log.sync()
        return self.book.head

    def close(self) -> None:
        """Lets go of the ledger."""
        self.book.close()


def _worst(ranks: Sequence[Suspects]) -> Suspects:
    """The rank whose batch fared worst; one that is not finite comes first."""
    return max(ranks, key=lambda suspects: (not math.isfinite(suspects.loss), suspects.loss))


def _has_recipe(folder: Path, options: Options) -> bool:
    """Whether the ledger holds all decisions of the configuration, which are its beginning."""
    if not (folder / NAME).is_file():
        return False
    lines = scan(folder / NAME).lines
    entered = sum(line.record["kind"] == "decision" and line.record["by"] == "config" for line in lines)
    return entered >= len(options.data.sources) + 1 + len(options.decisions)


def _begin(folder: Path, options: Options) -> Book:
    book = Book.create(folder, seed=options.train.seed, row_tokens=options.data.seq_len)
    try:
        for source in options.data.sources:
            book.open_segment(source.domain or source.name, segment_folder(folder / "data", source.name, "train"))
        weights: dict[str, float] = {}
        for source in options.data.sources:
            domain = source.domain or source.name
            weights[domain] = weights.get(domain, 0.0) + source.weight
        book.mix(weights)
        for decision in config_decisions(options):
            book.decide(decision.what, decision.value, after=decision.after)
    except BaseException:
        book.close()
        raise
    return book


def _sentence(line: Line) -> str:
    record = line.record
    return f"{Decision(record['what'], record['value'], record['after'])}, asked for by {record['by']}"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
