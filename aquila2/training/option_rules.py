"""Which values of options a run can have: every rule with the sentence for who breaks it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aquila2.training.options import Options

# What may be done about a finding of the monitor. Going back helps only against what steps have done to the weights.
POLICIES = {
    "spike": ("warn", "skip", "rewind", "stop"),
    "not_finite": ("skip", "rewind", "stop"),
    "divergence": ("warn", "rewind", "stop"),
    **dict.fromkeys(("plateau", "stuck", "overfit", "straggler", "data_stall", "no_better"), ("warn", "stop")),
}


def check(options: Options) -> None:
    """Compares options with one another and with what they may be.

    Raises:
        ValueError: The first rule that is broken.
    """
    names = [source.name for source in options.data.sources]
    micro = max(1, options.batch.micro)  # any other is refused before a sentence about its multiples
    checks = [
        (bool(names), f"data.sources must name at least one source, got {names}"),
        (len(set(names)) == len(names), f"data.sources must have different names, got {names}"),
        (all(s.weight > 0 for s in options.data.sources), "data.sources must have positive weights"),
        (options.data.seq_len > 1, f"data.seq_len must be at least 2, got {options.data.seq_len}"),
        (0 < options.data.heldout < 1, f"data.heldout must lie in (0, 1), got {options.data.heldout}"),
        (
            0 <= options.optimizer.lr < math.inf,
            f"optimizer.lr must be finite and at least 0, got {options.optimizer.lr}",
        ),
        (0 <= options.optimizer.beta1 < 1, f"optimizer.beta1 must lie in [0, 1), got {options.optimizer.beta1}"),
        (0 <= options.optimizer.beta2 < 1, f"optimizer.beta2 must lie in [0, 1), got {options.optimizer.beta2}"),
        (options.optimizer.eps >= 0, f"optimizer.eps must be at least 0, got {options.optimizer.eps}"),
        (
            options.optimizer.weight_decay >= 0,
            f"optimizer.weight_decay must be at least 0, got {options.optimizer.weight_decay}",
        ),
        (
            options.schedule.kind in ("cosine", "wsd"),
            f"schedule.kind must be cosine or wsd, got {options.schedule.kind!r}",
        ),
        *(
            (value >= 0, f"{name} must be at least 0, got {value}")
            for name, value in (
                ("optimizer.clip", options.optimizer.clip),
                ("schedule.warmup_samples", options.schedule.warmup_samples),
                ("schedule.decay_samples", options.schedule.decay_samples),
                ("batch.ramp_start", options.batch.ramp_start),
                ("batch.ramp_increment", options.batch.ramp_increment),
                ("batch.ramp_samples", options.batch.ramp_samples),
                ("parallel.shard", options.parallel.shard),
                ("parallel.replicate", options.parallel.replicate),
                ("run.save_every", options.run.save_every),
                ("run.save_minutes", options.run.save_minutes),
                ("run.eval_every", options.run.eval_every),
                ("monitor.score_rows", options.monitor.score_rows),
                ("probe.every", options.probe.every),
                ("probe.limit", options.probe.limit),
            )
        ),
        (
            0 <= options.schedule.min_ratio <= 1,
            f"schedule.min_ratio must lie in [0, 1], got {options.schedule.min_ratio}",
        ),
        (options.train.samples > 0, f"train.samples must be at least 1, got {options.train.samples}"),
        (options.batch.micro > 0, f"batch.micro must be at least 1, got {options.batch.micro}"),
        (
            options.batch.size > 0 and options.batch.size % micro == 0,
            f"batch.size must be a multiple of batch.micro ({options.batch.micro}), got {options.batch.size}",
        ),
        (
            options.batch.ramp_start % micro == 0 and options.batch.ramp_increment % micro == 0,
            f"batch.ramp_start and batch.ramp_increment must be multiples of batch.micro ({options.batch.micro}), "
            f"got {options.batch.ramp_start} and {options.batch.ramp_increment}",
        ),
        (
            options.batch.ramp_start == 0 or (options.batch.ramp_increment > 0 and options.batch.ramp_samples > 0),
            "batch.ramp_start needs positive batch.ramp_increment and batch.ramp_samples",
        ),
        (
            options.train.precision in ("fp32", "bf16"),
            f"train.precision must be fp32 or bf16, got {options.train.precision!r}",
        ),
        (
            options.train.shares in ("equal", "speed"),
            f"train.shares must be equal or speed, got {options.train.shares!r}",
        ),
        (
            options.train.shares == "equal" or not options.parallel.divides,
            "train.shares must be equal where the model is divided (parallel): its ranks go in step",
        ),
        (
            not options.train.compile or not options.parallel.divides,
            "train.compile must be false where the model is divided (parallel)",
        ),
        (
            not options.probe.tasks or len(options.parallel.stages) < 2,
            "probe.tasks must be empty where parallel.stages has several: no stage can answer alone",
        ),
        (options.parallel.tensor > 0, f"parallel.tensor must be at least 1, got {options.parallel.tensor}"),
        (options.monitor.window >= 16, f"monitor.window must be at least 16, got {options.monitor.window}"),
        (options.monitor.sigmas > 0, f"monitor.sigmas must be positive, got {options.monitor.sigmas}"),
        *(
            (
                getattr(options.monitor, finding) in allowed,
                f"monitor.{finding} must be {', '.join(allowed[:-1])} or {allowed[-1]}, "
                f"got {getattr(options.monitor, finding)!r}",
            )
            for finding, allowed in POLICIES.items()
        ),
        (options.run.timeout_minutes > 0, f"run.timeout_minutes must be positive, got {options.run.timeout_minutes}"),
        (options.run.save in ("async", "sync"), f"run.save must be async or sync, got {options.run.save!r}"),
        (options.run.keep > 0, f"run.keep must be at least 1, got {options.run.keep}"),
        *(
            (
                entry.after >= 0 and sum(value is not None for value in dataclasses.asdict(entry).values()) == 2,
                f"decisions[{i}] must have after, at least 0, and one decision beside it",
            )
            for i, entry in enumerate(options.decisions)
        ),
    ]
    for holds, sentence in checks:
        if not holds:
            raise ValueError(sentence)


def doubts(options: Options) -> list[str]:
    """What options ask for and may not get: a sentence each, for the start of a run."""
    monitor, run = options.monitor, options.run
    sentences = []
    if monitor.divergence == "rewind" and (run.keep - 1) * run.save_every < monitor.window:
        sentences.append(
            f"monitor.divergence rewind goes back at least monitor.window ({monitor.window}) steps, and run.keep "
            f"{run.keep} with run.save_every {run.save_every} need not keep a checkpoint that old: the run may end "
            "instead; (run.keep - 1) x run.save_every of two windows is enough for most rises"
        )
    return sentences
