"""How fast a step was: tokens per second, the share of the device's arithmetic, memory, and how ranks drift apart."""

from __future__ import annotations

import math
import resource
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence

import torch

from aquila2.config import Aquila2Config

# Dense bf16 products with fp32 sums, in FLOP/s, as their makers state them.
PEAKS = {"A100": 312e12, "A800": 312e12, "H100": 989e12, "H800": 989e12, "H200": 989e12, "H20": 148e12}
TRIAL_SIZE, TRIAL_SECONDS = 512, 0.05
# Parameters of LLaMA-2's models and the A100 hours that its report gives for 2.0e12 tokens each.
LLAMA2_HOURS = {6.74e9: 184_320, 33.7e9: 1_038_336, 69.0e9: 1_720_320}
LLAMA2_TOKENS = 2.0e12


def llama2_speed(parameters: float) -> float:
    """Tokens per second and GPU at which LLaMA-2 would have trained a model of that size, an estimate from its hours.

    Between its sizes on the line through the two neighbours' logarithms; beyond them a GPU does as many multiplications
    per second as for the nearest.
    """
    sizes = sorted(LLAMA2_HOURS)
    speeds = [LLAMA2_TOKENS / 3600 / LLAMA2_HOURS[size] for size in sizes]
    if parameters <= sizes[0]:
        return speeds[0] * sizes[0] / parameters
    if parameters >= sizes[-1]:
        return speeds[-1] * sizes[-1] / parameters
    right = bisect_right(sizes, parameters)
    share = math.log(parameters / sizes[right - 1]) / math.log(sizes[right] / sizes[right - 1])
    return float(speeds[right - 1] * (speeds[right] / speeds[right - 1]) ** share)


def flops_per_token(config: Aquila2Config, seq_len: int) -> float:
    """FLOPs of a token's forward and backward pass, recomputed activations not counted.

    A weight that a token is multiplied with takes 2 forward and 4 backward. Causal attention over S tokens sees S / 2
    of them on average: 2 Hq D S forward and twice that backward, per layer. Packed documents take less.
    """
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seq_len
    return 6.0 * (config.num_parameters - embedding) + attention


def peak_flops(device: torch.device) -> float:
    """What the device can do: by its name for GPUs, measured with a product of fp32 matrices for CPUs; 0 if unknown."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return max((peak for key, peak in PEAKS.items() if key in name), key=float, default=0.0)
    if device.type != "cpu":
        return 0.0
    a, out = torch.ones(TRIAL_SIZE, TRIAL_SIZE), torch.empty(TRIAL_SIZE, TRIAL_SIZE)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < TRIAL_SECONDS:
        begin = time.perf_counter()
        torch.mm(a, a, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * TRIAL_SIZE**3 / best


class Speed:
    """Turns the times of a step into what is logged.

    Args:
        config: The model's.
        seq_len: Tokens of a row.
        device: Of this rank.
        ranks: How many there are.
    """

    def __init__(self, config: Aquila2Config, seq_len: int, device: torch.device, ranks: int) -> None:
        self.device = device
        peak = peak_flops(device) * ranks
        self._share_per_speed = flops_per_token(config, seq_len) / peak if peak else 0.0
        self._llama2 = llama2_speed(config.num_parameters) * ranks

    def values(self, tokens: int, seconds: float, busy: Sequence[float]) -> dict[str, float]:
        """The record of a step.

        Args:
            tokens: Of the step, on all ranks.
            seconds: That it took.
            busy: What each rank's own forward and backward passes took.

        Returns:
            seconds; tokens_per_second; mfu, the share of the peak (0 where that is not known); llama2, the speed over
            what LLaMA-2's report lets expect of as many GPUs as there are ranks; memory, the largest so far in bytes,
            on the device where it is a GPU; skew, the slowest rank's time over the median of all ranks.
        """
        speed = tokens / seconds
        middle = statistics.median(busy)
        return {
            "seconds": seconds,
            "tokens_per_second": speed,
            "mfu": speed * self._share_per_speed,
            "llama2": speed / self._llama2,
            "memory": float(self._memory()),
            "skew": max(busy) / middle if middle > 0 else 1.0,
        }

    def _memory(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
