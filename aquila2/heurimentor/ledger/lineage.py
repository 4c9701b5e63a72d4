"""What a ledger's lines say: the steps that the present weights stand on, and the order that decisions have made."""

from __future__ import annotations

import copy
import json
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from aquila2.heurimentor.data.schedule import Schedule
from aquila2.heurimentor.ledger.chain import Line
from aquila2.heurimentor.ledger.effects import EFFECTS

FORMAT = 1
CAUSES = ("crash", "resize", "rewind", "stop")
OWN = ("monitor", "policy")  # in whose names, or "NAME: why", a run decides by itself


class BadRecord(ValueError):
    """A record says what cannot be."""


class Step(NamedTuple):
    """A step: its number, its first sample and how many, the number of its line and that line's chain value."""

    number: int
    first: int
    samples: int
    line: int
    chain: str

    @property
    def end(self) -> int:
        """The sample after its last."""
        return self.first + self.samples


@dataclass(frozen=True)
class Head:
    """How far a ledger was when something was saved: a step, and chain value and offset after the last line."""

    step: int
    chain: str
    offset: int

    def facts(self) -> dict[str, Any]:
        """As JSON values, for a manifest."""
        return {"step": self.step, "chain": self.chain, "offset": self.offset}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Head:
        """From what `facts` gave."""
        return cls(int(facts["step"]), str(facts["chain"]), int(facts["offset"]))


@dataclass
class Lineage:
    """Reads records one after the other; refuses one that cannot follow those before it.

    Attributes:
        genesis: The first record.
        steps: The steps of the lineage; steps[i] has the number i + 1.
        undone: Steps that a resume has cut off.
        resumes: The resume lines.
        samples: The first global sample number that is not taken.
        applied: Decisions in force, with the sample from which each holds.
        pending: Decisions for later steps.
        schedule: The order that the applied decisions have made.
        ranks: The shares of the ranks.
        requests: Names of requests that decisions have answered, undone ones too, and the hashes of their files.
    """

    genesis: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    undone: list[Step] = field(default_factory=list)
    resumes: list[Line] = field(default_factory=list)
    samples: int = 0
    applied: list[tuple[Line, int]] = field(default_factory=list)
    pending: list[Line] = field(default_factory=list)
    schedule: Schedule = field(default_factory=lambda: Schedule(0))
    ranks: list[int] = field(default_factory=lambda: [1])
    requests: set[tuple[str, str]] = field(default_factory=set)
    _chains: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Lineage:
        """The lineage that lines lead to."""
        lineage = cls()
        for line in lines:
            lineage.feed(line)
        return lineage

    @property
    def step(self) -> int:
        """Completed steps."""
        return len(self.steps)

    @property
    def row_tokens(self) -> int:
        """Tokens of a row."""
        return int(self.genesis["row_tokens"])

    def feed(self, line: Line) -> None:
        """Takes the next line.

        Raises:
            BadRecord: Names the line and what is wrong with it; the lineage is of no use then.
        """
        kind = line.record.get("kind")
        readers = {
            "genesis": self._genesis,
            "decision": self._decision,
            "step": self._step,
            "ranks": self._ranks,
            "resume": self._resume,
        }
        try:
            if (kind == "genesis") != (line.number == 0):
                raise ValueError(f"a ledger has one genesis, its first line, got {kind!r}")
            if kind not in readers:
                raise ValueError(f"kind must be one of {', '.join(readers)}, got {kind!r}")
            readers[kind](line)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise BadRecord(f"ledger line {line.number + 1} ({kind}): {reason}") from None
        self._chains[line.chain] = line.number

    def chain_of(self, step: int) -> str:
        """The chain value of the line of a step of the lineage; of the genesis for step 0."""
        return self.steps[step - 1].chain if step else str(self.genesis["chain"])

    def objection(self, head: Head) -> str | None:
        """Why something saved at `head` does not belong to this lineage, None if it does."""
        number = self._chains.get(head.chain)
        if number is None:
            return "the ledger has no such line"
        if head.step > self.step:
            return f"step {head.step} was undone, the ledger stands at step {self.step}"
        if head.step and self.steps[head.step - 1].line > number:
            return f"its step {head.step} was undone and taken again"
        return None

    def step_of(self, sample: int) -> Step | None:
        """The step of the lineage that trained a sample; None where it was skipped or is still to come."""
        index = bisect_right(self.steps, sample, key=lambda step: step.first) - 1
        return self.steps[index] if index >= 0 and sample < self.steps[index].end else None

    @property
    def room(self) -> int | None:
        """Samples before the next one of which it was decided that it is skipped; None where there is none."""
        firsts = [first for line in self.pending if (first := _first_skipped(line)) is not None]
        return max(min(firsts) - self.samples, 0) if firsts else None

    def drawn(self, first: int, count: int) -> list[list[int]]:
        """[segment, from, to] for every segment that the samples [first, first + count) draw from."""
        before, after = self.schedule.counts(first), self.schedule.counts(first + count)
        return [[i, a, b] for i, (a, b) in enumerate(zip(before, after, strict=True)) if b > a]

    def rehearse(self, *records: Mapping[str, Any]) -> None:
        """Tries decisions one after the other, and all that wait for later steps behind them, on a copy.

        Raises:
            BadRecord: One cannot be taken, or one that waits could not be taken any more.
        """
        trial = replace(
            self,
            applied=list(self.applied),
            pending=list(self.pending),
            schedule=copy.deepcopy(self.schedule),
            requests=set(self.requests),
        )
        record: Mapping[str, Any] = {"what": "pending"}
        try:
            for place, record in enumerate(records):
                json.dumps(dict(record), ensure_ascii=False).encode()  # half a surrogate pair is no text
                trial._decision(Line(sys.maxsize - len(records) + place, 0, "", dict(record)))
            for line in sorted(trial.pending, key=lambda entry: (entry.record["after"], entry.number)):
                trial._apply(line)
        except Exception as error:  # whatever is wrong with it, it is wrong before it is written
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise BadRecord(f"the decision {record['what']!r} cannot be taken: {reason}") from None

    def _genesis(self, line: Line) -> None:
        record = line.record
        if record["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT}, got {record['format']!r}")
        if int(record["row_tokens"]) < 1:
            raise ValueError(f"row_tokens must be at least 1, got {record['row_tokens']}")
        self.schedule = Schedule(int(record["seed"]))
        self.genesis = {**record, "chain": line.chain}

    def _decision(self, line: Line) -> None:
        after = line.record["after"]
        if type(after) is not int:
            raise ValueError(f"after must be the number of a completed step, got {after!r}")
        if after < self.step:
            raise ValueError(f"it takes effect after step {after}, and step {self.step} is done")
        if line.record["what"] not in EFFECTS:
            raise ValueError(f"what must be one of {', '.join(EFFECTS)}, got {line.record['what']!r}")
        EFFECTS[line.record["what"]].check(line.record["value"])
        if after == self.step:
            self._take([line])
        elif _first_skipped(line) is not None:
            raise ValueError("a skip that names its first sample waits for that one, and takes no later step")
        else:
            self.pending.append(line)
        if "request" in line.record:
            self.requests.add((str(line.record["request"]), str(line.record.get("content", ""))))

    def _step(self, line: Line) -> None:
        record = line.record
        step = Step(int(record["step"]), int(record["first"]), int(record["count"]), line.number, line.chain)
        if (step.number, step.first) != (self.step + 1, self.samples):
            raise ValueError(
                f"step {step.number} at sample {step.first} follows step {self.step} that ended before {self.samples}"
            )
        if step.samples < 1:
            raise ValueError(f"count must be at least 1, got {step.samples}")
        if self.room is not None and step.samples > self.room:
            raise ValueError(f"step {step.number} has {step.samples} samples, and the one after {self.room} is skipped")
        self._extend(step)

    def _extend(self, step: Step) -> None:
        self.steps.append(step)
        self.samples = step.end
        due = [line for line in self.pending if line.record["after"] == self.step]
        self.pending = [line for line in self.pending if line.record["after"] != self.step]
        self._skip_reached()
        self._take(due)

    def _ranks(self, line: Line) -> None:
        shares = [int(share) for share in line.record["shares"]]
        if not shares or min(shares) < 0 or not any(shares):
            raise ValueError(f"shares must be numbers of samples per rank, got {shares}")
        self.ranks = shares

    def _take(self, due: Iterable[Line]) -> None:
        """Applies decisions in their order; a skip whose samples are still to come waits for them."""
        for line in due:
            first = _first_skipped(line)
            if first is not None and first > self.samples:
                self.pending.append(line)
            else:
                self._apply(line)
                self._skip_reached()

    def _skip_reached(self) -> None:
        """Applies the skips that have waited for the present sample, at once: whatever is decided later comes later."""
        while self.room == 0:
            line = min((line for line in self.pending if _first_skipped(line) is not None), key=_skip_order)
            self.pending.remove(line)
            self._apply(line)

    def _apply(self, line: Line) -> None:
        effect = EFFECTS[line.record["what"]]
        effect.check(line.record["value"])
        self.samples = effect.apply(self.schedule, self.samples, line.record["value"])
        self.applied.append((line, self.samples))

    def _resume(self, line: Line) -> None:
        record = line.record
        step, cause = int(record["step"]), record["cause"]
        if cause not in CAUSES:
            raise ValueError(f"cause must be one of {', '.join(CAUSES)}, got {cause!r}")
        if not 0 <= step <= self.step:
            raise ValueError(f"it goes on from step {step}, and the lineage has {self.step} steps")
        if record["onto"] != self.chain_of(step):
            raise ValueError(f"it names another step {step} than the lineage has")
        self.resumes.append(line)
        if step == self.step:
            return
        at = self.steps[step - 1].line if step else self.steps[0].line
        if "head" in record:
            at = self._chains[record["head"]] + 1
        decisions = [entry for entry, _ in self.applied] + self.pending
        if cause == "rewind":
            # What the run itself decided since falls with the steps that it was about; what people decided stays.
            decisions = [entry for entry in decisions if entry.number < at or not _is_own(entry)]
        kept, cut = self.steps[:step], self.steps[step:]
        self.undone += cut
        self._rebuild(kept, sorted(decisions, key=lambda entry: entry.number))

    def _rebuild(self, steps: list[Step], decisions: list[Line]) -> None:
        self.schedule = Schedule(self.schedule.seed)
        self.steps, self.samples, self.applied = [], 0, []
        self.pending = [line for line in decisions if line.record["after"]]
        self._take([line for line in decisions if not line.record["after"]])
        for step in steps:
            self._extend(step)


def _is_own(line: Line) -> bool:
    """Whether the run took the decision; nobody who asked for it, whatever name he goes by."""
    return "request" not in line.record and str(line.record["by"]).partition(":")[0] in OWN


def _first_skipped(line: Line) -> int | None:
    """The sample at which a decision skips, where it names one."""
    return line.record["value"].get("first") if line.record["what"] == "skip" else None


def _skip_order(line: Line) -> tuple[int, int]:
    return int(line.record["value"]["first"]), line.number
