"""Decisions in the words of people: from the configuration and the command line to the ledger's values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aquila2.heurimentor.data.apportionment import UNITS, integer_weights
from aquila2.training.options import Options


class Decision(NamedTuple):
    """A decision as the ledger keeps it, and the completed step after which it holds (None: the next that ends)."""

    what: str
    value: Any
    after: int | None

    def __str__(self) -> str:
        if self.what == "mixture":
            shares = ", ".join(f"{name} {weight / UNITS:.1%}" for name, weight in self.value.items())
            said = f"the mixture is {shares}"
        elif self.what == "rate":
            said = f"the peak learning rate is {self.value:g}"
        elif self.what == "skip":
            first = f" from {self.value['first']} on" if "first" in self.value else ""
            said = f"{self.value['samples']} samples{first} are skipped"
        elif self.what == "stop":
            said = "the run saves and ends" + (f" ({self.value})" if isinstance(self.value, str) else "")
        elif self.what == "batch":
            said = f"a step has {self.value} samples"
        elif self.what == "open":
            said = f"{self.value['domain']} draws from {self.value['folder']}, {self.value['rows']} rows"
        elif self.what == "quarantine":
            said = f"{len(self.value['documents'])} documents of segment {self.value['segment']} do not count"
        else:
            said = f"the {self.what} is {self.value}"
        return f"{'after the next step' if self.after is None else f'after step {self.after}'}: {said}"


def config_decisions(options: Options) -> list[Decision]:
    """The decisions that a configuration plans for later steps, in the order of its list."""
    planned = []
    for entry in options.decisions:
        for key, read in KEYS.items():
            value = getattr(entry, key)
            if value is not None:
                planned.append(Decision(*read(value), entry.after))
    return planned


def parse_decisions(assignments: Sequence[str], after: int | None = None) -> list[Decision]:
    """Decisions from `key=value` texts: mixture=code:2,english:1 lr=3e-4 batch=16 stage=knowledge skip=512 stop=REASON.

    Raises:
        ValueError: An unknown key, or a value that cannot be.
    """
    decisions = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or key not in KEYS:
            known = ", ".join(f"{name}=..." for name in [*KEYS, "quarantine"])
            raise ValueError(f"a decision must be one of {known}, got {assignment!r}")
        value: Any = text
        if key == "mixture":
            value = _weights(text)
        elif key not in ("stage", "stop"):
            value = _number(key, text)
        decisions.append(Decision(*KEYS[key](value), after))
    return decisions


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for pair in text.split(","):
        name, separator, weight = pair.rpartition(":")
        if not separator or name in weights:
            raise ValueError(f"mixture must look like code:2,english:1, each domain once, got {text!r}")
        weights[name] = _number(f"mixture, {name},", weight)
    return weights


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{key} must be a number, got {text!r}") from None


def _whole(key: str, value: float) -> int:
    if not (math.isfinite(value) and value == int(value) and value >= 1):
        raise ValueError(f"{key} must be a whole number of samples from 1 on, got {value:g}")
    return int(value)


def _rate(value: float) -> tuple[str, float]:
    if not 0 <= value < math.inf:
        raise ValueError(f"lr must be finite and at least 0, got {value:g}")
    return "rate", float(value)


def _stage(value: str) -> tuple[str, str]:
    return "stage", str(value)


KEYS: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "mixture": lambda weights: ("mixture", integer_weights({name: float(w) for name, w in weights.items()})),
    "lr": _rate,
    "batch": lambda value: ("batch", _whole("batch", value)),
    "stage": _stage,
    "skip": lambda value: ("skip", {"samples": _whole("skip", value)}),
    "stop": lambda value: ("stop", str(value)),
}
