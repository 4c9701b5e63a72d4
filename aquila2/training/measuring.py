"""What a run measures between its steps: held-out losses, probes, and a look at weights and attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from aquila2.heurimentor.data.schedule import OpenSegment
from aquila2.heurimentor.engine.keeper import Keeper
from aquila2.heurimentor.engine.placement import Placement
from aquila2.heurimentor.engine.world import World
from aquila2.heurimentor.monitor.intervals import Estimate
from aquila2.heurimentor.monitor.scores import largest_of, largest_scores
from aquila2.heurimentor.monitor.weights import weight_moments
from aquila2.heurimentor.probes.scoring import make_probes, run_probes
from aquila2.model import Aquila2ForCausalLM
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.data import heldout_batches, segment_folder
from aquila2.training.metrics import heldout_loss
from aquila2.training.options import Options
from aquila2.training.progress import Progress

Tell = Callable[[Callable[[Keeper], None]], None]


class Measuring:
    """Measures a model that is trained, on all ranks together.

    Args:
        options: The run's.
        model: The model.
        tokenizer: Its tokenizer.
        device: Where it computes.
        world: All ranks.
        placement: How they divide the model.
        tell: Has the first rank's keeper take what was measured.

    Attributes:
        sources: Those with held-out text that is measured.
    """

    def __init__(
        self,
        options: Options,
        model: Aquila2ForCausalLM,
        tokenizer: Aquila2Tokenizer,
        device: torch.device,
        world: World,
        placement: Placement,
        tell: Tell,
    ) -> None:
        self.options, self.model, self.device, self.world, self.placement = options, model, device, world, placement
        self.data = Path(options.run.folder) / "data"
        self.bf16 = options.train.precision == "bf16"
        self.batches = heldout_batches(self.data, options.data, options.batch.micro)
        longest, limit = model.config.max_position_embeddings, options.probe.limit
        self.probes = world.tell(lambda: make_probes(options.probe.tasks, tokenizer, longest, limit))
        self.sources = {source.name for source in options.data.sources}
        self._watched = 0  # segments of the run whose held-out rows are among the batches, where they have any
        self._tell = tell

    def watch(self, segments: Sequence[OpenSegment]) -> None:
        """Measures held-out losses also on sources that came while the run was at work."""
        if len(segments) == self._watched:
            return
        self._watched = len(segments)
        known = {source.name for source in self.options.data.sources}
        names = [(info.domain, Path(info.folder).name) for info in segments]
        added = [
            (domain, name)
            for domain, name in names
            if name not in known and segment_folder(self.data, name, "heldout").is_dir()
        ]
        self.sources = known | {name for _, name in added}
        self.batches = heldout_batches(self.data, self.options.data, self.options.batch.micro, added)

    def losses(self) -> dict[str, Estimate]:
        """The domains' held-out losses."""
        return heldout_loss(self.model, self.batches, self.device, self.bf16, self.placement.data)

    def measure(self, progress: Progress) -> dict[str, Estimate]:
        """Has the domains' held-out losses and a look inside the model taken; returns the losses."""
        losses = self.losses()
        self._tell(lambda keeper: keeper.measured(progress.step, losses))
        self._look_inside(progress)
        return losses

    def probe(self, progress: Progress) -> None:
        """Asks the questions of the task files, where there are any."""
        if self.probes:
            most = self.options.batch.micro * self.options.data.seq_len
            found = run_probes(self.model, self.probes, most, self.device, self.bf16, self.placement.data)
            chances = {probe.task.name: probe.chance for probe in self.probes}
            self._tell(lambda keeper: keeper.probed(progress.step, found, chances))

    def _look_inside(self, progress: Progress) -> None:
        """A look at weights, and at attention over the first held-out batch of every domain."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            firsts = [several[0].to(self.device) for several in self.batches.values() if several]
            scores = largest_of(self.world.gather(largest_scores(self.model, firsts)))
        stages = self.placement.stages.gather(weight_moments(self.model))
        moments = {kind: [pair for stage in stages for pair in stage[kind]] for kind in stages[0]}
        self._tell(lambda keeper: keeper.inside(progress.step, progress.tokens, moments, scores))
