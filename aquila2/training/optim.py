"""Learning rate and batch size over samples, and AdamW."""

from __future__ import annotations

import math

import torch
from torch import nn

from aquila2.training.options import BatchOptions, OptimizerOptions, ScheduleOptions


def learning_rate(samples: int, total: int, peak: float, schedule: ScheduleOptions) -> float:
    """Learning rate of the step that brings the count of samples to `samples`.

    Rises linearly over `warmup_samples`. Then cosine falls along half a wave to min_ratio * peak at `total`; wsd stays
    at the peak and falls linearly to the same end over the last `decay_samples`.
    """
    if samples < schedule.warmup_samples:
        return peak * samples / schedule.warmup_samples
    floor = peak * schedule.min_ratio
    if schedule.kind == "cosine":
        done = (samples - schedule.warmup_samples) / max(1, total - schedule.warmup_samples)
        return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    left = (total - samples) / max(1, schedule.decay_samples)
    return floor + (peak - floor) * min(1.0, max(0.0, left))


def batch_size(samples: int, batch: BatchOptions) -> int:
    """Sequences of the next step after `samples` samples: from ramp_start by ramp_increment up to size, evenly."""
    if batch.ramp_start == 0 or samples >= batch.ramp_samples:
        return batch.size
    steps = max(1, math.ceil((batch.size - batch.ramp_start) / batch.ramp_increment))
    return min(batch.size, batch.ramp_start + batch.ramp_increment * (samples * steps // batch.ramp_samples))


def make_adamw(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norm gains and biases alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, options.lr, (options.beta1, options.beta2), options.eps, fused=True)
