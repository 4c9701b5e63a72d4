"""The hosts of an experiment: a line each, with the processes that it takes and its kind of device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

FORM = "a line is HOST slots=N, with type=NAME behind it where hosts differ"
HOST = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*")
TYPE = re.compile(r"\w[\w.-]*")


class Host(NamedTuple):
    """A machine.

    Attributes:
        name: As ssh takes it, HOST or USER@HOST.
        slots: Processes that it takes.
        type: Its kind of device, empty where the file tells none.
    """

    name: str
    slots: int
    type: str = ""

    @property
    def address(self) -> str:
        """Its name without a user."""
        return self.name.rpartition("@")[2]


def parse_hostfile(text: str, place: str) -> list[Host]:
    """The hosts that a text lists, in its order; empty lines, and what follows a #, do not count.

    Args:
        text: The file's content.
        place: What errors call it.

    Raises:
        ValueError: Names the line and what is allowed.
    """
    hosts: dict[str, Host] = {}
    typed = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            host = _host(words)
            if host.name in hosts:
                raise ValueError(f"{host.name!r} stands there a second time")
            typed += bool(host.type)
            hosts[host.name] = host
            if typed not in (0, len(hosts)):
                raise ValueError("type must stand in every line or in none")
        except ValueError as error:
            raise ValueError(f"{place} line {number}: {error}; {FORM}") from None
    if not hosts:
        raise ValueError(f"{place} lists no hosts; {FORM}")
    return list(hosts.values())


def of_unequal_types(hosts: Sequence[Host]) -> bool:
    """Whether the hosts have devices of several kinds."""
    return len({host.type for host in hosts}) > 1


def _host(words: Sequence[str]) -> Host:
    name, *settings = words
    if not HOST.fullmatch(name):
        raise ValueError(f"the host must be a name or an address, got {name!r}")
    values: dict[str, str] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if key not in ("slots", "type") or not separator or key in values:
            raise ValueError(f"slots= and type= may follow the host, once each, got {setting!r}")
        values[key] = value
    slots = values.get("slots", "")
    if not (slots.isascii() and slots.isdecimal() and int(slots) > 0):
        raise ValueError(f"slots must be an integer of at least 1, got {slots!r}")
    if "type" in values and not TYPE.fullmatch(values["type"]):
        raise ValueError(f"type must be letters, digits, _, - and inner dots, got {values['type']!r}")
    return Host(name, int(slots), values.get("type", ""))
