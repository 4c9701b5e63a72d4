"""Lets tests written for a GPU run on the CPU: "cuda" names the CPU, and questions about the GPU get an answer."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def _on_cpu(value: Any) -> Any:
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class CudaMeansCpu(TorchFunctionMode):
    """Every torch function and method that is told a CUDA device gets the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.cuda:
            return args[0]
        kwargs = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return function(*(_on_cpu(value) for value in args), **kwargs)


def answer_for_cuda(capability: tuple[int, int]) -> None:
    """torch.cuda's questions, answered for a device of that compute capability; for the rest of the process."""
    properties = types.SimpleNamespace(
        name="CPU",
        gcnArchName="CPU",  # torch's compiler asks it of a torch without CUDA
        total_memory=80 * 2**30,
        multi_processor_count=108,
        major=capability[0],
        minor=capability[1],
    )
    answers = {
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    set_default_device = torch.set_default_device
    torch.set_default_device = lambda device: set_default_device(_on_cpu(device))
