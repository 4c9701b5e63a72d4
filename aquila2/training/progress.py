"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass, field

from aquila2.heurimentor.monitor.intervals import Estimate


@dataclass
class Progress:
    """Where a run stands; samples are those of the stream, skipped ones included."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    heldout: dict[str, Estimate] = field(default_factory=dict)
