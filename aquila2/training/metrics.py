"""What a run measures: a JSON line per step, TensorBoard beside it, losses on held-out rows."""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aquila2.atomic import atomic_write, fsync_path
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.monitor.intervals import Estimate, ratio
from aquila2.model import IGNORE_INDEX, Aquila2ForCausalLM
from aquila2.training.data import Batch
from aquila2.training.finite import finite, numbers

CHECKED = re.compile(rb', "crc32": "([0-9a-f]{8})"}$')


class MetricsLog:
    """Appends one JSON object per record to `metrics.jsonl`, and scalars to TensorBoard where it is wanted.

    The last member of a line is the CRC-32 of what stands before it. Lines that are not as they were written are left
    out when the file is opened, told, and kept beside it. JSON has no numbers that are not finite: they are written as
    the texts "nan", "inf" and "-inf", and `read_metrics` makes numbers of them again.

    Args:
        folder: The run's folder.
        last_step: Continue after this step; records of later steps, which a crash has undone, are removed. -1 begins
            anew.
        tensorboard: Also write event files.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, last_step: int, tensorboard: bool) -> None:
        self.folder, self.path, self.tensorboard = folder, folder / "metrics.jsonl", tensorboard
        self._open(last_step)

    def _open(self, last_step: int) -> None:
        records, broken = _split(self.path)
        if broken:
            aside = self.path.with_name(f"{self.path.name}.broken-{zlib.crc32(broken):08x}")
            atomic_write(aside, broken)
            lines = broken.count(b"\n")
            print(
                f"{self.path}: {lines} lines are not as they were written; {aside.name} keeps them",
                file=sys.stderr,
                flush=True,
            )
        atomic_write(self.path, "".join(_line(record) for record in records if record["step"] <= last_step))
        self._file = self.path.open("a", encoding="utf-8")
        self._writer: Any = None
        if self.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ModuleNotFoundError(
                    "tensorboard is not installed; install it (pip install tensorboard) or set run.tensorboard=false"
                ) from error
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=last_step + 1)

    def go_back(self, last_step: int) -> None:
        """Removes the records of later steps, which are undone."""
        self.close()
        self._open(last_step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one record; numbers in it also become scalars named kind/key."""
        self._file.write(_line({"kind": kind, "step": step, **values}))
        self._file.flush()
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{kind}/{key}", value, step)

    def sync(self) -> None:
        """Forces all records to the disk: a monitor that looks back decides by them."""
        fsync_path(self.path)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; lines that are not as they were written, or that a crash has cut off, are left out."""
    return _split(folder / "metrics.jsonl")[0]


def _line(record: Mapping[str, Any]) -> str:
    body = json.dumps(finite(record), allow_nan=False)
    return f'{body[:-1]}, "crc32": "{zlib.crc32(body.encode()):08x}"}}\n'


def _split(path: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The records of a file, and its other lines."""
    records: list[dict[str, Any]] = []
    broken = b""
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        record = _record(line)
        if record is not None:
            records.append(record)
        elif line:
            broken += line + b"\n"
    return records, broken


def _record(line: bytes) -> dict[str, Any] | None:
    checked = CHECKED.search(line)
    body = line[: checked.start()] + b"}" if checked else line
    if checked and int(checked[1], 16) != zlib.crc32(body):
        return None
    try:
        record = json.loads(body)
    except ValueError:
        return None
    # A line without a sum is one that other programs wrote, or whose sum was hit.
    whole = isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int
    if not whole:
        return None
    return record if record["kind"] == "alert" else numbers(record)  # an alert's texts are texts


@torch.no_grad()
def heldout_loss(
    model: Aquila2ForCausalLM,
    batches: Mapping[str, Sequence[Batch]],
    device: torch.device,
    bf16: bool = False,
    world: World | None = None,
) -> dict[str, Estimate]:
    """Mean cross-entropy per target of every domain with its interval, and under "all" the mean over domains.

    Intervals take raw records as what was drawn: their tokens are alike, wherever they stand. Ranks share the batches,
    and sums are exact, so that the number of ranks changes no bit. All go through the model equally often, as those
    that share its weights have to: who has no batch left takes the last one, which then does not count.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    parts = [(domain, part) for domain, several in batches.items() for part in several]
    mine: list[list[tuple[str, float, int]]] = []
    for first in range(0, len(parts), world.size):
        index = first + world.rank
        part = parts[min(index, len(parts) - 1)][1]
        batch = part.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = model.loss(
                batch.input_ids,
                batch.targets,
                cu_seqlens=batch.cu_seqlens,
                max_seqlen=batch.max_seqlen,
                reduction="none",
            )
        if index < len(parts):
            mine.append(_sums(part, losses.double().cpu(), f"batch {index}"))
    model.train(was_training)
    everybody = world.gather(mine)
    records: dict[str, dict[str, list[tuple[float, int]]]] = {domain: {} for domain in batches}
    for index, (domain, _) in enumerate(parts):
        for name, total, count in everybody[index % world.size][index // world.size]:
            records[domain].setdefault(name, []).append((total, count))
    found = {}
    for domain, several in records.items():
        sums = [math.fsum(total for total, _ in entries) for entries in several.values()]
        found[domain] = ratio(sums, [sum(count for _, count in entries) for entries in several.values()])
    mean = sum(estimate.mean for estimate in found.values()) / len(found)
    half = math.sqrt(sum(estimate.half**2 for estimate in found.values())) / len(found)
    return {**found, "all": Estimate(mean, half)}


def _sums(batch: Batch, losses: torch.Tensor, name: str) -> list[tuple[str, float, int]]:
    """Loss and targets of every record in every row; a row whose records are not known is one."""
    counted = batch.targets != IGNORE_INDEX
    whole = [[(f"{name}, row {row}", 0, losses.shape[1])] for row in range(len(losses))]
    return [
        (record, float(losses[row, start:end].sum()), int(counted[row, start:end].sum()))
        for row, records in enumerate(batch.records or whole)
        for record, start, end in records
    ]
