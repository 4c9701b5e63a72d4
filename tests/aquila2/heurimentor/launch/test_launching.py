"""Real launches on gloo: two processes here, two nodes over a stand-in for ssh, and a signal on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aquila2.heurimentor.launch.nodes import Node, script_of
from aquila2.heurimentor.launch.running import run_nodes
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import NAME
from aquila2.training.checkpoints import list_checkpoints, step_of
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import ROOT, lineage_of, options_for, ranks_of, run_python, write_texts

SSH = """#!/bin/sh
shift
exec sh -c "$*"
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    write_texts(tmp_path / "texts")
    task = dump_options(options_for(tmp_path / "texts", tmp_path / "run"))
    (tmp_path / "task.yaml").write_text(task.replace("  shares: equal\n", ""))
    (tmp_path / "experiment.yaml").write_text("task: task.yaml\nlaunch:\n  processes: 2\n  max_restarts: 0\n")
    return tmp_path / "experiment.yaml"


def test_two_processes_on_this_machine(experiment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_python("-m", "aquila2.cli", "launch", experiment)
    assert lineage_of(run).step == 12 and ranks_of(run) == [[1, 1]]
    assert not audit(run, data=True).faults
    assert "--nproc-per-node 2" in (run / "launch" / "start.sh").read_text()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_nodes_save_and_end_when_told_to(experiment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "hosts").write_text("localhost slots=1 type=old\n127.0.0.1 slots=1 type=new\n")
    experiment.write_text(
        "task: task.yaml\n"
        "options: {train: {samples: 100000}}\n"
        f"launch: {{hostfile: hosts, port: {free_port()}, max_restarts: 0, ssh: sh {tmp_path / 'ssh'}}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "aquila2.cli", "launch", str(experiment)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        while not (run / NAME).is_file() or lineage_of(run).step < 1:
            assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGTERM, said
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    assert step_of(checkpoint) == lineage_of(run).step >= 1
    assert sum(ranks_of(run)[0]) == 2 and not audit(run, data=True).faults
    assert "shares: speed" in (run / "launch" / "task.yaml").read_text()


def test_nodes_end_with_the_first_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    waiting = Node("waiting", ["sleep", "600"])
    assert run_nodes([waiting, Node("failing", ["sh", "-c", "exit 3"])]) == 3
    assert run_nodes([Node("killed", ["sh", "-c", "kill -KILL $$"]), waiting]) == 128 + signal.SIGKILL
    assert run_nodes([Node("well", ["true"]), Node("well too", ["true"])]) == 0
    assert time.monotonic() - started < 300
    assert "failing ended with the status 3" in capfd.readouterr().err


def test_the_script_passes_signals_on(tmp_path: Path) -> None:
    trap = f"trap 'echo told >> {tmp_path}/told; exit 0' TERM; echo up >> {tmp_path}/up; while :; do sleep 0.05; done"
    remote = Node(
        "two", ["sh", "-c", f"echo $$ > {tmp_path}/pid; {trap}"], ["sh", "-c", f"kill -s NAME $(cat {tmp_path}/pid)"]
    )
    with subprocess.Popen(["sh", "-c", script_of([Node("one", ["sh", "-c", trap]), remote])]) as script:
        while not (tmp_path / "up").is_file() or len((tmp_path / "up").read_text().split()) < 2:
            time.sleep(0.01)
        script.send_signal(signal.SIGTERM)
        assert script.wait(60) == 0
    assert (tmp_path / "told").read_text().split() == ["told", "told"]
