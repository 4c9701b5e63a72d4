"""Going on from a checkpoint: the first rank finds it, loading is how it looks, and all ranks stand there after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from aquila2.heurimentor.engine.placement import Placement
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage
from aquila2.heurimentor.monitor.intervals import Estimate
from aquila2.model import Aquila2ForCausalLM
from aquila2.parallel.values import local
from aquila2.training.checkpoints import checkpoint_fault, checkpoint_to_continue, head_of, list_checkpoints
from aquila2.training.loading import load_checkpoint, load_verified
from aquila2.training.progress import Progress


class Continuation:
    """Brings the model and the optimizer of a run to where a checkpoint of it stands.

    Args:
        folder: The run's.
        model: The model,
        optimizer: and its optimizer.
        world: All ranks.
        placement: How they divide the model.
    """

    def __init__(
        self,
        folder: Path,
        model: Aquila2ForCausalLM,
        optimizer: torch.optim.Optimizer,
        world: World,
        placement: Placement,
    ) -> None:
        self.folder, self.model, self.optimizer, self.world, self.placement = folder, model, optimizer, world, placement

    def start(self) -> tuple[Path | None, Progress]:
        """Goes on from the newest checkpoint that is whole and whose steps the ledger has not undone, if there is one.

        Raises:
            ValueError: There are checkpoints and none is whole.
        """
        states: dict[Path, dict[str, Any]] = {}
        checkpoint = self.world.tell(lambda: self._newest(states))
        if checkpoint is None:
            return None, Progress()
        # Only the first rank has looked, and has loaded by that.
        state = states.get(checkpoint) or load_checkpoint(checkpoint, self.model, self.optimizer)
        return checkpoint, self._stand(checkpoint, state)

    def go_to(self, checkpoint: Path) -> Progress:
        """Goes on from a checkpoint that was verified."""
        return self._stand(checkpoint, load_checkpoint(checkpoint, self.model, self.optimizer))

    def _newest(self, states: dict[Path, dict[str, Any]]) -> Path | None:
        checkpoints, ledger = self.folder / "checkpoints", self.folder / NAME
        heads = [head for path in list_checkpoints(checkpoints) if (head := head_of(path))]
        objection = None
        if heads and ledger.is_file():
            objection = Lineage.of(scan(ledger, max(head.offset for head in heads)).lines).objection

        def load(path: Path) -> None:
            states[path] = load_verified(path, self.model, self.optimizer)

        return checkpoint_to_continue(checkpoints, _say, objection, lambda path: checkpoint_fault(path, load))

    def _stand(self, checkpoint: Path, state: dict[str, Any]) -> Progress:
        self.placement.copies.spread(local(parameter) for parameter in self.model.parameters())
        if self.world.is_first:
            _say(f"continuing {checkpoint}")
        heldout = {domain: Estimate(*values) for domain, values in state["heldout_before"].items()}
        return Progress(state["step"], state["samples"], state["tokens"], heldout)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
