"""Numbers that JSON does not have: what is not finite is written as a text, and read as a number again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = ("nan", "inf", "-inf")


def finite(value: Any) -> Any:
    """JSON values with texts in the place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def numbers(value: Any) -> Any:
    """What `finite` was made from, where that had none of these texts."""
    if isinstance(value, dict):
        return {key: numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and value in NOT_FINITE else value
