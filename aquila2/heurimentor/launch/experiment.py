"""An experiment: a YAML file that names a task, what it changes in it, and where its ranks run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aquila2.heurimentor.launch.hostfile import Host, of_unequal_types, parse_hostfile
from aquila2.training.options import Options, overridden, parse_options, read_entries
from aquila2.training.sections import OptionError, build_section

VARIABLE = re.compile(r"[A-Za-z_]\w*")
# A host that is gone is noticed within minutes, and none asks for a password.
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=8"
OWN = "launch."  # overrides that begin so are the experiment's, all others the task's


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Where the ranks run and how they find each other."""

    hostfile: str | None = None  # beside the experiment; without one all ranks run on this machine
    processes: int = 0  # of every node; 0: a host's slots, and without a hostfile a GPU each, or one on processors
    address: str | None = None  # by which all nodes reach the first; its name in the hostfile unless told
    port: int = 29400
    max_restarts: int = 3  # how often torchrun starts the ranks again where one has died
    env: dict[str, Any] = field(default_factory=dict)  # variables of every rank
    ssh: str = SSH  # the command that reaches a host, with its options
    python: str | None = None  # on all hosts; the one at work here unless told

    def __post_init__(self) -> None:
        for holds, option, sentence in (
            (self.processes >= 0, "processes", f"must be at least 0, got {self.processes}"),
            (0 < self.port < 65536, "port", f"must lie in [1, 65535], got {self.port}"),
            (self.max_restarts >= 0, "max_restarts", f"must be at least 0, got {self.max_restarts}"),
            (bool(_words(self.ssh)), "ssh", f"must be a command, got {self.ssh!r}"),
            *(
                (
                    bool(VARIABLE.fullmatch(str(key)))
                    and isinstance(value, (str, int, float))
                    and not isinstance(value, bool),
                    "env",
                    f"must give texts or numbers to names of variables, got {key}: {value!r}",
                )
                for key, value in self.env.items()
            ),
        ):
            if not holds:
                raise OptionError(f"launch.{option} {sentence}", f"launch.{option}")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment's file says."""

    task: str  # the YAML file of `aquila2 train`, beside the experiment
    options: dict[str, Any] = field(default_factory=dict)  # sections like the task's, which go before its own
    launch: LaunchOptions = field(default_factory=LaunchOptions)


@dataclass(frozen=True)
class Plan:
    """An experiment with all its files read: the task's options, how it is launched, and its hosts, if it has any."""

    options: Options
    launch: LaunchOptions
    hosts: list[Host]


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Plan:
    """Reads an experiment, its task and its hostfile.

    The task's options are changed by the experiment's, and these by overrides like `optimizer.lr=3e-4`; overrides like
    `launch.processes=2` change the experiment. Hosts of unequal types make `train.shares` speed where nothing sets it
    and the model is not divided.

    Raises:
        ValueError: One sentence that names file, line and what is allowed.
        OSError: A file cannot be read.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    own = [override for override in overrides if override.startswith(OWN)]
    try:
        experiment = build_section(Experiment, overridden(read_entries(path), own), "")
    except OptionError as error:
        raise ValueError(f"{path}{_line(text, error.option)}: {error}") from None
    launch = experiment.launch
    hosts: list[Host] = []
    if launch.hostfile is not None:
        hostfile = path.parent / launch.hostfile
        hosts = parse_hostfile(hostfile.read_text(encoding="utf-8"), str(hostfile))
    task = path.parent / experiment.task
    entries = merged(read_entries(task), experiment.options)
    others = [override for override in overrides if not override.startswith(OWN)]
    try:
        entries = overridden(entries, others)
        options = parse_options(entries)
        if of_unequal_types(hosts) and not options.parallel.divides:
            options = parse_options(merged({"train": {"shares": "speed"}}, entries))
    except OptionError as error:
        line = _line(text, f"options.{error.option}")
        place = f"{path}{line}" if line else f"{task}{_line(task.read_text(encoding='utf-8'), error.option)}"
        raise ValueError(f"{place}: {error}") from None
    return Plan(options, launch, hosts)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of both, option by option; where both have one, that of `above`."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _words(command: str) -> list[str]:
    """What a shell makes of a command; nothing where a quotation is left open."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _line(text: str, option: str) -> str:
    """ " line N" where YAML has an option, or the innermost section of it that it has; empty where it has none."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    found = ""
    for name in option.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = [(key, value) for key, value in pairs if key.value == name.partition("[")[0]]
        if not match:
            break
        key, node = match[-1]
        found = f" line {key.start_mark.line + 1}"
    return found
