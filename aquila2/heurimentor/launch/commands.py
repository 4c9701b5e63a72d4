"""The command `aquila2 launch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aquila2.atomic import atomic_write
from aquila2.heurimentor.launch.experiment import load_experiment
from aquila2.heurimentor.launch.nodes import nodes_of, script_of
from aquila2.heurimentor.launch.running import run_nodes
from aquila2.training.options import dump_options

FOLDER, TASK, SCRIPT = "launch", "task.yaml", "start.sh"  # in the run's folder


def add_launch(commands: Any) -> None:
    """Adds `launch` to the parser's commands."""
    command = commands.add_parser("launch", help="start the ranks of an experiment, here or on the hosts of a file")
    command.add_argument("experiment", help="YAML file that names a task, and where its ranks run")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="options of the task to change, e.g. optimizer.lr=3e-4, or of the experiment, e.g. launch.processes=2",
    )
    command.add_argument("--dry-run", action="store_true", help="print the commands, and write and start nothing")
    command.set_defaults(run=_launch)


def _launch(parsed: argparse.Namespace) -> int:
    plan = load_experiment(parsed.experiment, parsed.overrides)
    folder = Path(plan.options.run.folder).absolute() / FOLDER
    nodes = nodes_of(plan, folder / TASK, Path.cwd())
    script = script_of(nodes)
    if parsed.dry_run:
        print(script, end="")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / TASK, dump_options(plan.options))
    atomic_write(folder / SCRIPT, script)
    return run_nodes(nodes)
