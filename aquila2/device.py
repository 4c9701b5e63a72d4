"""The device that an option names, looked at before anything is built on it."""

from __future__ import annotations

import torch


def usable_device(name: str, option: str) -> torch.device:
    """The device `name`, on which a tensor could be made.

    Args:
        name: A torch device, e.g. "cpu" or "cuda:0".
        option: What the error calls it, e.g. "--device".

    Raises:
        ValueError: There is no such device here, or this torch was built without it.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["it gave no reason"])[0].rstrip(".")
        raise ValueError(f"{option} must be a device of this machine, got {name!r} (torch says: {reason})") from None
    return device
