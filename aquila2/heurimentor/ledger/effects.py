"""What each kind of decision does to the order of a run."""

from __future__ import annotations

import math
from typing import Any

from aquila2.heurimentor.data.schedule import Schedule


class Effect:
    """What a kind of decision does to the order; the base class does nothing, and leaves the rest to the engine."""

    def check(self, value: Any) -> None:
        """Raises where the value cannot be right whatever the state is."""

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        """Changes the schedule from `sample` on, and returns the next sample that is free."""
        return sample


class _Open(Effect):
    def check(self, value: Any) -> None:
        for key in ("domain", "id", "folder"):
            if not isinstance(value[key], str):
                raise ValueError(f"{key} must be text, got {value[key]!r}")
        if int(value["rows"]) < 1:
            raise ValueError(f"rows must be at least 1, got {value['rows']}")

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        if any(segment.id == value["id"] for segment in schedule.segments):
            raise ValueError(f"the segment {value['id']} is open already; its documents would come twice")
        schedule.open(sample, value["domain"], value["id"], value["folder"], int(value["rows"]))
        return sample


class _Close(Effect):
    def check(self, value: Any) -> None:
        int(value["segment"])

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        schedule.close(sample, int(value["segment"]))
        return sample


class _Mixture(Effect):
    def check(self, value: Any) -> None:
        if not isinstance(value, dict) or not all(type(weight) is int for weight in value.values()):
            raise ValueError(f"a mixture must give domains integer weights, got {value!r}")

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        schedule.mix(sample, value)
        return sample


class _Skip(Effect):
    def check(self, value: Any) -> None:
        if int(value["samples"]) < 1:
            raise ValueError(f"samples must be at least 1, got {value['samples']}")

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        schedule.skip(sample, int(value["samples"]))
        return sample + int(value["samples"])


class _Quarantine(Effect):
    def check(self, value: Any) -> None:
        if int(value["segment"]) < 0 or not all(type(number) is int for number in value["documents"]):
            raise ValueError(f"documents must be numbers of documents, got {value['documents']!r}")

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        schedule.quarantine(sample, int(value["segment"]), value["documents"])
        return sample


class _Rate(Effect):
    def check(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"a rate must be finite and at least 0, got {value!r}")


class _Batch(Effect):
    def check(self, value: Any) -> None:
        if type(value) is not int or value < 1:
            raise ValueError(f"a batch must be at least 1 sample, got {value!r}")


class _Stage(Effect):
    def check(self, value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"a stage must be a name, got {value!r}")


EFFECTS: dict[str, Effect] = {
    "open": _Open(),
    "close": _Close(),
    "mixture": _Mixture(),
    "skip": _Skip(),
    "quarantine": _Quarantine(),
    "rate": _Rate(),
    "stage": _Stage(),
    "batch": _Batch(),
    "ranks": Effect(),
    "stop": Effect(),
}
