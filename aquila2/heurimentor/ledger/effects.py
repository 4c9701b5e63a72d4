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
        _whole("rows", value["rows"], 1)

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        if any(segment.id == value["id"] for segment in schedule.segments):
            raise ValueError(f"the segment {value['id']} is open already; its documents would come twice")
        schedule.open(sample, value["domain"], value["id"], value["folder"], int(value["rows"]))
        return sample


class _Close(Effect):
    def check(self, value: Any) -> None:
        _whole("segment", value["segment"], 0)

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
    """Samples from the present one on; with `first`, these samples and no others, wherever the steps then stand."""

    def check(self, value: Any) -> None:
        _whole("samples", value["samples"], 1)
        if "first" in value:
            _whole("first", value["first"], 0)

    def apply(self, schedule: Schedule, sample: int, value: Any) -> int:
        left = value.get("first", sample) + value["samples"] - sample
        if left > 0:
            schedule.skip(sample, left)
        return sample + max(left, 0)


class _Quarantine(Effect):
    def check(self, value: Any) -> None:
        _whole("segment", value["segment"], 0)
        if not all(type(number) is int for number in value["documents"]):
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


class _Stop(Effect):
    def check(self, value: Any) -> None:
        if value is not True and not isinstance(value, str):
            raise ValueError(f"a stop must give its reason, or true, got {value!r}")


class _Ranks(Effect):
    def check(self, value: Any) -> None:
        raise ValueError("the number of ranks is what torchrun starts, and cannot be decided on while they are at work")


def _whole(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be at least {least}, and a whole number, got {value!r}")


EFFECTS: dict[str, Effect] = {
    "open": _Open(),
    "close": _Close(),
    "mixture": _Mixture(),
    "skip": _Skip(),
    "quarantine": _Quarantine(),
    "rate": _Rate(),
    "stage": _Stage(),
    "batch": _Batch(),
    "ranks": _Ranks(),
    "stop": _Stop(),
}
