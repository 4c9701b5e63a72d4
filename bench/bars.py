"""The speeds this project promises itself, as data: the report checks each against what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.timing import geometric_mean

Row = dict[str, Any]

# The share of the processor from which on other processes make a measurement doubtful.
BUSY = 0.1


@dataclass(frozen=True)
class Bar:
    """One line of the list. `value_of(row)` gives a row's number; rows where it gives None do not count."""

    what: str
    suite: str
    op: str  # ">=" or "<="
    bound: float
    value_of: Callable[[Row], float | None]
    over: str = "geometric mean"  # or "worst case"
    against: str = "program"  # or "machine", whose rates are the measure, or "ours": two functions of this library


@dataclass(frozen=True)
class Verdict:
    bar: Bar
    measured: float
    worst: float
    worst_shape: str
    rows: int
    # The share that other processes had of the processor: where the worst row misses a bar, beside that row, which says
    # no whatever the others are; else the largest of all rows.
    others_cpu: float

    @property
    def decisive(self) -> float:
        return self.worst if self.bar.over == "worst case" else self.measured

    @property
    def met(self) -> bool:
        return self.decisive >= self.bar.bound if self.bar.op == ">=" else self.decisive <= self.bar.bound

    @property
    def in_words(self) -> str:
        if self.others_cpu > BUSY:
            return f"doubtful: other processes took {100 * self.others_cpu:.0f} %"
        return "yes" if self.met else "NO"


def judge(bar: Bar, rows: Sequence[Row]) -> Verdict | None:
    """Compares a bar with the rows of its suite; None where nothing was measured for it."""
    values = []
    for row in rows:
        value = bar.value_of(row) if row["suite"] == bar.suite else None
        if value is not None and math.isfinite(value):
            values.append((value, f"{row['class']}, {row['shape']}", float(row.get("others_cpu", 0.0))))
    if not values:
        return None
    worst, shape, beside_worst = min(values) if bar.op == ">=" else max(values)
    busiest = max(others for _, _, others in values)
    mean = geometric_mean([value for value, _, _ in values])
    verdict = Verdict(bar, mean, worst, shape, len(values), busiest)
    return verdict if verdict.met or bar.over != "worst case" else replace(verdict, others_cpu=beside_worst)


# ------------------------------------------------------------------------------------------ what is read from a row


def _of(row: Row, peer: str, field: str) -> float | None:
    value = row["peers"].get(peer, {}).get(field)
    return None if value is None else float(value)


def faster_than(peer: str, class_: str = "", shape: str = "") -> Callable[[Row], float | None]:
    """The peer's time over ours."""
    return lambda row: _of(row, peer, "times_ours") if class_ in row["class"] and shape in row["shape"] else None


def time_against(peer: str, class_: str = "", shape: str = "") -> Callable[[Row], float | None]:
    """Our time over the peer's."""

    def value(row: Row) -> float | None:
        ratio = _of(row, peer, "times_ours") if class_ in row["class"] and shape in row["shape"] else None
        return None if ratio is None else 1.0 / ratio

    return value


def share_of(probe: str, class_: str = "", shape: str = "") -> Callable[[Row], float | None]:
    """Our rate as a share of a probe's, in the same rounds."""
    return lambda row: _of(row, probe, "share") if class_ in row["class"] and shape in row["shape"] else None


def extra_memory_against(peer: str, shape: str) -> Callable[[Row], float | None]:
    """What we add to the process's memory over what the peer adds."""

    def value(row: Row) -> float | None:
        extra = row.get("extra_bytes", {})
        if shape not in row["shape"] or not extra.get(peer) or not extra.get("ours"):
            return None
        return float(extra["ours"]) / float(extra[peer])

    return value


# ------------------------------------------------------------------------------------------------------------- bars

SDPA = "torch SDPA"


def _attention() -> list[Bar]:
    bars = []
    of_forward: tuple[float, ...] = (1.35, 1.9, 1.4, 2.0)
    of_backward: tuple[float, ...] = (1.4, 1.9, 4.2, 5.8)
    for suite, bounds, lowest in (
        ("attention forward", of_forward, 1.2),
        ("attention forward, torch's layout", of_forward, 1.2),
        ("attention backward", of_backward, 1.05),
        ("attention backward, torch's layout", of_backward[:2], 1.05),
    ):
        for class_, bound in zip(("fp32 full", "fp32 causal", "bf16 full", "bf16 causal"), bounds, strict=False):
            bars.append(Bar(f"{suite}, {class_}, against torch", suite, ">=", bound, faster_than(SDPA, class_)))
        bars.append(Bar(f"{suite}, every case, against torch", suite, ">=", lowest, faster_than(SDPA), "worst case"))
    forward = "attention forward"
    for mask, bound in (("full", 0.95), ("causal", 0.90)):
        what = f"{forward}, S 2048 {mask}, rate against sgemm"
        bars.append(Bar(what, forward, ">=", bound, share_of("sgemm", mask, "S 2048"), against="machine"))
    backward = "attention backward"
    what = f"{backward}, bf16 against our fp32"
    bars.append(Bar(what, backward, ">=", 1.0, faster_than("our fp32"), against="ours"))
    return bars


def _norm_and_activation() -> list[Bar]:
    compiled, a_copy = "torch.compile", "time of a copy into a kept buffer"
    bars = []

    def at_most_copies(suite: str, bound: float) -> Bar:
        return Bar(f"{suite}, {a_copy}", suite, "<=", bound, time_against("copy"), "worst case", "machine")

    for suite, copies, compiles in (("rms_norm forward", 1.3, 1.1), ("rms_norm forward+backward", 1.6, 2.5)):
        bars.append(at_most_copies(suite, copies))
        bars.append(Bar(f"{suite}, against {compiled}", suite, ">=", compiles, faster_than(compiled), "worst case"))
    for suite in ("swiglu forward", "swiglu backward"):
        bars.append(at_most_copies(suite, 1.3))
        bars.append(
            Bar(f"{suite}, bf16, against {compiled}", suite, ">=", 1.5, faster_than(compiled, "bf16"), "worst case")
        )
    return bars


def _loss() -> list[Bar]:
    suite, shape = "linear cross-entropy", "x 100000"
    bars = [
        Bar(
            f"{suite}, extra memory against torch eager", suite, "<=", 0.125, extra_memory_against("torch eager", shape)
        )
    ]
    for peer, name, bound in (
        ("torch eager", "torch eager", 1.05),
        ("F.linear_cross_entropy", "torch's own", 1.0),
    ):
        bars.append(Bar(f"{suite}, time against {name}", suite, "<=", bound, time_against(peer, shape=shape)))
    return bars


def _decode() -> list[Bar]:
    suite = "decode"
    bars = []
    for dtype, share in (("fp32", 0.85), ("bf16", 0.80)):
        what = f"{suite}, {dtype}, context 8192, share of the read bandwidth"
        bars.append(Bar(what, suite, ">=", share, share_of("read", dtype, "context 8192"), "worst case", "machine"))
    for peer in (SDPA, "rows as queries", "onnxruntime"):
        for class_, shape, bound in (("", "8192", 1.5), ("fp32", "1024", 1.3), ("bf16", "1024", 2.0)):
            what = ", ".join(part for part in (suite, class_, f"context {shape}", f"against {peer}") if part)
            bars.append(Bar(what, suite, ">=", bound, faster_than(peer, class_, f"context {shape}"), "worst case"))
    paged = "decode, paged"
    bars.append(Bar(f"{paged}, time of contiguous", paged, "<=", 1.1, time_against("contiguous"), "worst case", "ours"))
    return bars


def _piecewise() -> list[Bar]:
    plain, two_calls = time_against("our plain attention"), faster_than("two calls merged")
    bars = []
    for suite, bound in (("piecewise forward", 1.06), ("piecewise backward", 1.12)):
        bars.append(Bar(f"{suite}, time of plain", suite, "<=", bound, plain, against="ours"))
    for suite, bound in (("piecewise forward", 1.05), ("piecewise backward", 1.15)):
        bars.append(Bar(f"{suite}, against two calls", suite, ">=", bound, two_calls, against="ours"))
    return bars


def _one_head() -> list[Bar]:
    one = faster_than("one thread")
    return [
        Bar(f"{suite}, two threads against one", suite, ">=", 1.8, one, against="ours")
        for suite in ("one head forward", "one head backward")
    ]


BARS: tuple[Bar, ...] = (
    *_attention(),
    *_decode(),
    Bar(
        "short sequences forward, against torch", "short sequences forward", ">=", 2.0, faster_than(SDPA), "worst case"
    ),
    Bar(
        "short sequences backward, against torch",
        "short sequences backward",
        ">=",
        2.5,
        faster_than(SDPA),
        "worst case",
    ),
    *_piecewise(),
    Bar("padding mask forward, against torch", "masked forward", ">=", 1.3, faster_than(SDPA, "padding"), "worst case"),
    *_one_head(),
    *_norm_and_activation(),
    *_loss(),
    Bar("training step, against HF Llama eager", "training step", ">=", 1.25, faster_than("HF Llama eager")),
    Bar("training step, against HF Llama compiled", "training step", ">=", 1.0, faster_than("HF Llama compiled")),
    Bar(
        "integration training step, against HF Llama SDPA",
        "integration training step",
        ">=",
        1.1,
        faster_than("HF Llama SDPA"),
    ),
    Bar(
        "integration generation, against HF Llama SDPA",
        "integration generation",
        ">=",
        1.5,
        faster_than("HF Llama SDPA", shape="new 32"),
    ),
)
