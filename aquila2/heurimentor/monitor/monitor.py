"""The monitor of a run: keeps what the detectors look at, and tells each finding once until it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aquila2.heurimentor.monitor import detectors
from aquila2.training.options import MonitorOptions

KEPT_WINDOWS = 16
CALM_SHARE = 0.05  # of a step's time: waits for data above it do not end a stall


class Alert(NamedTuple):
    """A finding: of which kind, about what (a domain, a rank, a curve), in a sentence."""

    kind: str
    subject: str
    sentence: str


class Monitor:
    """Judges steps before they are applied, and watches them and held-out losses afterwards.

    Args:
        options: Windows, thresholds, what to do.
        records: Of earlier steps, as `read_metrics` gives them, where a run is continued.
        state: What `state` gave after the last of these steps.
    """

    def __init__(
        self, options: MonitorOptions, records: Iterable[Mapping[str, Any]] = (), state: Mapping[str, Any] | None = None
    ) -> None:
        self.options = options
        self.losses: deque[float] = deque(maxlen=KEPT_WINDOWS * options.window)
        self.norms: deque[float] = deque(maxlen=options.window + 1)
        self.waits: deque[float] = deque(maxlen=options.window)
        self.seconds: deque[float] = deque(maxlen=options.window)
        self.busy: deque[Sequence[float]] = deque(maxlen=options.window)
        self.rows: list[int] = []
        self.heldout: dict[str, list[float]] = {}
        state = state or {}
        self.stage: tuple[str, dict[str, float]] = (str(state.get("stage", "")), dict(state.get("stage_began", {})))
        self.probes: tuple[str, dict[str, float]] = (str(state.get("probed", "")), dict(state.get("probes_began", {})))
        self.steps = 0
        self._told: set[tuple[str, str]] = {(str(kind), str(subject)) for kind, subject in state.get("told", ())}
        for record in records:
            if record["kind"] == "train":
                self._keep(record)
            elif record["kind"] == "heldout":
                self._keep_heldout({key: value for key, value in record.items() if key not in ("kind", "step")})

    def state(self) -> dict[str, Any]:
        """What the records do not say, as JSON values: the stage, what it began with, and what was told and stands."""
        return {
            "stage": self.stage[0],
            "stage_began": self.stage[1],
            "probed": self.probes[0],
            "probes_began": self.probes[1],
            "told": sorted(self._told),
        }

    def judge(self, loss: float, norm: float) -> Alert | None:
        """What speaks against applying a step: a value that is not finite, or a jump of one."""
        for name, value, history in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            sentence = detectors.not_finite(name, value)
            if sentence:
                return Alert("not_finite", name, sentence)
            recent = [*list(history)[-self.options.window :], value]
            # Norms of gradients have long tails.
            sigmas = self.options.sigmas * (1 if name == "loss" else 2)
            sentence = detectors.spike(name, recent, self.options.window, sigmas)
            if sentence:
                return Alert("spike", name, sentence)
        return None

    def step(self, record: Mapping[str, Any], busy: Sequence[float], rows: Sequence[int]) -> list[Alert]:
        """Takes the record of an applied step, what each rank worked in it and on how many rows; tells what is new."""
        self._keep(record)
        if list(rows) != self.rows:
            self.rows = list(rows)
            self.busy.clear()
        self.busy.append(list(busy))
        window, kinds = self.options.window, {"data_stall"}
        if len(self.busy) >= detectors.FEWEST:
            kinds.add("straggler")  # before that nobody can be said not to be one any more
        found = []
        if self.steps % window == 0:
            kinds.add("divergence")
            found.append(Alert("divergence", "loss", detectors.divergence(list(self.losses), window) or ""))
        waits = detectors.data_stall(list(self.waits), list(self.seconds))
        if detectors.data_stall(list(self.waits), list(self.seconds), CALM_SHARE):
            kinds.remove("data_stall")  # not over yet, where it was told
        found.append(Alert("data_stall", "data", waits or ""))
        slow = detectors.straggler(list(self.busy), self.rows)
        found += [Alert("straggler", f"rank {slow[0]}", slow[1])] if slow else []
        return self._news(found, kinds)

    def risen_for(self) -> int:
        """Steps since the end of the window whose losses were lowest, where the loss diverges."""
        return len(self.losses) - detectors.calmest(list(self.losses), self.options.window)[2]

    def measured(self, losses: Mapping[str, float], epochs: Mapping[str, float], stage: str) -> list[Alert]:
        """Takes held-out losses, how often each domain was passed, and the stage; tells what is new."""
        self._keep_heldout(losses)
        domains = {name: values for name, values in self.heldout.items() if name != "all"}
        found = [Alert("plateau", "all", detectors.plateau(self.heldout.get("all", [])) or "")]
        found += [Alert("stuck", name, sentence) for name, sentence in detectors.stuck_domains(domains).items()]
        for name, values in domains.items():
            found.append(Alert("overfit", name, detectors.overfit(name, values, epochs.get(name, 0.0)) or ""))
        if stage != self.stage[0]:
            before = self.stage
            self.stage = (stage, dict(losses))
            if before[1]:
                names = (f"stage {before[0]!r}'s beginning", "its end")
                found.append(Alert("no_better", before[0], detectors.no_better(before[1], losses, names) or ""))
        elif not self.stage[1]:
            self.stage = (stage, dict(losses))
        return self._news(found, {"plateau", "stuck", "overfit", "no_better"})

    def probed(self, shares: Mapping[str, float], stage: str) -> list[Alert]:
        """Takes the share of right answers of every probe, and the stage; tells of a stage that has taught nothing."""
        before, began = self.probes
        if stage == before and began:
            return []
        self.probes = (stage, dict(shares))
        names = (f"stage {before!r}'s beginning", "its end")
        sentence = detectors.no_wiser(began, shares, names)
        return [Alert("no_better", before, sentence)] if sentence else []

    def _news(self, found: Iterable[Alert], kinds: set[str]) -> list[Alert]:
        """The alerts that do not stand already; those of `kinds` that are not found any more are over."""
        alerts = [alert for alert in found if alert.sentence]
        standing = {(alert.kind, alert.subject) for alert in alerts}
        news = [alert for alert in alerts if (alert.kind, alert.subject) not in self._told]
        self._told = {told for told in self._told if told[0] not in kinds} | standing
        return news

    def _keep(self, record: Mapping[str, Any]) -> None:
        self.steps += 1
        self.losses.append(record["loss"])
        self.norms.append(record["grad_norm"])
        self.waits.append(record.get("data_wait", 0.0))
        self.seconds.append(record.get("seconds", 0.0))

    def _keep_heldout(self, losses: Mapping[str, float]) -> None:
        if set(losses) - set(self.heldout):
            self.heldout.pop("all", None)  # a mean over other domains is another curve
        for domain, loss in losses.items():
            self.heldout.setdefault(domain, []).append(loss)
