"""The commands of an experiment's nodes: torchrun on this machine, or on every host over ssh."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
from torch.distributed.launcher.api import LaunchConfig

from aquila2.heurimentor.launch.experiment import Plan

SAVING_SECONDS = 600  # from a signal on, for a rank to end its step and save before torchrun kills it


class Node(NamedTuple):
    """How a node is started, and how a signal reaches it.

    Attributes:
        name: The host.
        command: Runs until the node has ended.
        signal: Sends the node a signal, whose name takes the place of NAME; None where `command` takes it itself.
        pid: Where the node writes the number of its process, for `signal`.
    """

    name: str
    command: list[str]
    signal: list[str] | None = None
    pid: Path | None = None


def nodes_of(plan: Plan, config: Path, working: Path) -> list[Node]:
    """The nodes of an experiment: one on this machine, or one for every host.

    Args:
        plan: The experiment.
        config: The task's options, where every node finds them.
        working: The folder that they are started in.
    """
    launch = plan.launch
    if not plan.hosts:
        on_gpus = plan.options.train.device == "cuda"
        processes = launch.processes or (torch.cuda.device_count() if on_gpus else 1) or 1
        return [Node("this machine", _torchrun(plan, ["--standalone"], processes, config))]
    launch_id = uuid4().hex[
        :8
    ]  # a second launch of the same run takes neither its files nor its place in the rendezvous
    meeting = [
        *("--nnodes", str(len(plan.hosts))),
        *("--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", f"{launch.address or plan.hosts[0].address}:{launch.port}"),
        *("--rdzv-id", f"{Path(plan.options.run.folder).name}-{launch_id}"),
    ]
    ssh = shlex.split(launch.ssh)
    nodes = []
    for number, host in enumerate(plan.hosts):
        pid = config.with_name(f"node-{number}-{launch_id}.pid")
        file = shlex.quote(str(pid))
        torchrun = shlex.join(_torchrun(plan, meeting, launch.processes or host.slots, config))
        start = f"cd {shlex.quote(str(working))} && echo $$ > {file} && exec {torchrun}"
        tell = f"test -s {file} && kill -s NAME $(cat {file})"
        nodes.append(Node(host.name, [*ssh, host.name, start], [*ssh, host.name, tell], pid))
    return nodes


def _torchrun(plan: Plan, meeting: Sequence[str], processes: int, config: Path) -> list[str]:
    variables = [f"{key}={value}" for key, value in plan.launch.env.items()]
    patient = "shutdown_timeout" in {entry.name for entry in dataclasses.fields(LaunchConfig)}
    return [
        *(["env", *variables] if variables else []),
        *(plan.launch.python or sys.executable, "-m", "torch.distributed.run"),
        *meeting,
        *("--nproc-per-node", str(processes)),
        *("--max-restarts", str(plan.launch.max_restarts)),
        *(["--shutdown-timeout", str(SAVING_SECONDS)] if patient else []),
        *("-m", "aquila2.cli", "train", str(config)),
    ]


# A shell without job control has a child's status as soon as it has waited for any.
WAITING = """\
left=$nodes
while [ -n "$left" ]; do
  still=
  for node in $left; do
    if kill -s 0 "$node" 2>/dev/null; then
      still="$still $node"
      continue
    fi
    wait "$node"
    status=$?
    if [ $status -ne 0 ] && [ $told -eq 0 ] && [ $failed -eq 0 ]; then
      failed=$status
      tell_TERM
    fi
  done
  left=$still
  sleep 1 &
  wait $!
done"""


def script_of(nodes: Sequence[Node]) -> str:
    """A shell script that starts all nodes and waits for them, as `run_nodes` does.

    It passes SIGINT, SIGTERM and SIGHUP on, ends the others where a node fails, and has the status of the first that
    failed, or 128 + a signal. It neither sends a signal again that did not arrive, nor gives up a host that is gone.
    """
    lines = ["#!/bin/sh", "# Written by `aquila2 launch`: starts every node, passes signals on, ends all if one fails."]
    lines.append("told=0 failed=0 nodes=")
    for number, node in enumerate(nodes):
        lines.append(f'{shlex.join(node.command)} &\nnode_{number}=$!\nnodes="$nodes $!"')
    for name in ("INT", "TERM"):
        sent = [
            shlex.join(signalling(node, name)) if node.signal else f'kill -s {name} "$node_{number}" 2>/dev/null'
            for number, node in enumerate(nodes)
        ]
        lines.append("\n  ".join([f"tell_{name}() {{", *sent]) + "\n}")
    for caught, name in ((signal.SIGINT, "INT"), (signal.SIGTERM, "TERM"), (signal.SIGHUP, "TERM")):
        lines.append(f"trap 'told={128 + caught}; tell_{name}' {caught.name.removeprefix('SIG')}")
    lines.append(WAITING)
    pids = [str(node.pid) for node in nodes if node.pid]
    return "\n".join(
        [*lines, *([shlex.join(["rm", "-f", *pids])] if pids else []), "exit $((told ? told : failed))", ""]
    )


def signalling(node: Node, name: str) -> list[str]:
    """The command that sends a node a signal over ssh."""
    assert node.signal is not None
    *ssh, kill = node.signal
    return [*ssh, kill.replace("NAME", name, 1)]
