"""Real launches on gloo: two processes here, two nodes over a stand-in for ssh, and a signal on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aquila2.heurimentor.launch import running
from aquila2.heurimentor.launch.nodes import Node, script_of
from aquila2.heurimentor.launch.running import run_nodes
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import NAME
from aquila2.training.checkpoints import list_checkpoints, step_of
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import ROOT, lineage_of, options_for, ranks_of, run_python, write_texts

PATIENCE = 240.0  # seconds until a test gives up what hangs
PORT_TAKEN = ("EADDRINUSE", "ddress already in use", "RendezvousConnectionError")
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
    """One that is free, and below those that the system gives to whoever asks for any."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


@contextmanager
def launched(experiment: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launch at work; behind it no process of it is left, in whatever session."""
    mark = f"AQUILA2_TEST_LAUNCH={log}-{port}"
    name, _, value = mark.partition("=")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", name: value}
    command = [sys.executable, "-m", "aquila2.cli", "launch", str(experiment), f"launch.port={port}"]
    with log.open("wb") as said:
        launcher = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark.encode() in file.read_bytes().split(b"\0"):
                    os.kill(int(file.parent.name), signal.SIGKILL)


def told_after_a_step(experiment: Path, run: Path, log: Path) -> int | None:
    """The status of a launch that is told to end after its first step; None where its port was taken meanwhile."""
    with launched(experiment, free_port(), log) as launcher:
        deadline = time.monotonic() + PATIENCE
        while not (run / NAME).is_file() or lineage_of(run).step < 1:
            if launcher.poll() is not None and any(sign in log.read_text() for sign in PORT_TAKEN):
                return None
            assert launcher.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        try:
            return launcher.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(log.read_text()) from None


def test_two_nodes_save_and_end_when_told_to(experiment: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "hosts").write_text("localhost slots=1 type=old\n127.0.0.1 slots=1 type=new\n")
    experiment.write_text(
        "task: task.yaml\n"
        "options: {train: {samples: 100000}}\n"
        f"launch: {{hostfile: hosts, max_restarts: 0, ssh: sh {tmp_path / 'ssh'}}}\n"
    )
    status = told_after_a_step(experiment, run, log)
    if status is None:
        shutil.rmtree(run)
        status = told_after_a_step(experiment, run, log)
    assert status == 128 + signal.SIGTERM, log.read_text()
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    assert step_of(checkpoint) == lineage_of(run).step >= 1
    assert sum(ranks_of(run)[0]) == 2 and not audit(run, data=True).faults
    assert "shares: speed" in (run / "launch" / "task.yaml").read_text()
    assert not list((run / "launch").glob("*.pid"))


def test_nodes_end_with_the_first_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    waiting = Node("waiting", ["sleep", "600"])
    assert run_nodes([waiting, Node("failing", ["sh", "-c", "exit 3"])]) == 3
    assert run_nodes([Node("killed", ["sh", "-c", "kill -KILL $$"]), waiting]) == 128 + signal.SIGKILL
    assert run_nodes([Node("well", ["true"]), Node("well too", ["true"])]) == 0
    assert time.monotonic() - started < 300
    assert "failing ended with the status 3" in capfd.readouterr().err


def test_a_signal_reaches_a_node_that_starts_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "AGAIN_SECONDS", 0.05)
    pid = tmp_path / "pid"
    late = Node(
        "late",
        ["sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo $$ > {pid}; exec sleep 600"],
        ["sh", "-c", f"test -s {pid} && kill -s NAME $(cat {pid}) || {{ touch {tmp_path}/go; false; }}"],
        pid,
    )
    assert run_nodes([late, Node("failing", ["sh", "-c", "exit 3"])]) == 3
    assert (tmp_path / "go").exists() and not pid.exists()


def test_a_host_that_is_gone_is_given_up() -> None:
    gone = Node("gone", ["sleep", "600"], ["false"])
    assert run_nodes([gone, Node("failing", ["sh", "-c", "exit 3"])], give_up_seconds=0.2) == 3


def test_nodes_end_with_their_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert run_nodes([Node("one", ["sh", "-c", "kill -s HUP $PPID; exec sleep 600"])]) == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nodes_read_nothing_of_the_launcher() -> None:
    assert run_nodes([Node("reading", ["sh", "-c", "! read line"])]) == 0


def test_the_script_passes_signals_on(tmp_path: Path) -> None:
    trap = f"trap 'echo told >> {tmp_path}/told; exit 0' TERM; echo up >> {tmp_path}/up; while :; do sleep 0.05; done"
    remote = Node(
        "two", ["sh", "-c", f"echo $$ > {tmp_path}/pid; {trap}"], ["sh", "-c", f"kill -s NAME $(cat {tmp_path}/pid)"]
    )
    text = script_of([Node("one", ["sh", "-c", trap]), remote])
    assert "trap 'told=129; tell_TERM' HUP" in text
    script = subprocess.Popen(["sh", "-c", text])
    deadline = time.monotonic() + PATIENCE
    try:
        while not (tmp_path / "up").is_file() or len((tmp_path / "up").read_text().split()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 128 + signal.SIGTERM
    assert (tmp_path / "told").read_text().split() == ["told", "told"]


def test_the_script_ends_with_the_first_that_fails(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    remote = ["sh", "-c", f"echo $$ > {pid}; exec sleep 600"]
    waiting = [Node("here", ["sleep", "600"]), Node("there", remote, ["sh", "-c", f"kill -s NAME $(cat {pid})"], pid)]
    failing = Node("failing", ["sh", "-c", f"until [ -s {pid} ]; do sleep 0.05; done; exit 3"])
    script = script_of([*waiting, failing])
    assert subprocess.run(["sh", "-c", script], timeout=PATIENCE, check=False).returncode == 3
    assert not pid.exists()
    assert subprocess.run(["sh", "-c", script_of([Node("well", ["true"])])], check=False).returncode == 0
