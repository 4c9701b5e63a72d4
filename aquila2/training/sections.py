"""Typed sections of a configuration: dataclasses from what YAML gives, and what is wrong with it by its name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class OptionError(ValueError):
    """What is wrong with one option, which `option` names with its sections."""

    def __init__(self, sentence: str, option: str) -> None:
        super().__init__(sentence)
        self.option = option


def build_section(cls: type[T], entries: Any, where: str) -> T:
    """A dataclass from a mapping, whose values are converted to its fields' types; `where` names it in sentences.

    Raises:
        OptionError: An unknown option, or a value of the wrong type.
    """
    if not isinstance(entries, Mapping):
        raise OptionError(f"{where or 'the configuration'} must be a section with options, got {entries!r}", where)
    hints = typing.get_type_hints(cls)
    unknown = sorted(str(key) for key in entries if key not in hints)
    prefix = f"{where}." if where else ""
    if unknown:
        sentence = f"{where or 'the configuration'} has no option {unknown[0]!r}; it has {', '.join(hints)}"
        raise OptionError(sentence, prefix + unknown[0])
    try:
        return cls(**{key: convert(value, hints[key], prefix + key) for key, value in entries.items()})
    except TypeError as error:
        raise OptionError(f"{where}: {error}", where) from error


def convert(value: Any, wanted: Any, where: str) -> Any:
    """Converts what YAML made of a value to the type of its field; text like 3e-4, which YAML leaves text, included."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(value, inner[0], where)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return build_section(wanted, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise OptionError(f"{where} must be a list, got {value!r}", where)
        return [convert(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise OptionError(f"{where} must be a section, got {value!r}", where)
        return dict(value)
    try:
        if wanted is float and not isinstance(value, bool):
            return float(value)
        if wanted is int and not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
    except (TypeError, ValueError):
        pass
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is str and isinstance(value, (str, int, float)):
        return str(value)
    raise OptionError(f"{where} must be {getattr(wanted, '__name__', wanted)}, got {value!r}", where)
