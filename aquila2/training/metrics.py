"""What a run measures: a JSON line per step, TensorBoard beside it, losses on held-out rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aquila2.atomic import atomic_write
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.monitor.intervals import Estimate, ratio
from aquila2.model import IGNORE_INDEX, Aquila2ForCausalLM
from aquila2.training.data import Batch


class MetricsLog:
    """Appends one JSON object per record to `metrics.jsonl`, and scalars to TensorBoard where it is wanted.

    Args:
        folder: The run's folder.
        last_step: Continue after this step; records of later steps, which a crash has undone, are removed.
        tensorboard: Also write event files.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, last_step: int, tensorboard: bool) -> None:
        self.folder, self.path, self.tensorboard = folder, folder / "metrics.jsonl", tensorboard
        self._open(last_step)

    def _open(self, last_step: int) -> None:
        kept = [record for record in read_metrics(self.folder) if record["step"] <= last_step]
        atomic_write(self.path, "".join(json.dumps(record) + "\n" for record in kept))
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
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; a line that a crash has cut off is left out."""
    path = folder / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


@torch.no_grad()
def heldout_loss(
    model: Aquila2ForCausalLM,
    batches: Mapping[str, Sequence[Batch]],
    device: torch.device,
    bf16: bool = False,
    world: World | None = None,
) -> dict[str, Estimate]:
    """Mean cross-entropy per target of every domain with its interval, and under "all" the mean over domains.

    Ranks share the batches, and rows are added in their order, so that the number of ranks changes no bit.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    parts = [(domain, part) for domain, several in batches.items() for part in several]
    mine: list[list[tuple[float, int]]] = []
    for _, part in parts[world.rank :: world.size]:
        batch = part.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = model.loss(
                batch.input_ids,
                batch.targets,
                cu_seqlens=batch.cu_seqlens,
                max_seqlen=batch.max_seqlen,
                reduction="none",
            )
        counts = (batch.targets != IGNORE_INDEX).sum(1)
        mine.append(list(zip(losses.double().sum(1).tolist(), counts.tolist(), strict=True)))
    model.train(was_training)
    everybody = world.gather(mine)
    rows: dict[str, list[tuple[float, int]]] = {domain: [] for domain in batches}
    for index, (domain, _) in enumerate(parts):
        rows[domain] += everybody[index % world.size][index // world.size]
    found = {domain: ratio([s for s, _ in several], [n for _, n in several]) for domain, several in rows.items()}
    mean = sum(estimate.mean for estimate in found.values()) / len(found)
    half = math.sqrt(sum(estimate.half**2 for estimate in found.values())) / len(found)
    return {**found, "all": Estimate(mean, half)}
