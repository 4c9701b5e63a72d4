"""The ledger of a run as its trainer writes it: plan a step, commit it, decide, resume."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aquila2.heurimentor.data.apportionment import integer_weights
from aquila2.heurimentor.data.schedule import Draws
from aquila2.heurimentor.data.segment import Segment
from aquila2.heurimentor.ledger.chain import ChainFile, Line
from aquila2.heurimentor.ledger.lineage import FORMAT, BadRecord, Head, Lineage

NAME = "ledger.jsonl"


class Book:
    """The open ledger of a run; one process has it, the others are told what it says.

    Args:
        folder: The run's folder.
        head: What the checkpoint that training goes on from knows of the ledger; None starts at step 0.
        cause: Why the run is taken over: "crash", "stop", "resize" or "rewind"; None: "stop" where the lineage
            ends with the checkpoint's step, else "crash".

    Raises:
        Tampered, BadRecord: The ledger is not what was once written, or says what cannot be.
        ValueError: The checkpoint does not belong to the lineage.
        BlockingIOError: Another process has the ledger open.
        FileNotFoundError: The folder has no ledger.

    Attributes:
        cut: Bytes of a torn tail that were cut when it was opened.
        answered: Requests that were entered, by name and hash of the file, and perhaps not removed.
    """

    def __init__(self, folder: Path | str, head: Head | None = None, cause: str | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / NAME).is_file():
            raise FileNotFoundError(f"{self.folder} has no {NAME}")
        self._file = ChainFile(self.folder / NAME, head.offset if head else 0)
        try:
            self.lineage = Lineage.of(self._file.lines)
            self.answered = set(self.lineage.requests)
            self.cut = self._file.cut
            self._file.lines.clear()
            if not self.lineage.genesis:
                raise BadRecord(f"{self.folder / NAME} has no line; remove it and start the run anew")
            reason = self.lineage.objection(head) if head else None
            if reason:
                raise ValueError(f"the checkpoint of step {head.step if head else 0} does not fit: {reason}")
            step = head.step if head else 0
            cause = cause or ("stop" if head and step == self.lineage.step else "crash")
            record = {"kind": "resume", "step": step, "onto": self.lineage.chain_of(step), "cause": cause}
            if self._file.cut:
                record["cut"] = self._file.cut
            self._append(record, sync=True)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(
        cls, folder: Path | str, *, seed: int, row_tokens: int, settings: Mapping[str, Any] | None = None
    ) -> Book:
        """Starts the ledger of a new run.

        Args:
            folder: The run's folder.
            seed: Of the order.
            row_tokens: Tokens of a row.
            settings: JSON values to keep with the run's beginning, such as its configuration.

        Raises:
            FileExistsError: The folder has a ledger with lines.
        """
        path = Path(folder) / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        book = cls.__new__(cls)
        book.folder, book.lineage, book._file = Path(folder), Lineage(), ChainFile(path)
        book.answered, book.cut = set(), 0
        if book._file.lines:
            book._file.close()
            raise FileExistsError(f"{path} is the ledger of another run")
        genesis = {"kind": "genesis", "format": FORMAT, "seed": seed, "row_tokens": row_tokens}
        book._append({**genesis, "settings": dict(settings or {})}, sync=True)
        return book

    @property
    def head(self) -> Head:
        """What a checkpoint of this moment has to keep. Call `sync` before the checkpoint is committed."""
        return Head(self.lineage.step, self._file.chain, self._file.end)

    def plan(self, count: int) -> Draws:
        """The rows of the next step of `count` samples."""
        return self.lineage.schedule.draws(self.lineage.samples, count)

    def commit(self, count: int, digest: int, values: Mapping[str, float] | None = None) -> Line:
        """Writes that the next step was taken, on every rank.

        Args:
            count: Samples of the step.
            digest: The sum of `row_digest` over its samples, modulo 2^64.
            values: What was measured.
        """
        first = self.lineage.samples
        record = {
            "kind": "step",
            "step": self.lineage.step + 1,
            "first": first,
            "count": count,
            "drawn": self.lineage.drawn(first, count),
            "digest": f"{digest % (1 << 64):016x}",
            "values": {key: _number(value) for key, value in (values or {}).items()},
        }
        return self._append(record)

    def decide(
        self,
        what: str,
        value: Any,
        *,
        after: int | None = None,
        by: str = "config",
        request: str | None = None,
        content: str | None = None,
    ) -> Line:
        """Enters a decision, on the disk before it returns.

        Args:
            what: A kind of decision.
            value: Its value.
            after: The completed step after which it takes effect; the present one unless told.
            by: Who took it.
            request: The name of the request it answers.
            content: The hash of that request's file.

        Raises:
            BadRecord: It cannot be, now or together with those that are entered for later.
        """
        record = {
            "kind": "decision",
            "after": self.lineage.step if after is None else after,
            "what": what,
            "value": value,
            "by": by,
        }
        if request is not None:
            record["request"] = request
        if content is not None:
            record["content"] = content
        self.lineage.rehearse(record)
        return self._append(record, sync=True)

    def open_segment(self, domain: str, folder: Path | str, *, after: int | None = None, by: str = "config") -> Line:
        """Decides to draw from a segment. The folder is kept relative to the run's where it lies inside."""
        path = Path(folder)
        segment = Segment(path)
        inside = path.resolve().is_relative_to(self.folder.resolve())
        place = path.resolve().relative_to(self.folder.resolve()) if inside else path.resolve()
        rows = segment.num_rows(self.lineage.row_tokens)
        value = {"domain": domain, "id": segment.id, "folder": str(place), "rows": rows}
        return self.decide("open", value, after=after, by=by)

    def mix(self, weights: Mapping[str, float], *, after: int | None = None, by: str = "config") -> Line:
        """Decides on a mixture; weights are brought to integers here, once and for all."""
        return self.decide("mixture", integer_weights(weights), after=after, by=by)

    def set_ranks(self, shares: Sequence[int]) -> Line:
        """Writes how the ranks share a step from now on."""
        return self._append({"kind": "ranks", "shares": list(shares)})

    def rewind(self, step: int, head: Head | None = None) -> Line:
        """Goes back to a step; what the monitor or a policy has decided since then falls, what people decided stays.

        Args:
            step: The step.
            head: What the checkpoint of that step knows of the ledger; decisions that it has seen stay all.
        """
        record = {"kind": "resume", "step": step, "onto": self.lineage.chain_of(step), "cause": "rewind"}
        if head is not None:
            record["head"] = head.chain
        return self._append(record, sync=True)

    def sync(self) -> None:
        """Forces all lines to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Syncs, and lets others open the ledger."""
        self._file.close()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, record: Mapping[str, Any], sync: bool = False) -> Line:
        line = self._file.append(record)
        if sync:
            self._file.sync()
        self.lineage.feed(line)
        return line


def row_digest(sample: int, ids: npt.NDArray[np.int64]) -> int:
    """A 64-bit hash of a sample's number and token ids; sums of them do not depend on who adds which rows.

    Args:
        sample: Global sample number.
        ids: (S,) integers.
    """
    content = sample.to_bytes(8, "little") + np.ascontiguousarray(ids, dtype="<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def share_out(count: int, shares: Sequence[int]) -> list[range]:
    """Which samples of a step each rank takes: consecutive runs in proportion to shares, all of them together once.

    Args:
        count: Samples of the step.
        shares: One non-negative number per rank.
    """
    total = sum(shares)
    if total < 1 or min(shares) < 0:
        raise ValueError(f"shares must not be negative and sum to at least 1, got {list(shares)}")
    bounds = [0]
    for i in range(len(shares)):
        bounds.append((count * sum(shares[: i + 1]) + total // 2) // total)
    return [range(first, end) for first, end in zip(bounds, [*bounds[1:]], strict=False)]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))
