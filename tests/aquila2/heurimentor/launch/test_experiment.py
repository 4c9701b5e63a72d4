"""Experiments and hostfiles as they are read: what they mean, and one sentence for what they cannot."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aquila2.cli import main
from aquila2.heurimentor.launch.experiment import load_experiment
from aquila2.heurimentor.launch.hostfile import FORM, Host, parse_hostfile
from aquila2.heurimentor.launch.nodes import nodes_of, script_of

TASK = """
data:
  sources: [{name: words, path: words.jsonl}]
optimizer: {lr: 0.01, clip: 0.5}
run: {folder: runs/first, keep: 3}
"""


def written(folder: Path, experiment: str, hosts: str = "", task: str = TASK) -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "small.yaml").write_text(task)
    (folder / "hosts.txt").write_text(hosts)
    (folder / "experiment.yaml").write_text(experiment)
    return folder / "experiment.yaml"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("one slots=8", [Host("one", 8)]),
        ("# all\n\none slots=8 # fast\nme@10.0.0.2  slots=2\n", [Host("one", 8), Host("me@10.0.0.2", 2)]),
        ("a slots=8 type=A800\nb type=A100 slots=4", [Host("a", 8, "A800"), Host("b", 4, "A100")]),
    ],
)
def test_a_hostfile_lists_hosts(text: str, hosts: list[Host]) -> None:
    assert parse_hostfile(text, "hosts") == hosts
    assert hosts[-1].address == hosts[-1].name.removeprefix("me@")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "hosts lists no hosts"),
        ("# none\n", "hosts lists no hosts"),
        ("one", "line 1: slots must be an integer of at least 1, got ''"),
        ("one slots=0", "line 1: slots must be an integer of at least 1, got '0'"),
        ("one slots=1\ntwo slots=-2", "line 2: slots must be an integer of at least 1, got '-2'"),
        ("one slots=²", "line 1: slots must be an integer of at least 1, got '²'"),
        ("one slots=2 gpus=2", "line 1: slots= and type= may follow the host, once each, got 'gpus=2'"),
        ("one slots=2 slots=3", "line 1: slots= and type= may follow the host, once each, got 'slots=3'"),
        ("one 8", "line 1: slots= and type= may follow the host, once each, got '8'"),
        ("one slots=2 type=", "line 1: type must be letters, digits, _, - and inner dots, got ''"),
        ("-oProxyCommand=x slots=1", "line 1: the host must be a name or an address, got '-oProxyCommand=x'"),
        ("one;rm slots=1", "line 1: the host must be a name or an address, got 'one;rm'"),
        ("one slots=1\n\none slots=1", "line 3: 'one' stands there a second time"),
        ("one slots=1 type=A\ntwo slots=1", "line 2: type must stand in every line or in none"),
        ("one slots=1\ntwo slots=1 type=A", "line 2: type must stand in every line or in none"),
    ],
)
def test_a_malformed_hostfile_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_hostfile(text, "hosts")
    assert str(caught.value).startswith(f"hosts {sentence}".replace("hosts hosts", "hosts"))
    assert str(caught.value).endswith(f"; {FORM}")


def test_an_experiment_changes_its_task_and_overrides_change_both(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "task: tasks/small.yaml\noptions: {optimizer: {lr: 0.02}, train: {samples: 7}}\nlaunch: {processes: 2}\n",
    )
    plan = load_experiment(path, ["run.folder=runs/second", "launch.processes=4"])
    assert (plan.options.optimizer.lr, plan.options.optimizer.clip, plan.options.train.samples) == (0.02, 0.5, 7)
    assert (plan.options.run.folder, plan.options.run.keep, plan.launch.processes) == ("runs/second", 3, 4)
    assert plan.options.train.shares == "equal" and plan.hosts == []


@pytest.mark.parametrize(
    ("types", "options", "shares"),
    [
        (("A", "B"), "{}", "speed"),
        (("A", "A"), "{}", "equal"),
        (("A", "B"), "{train: {shares: equal}}", "equal"),
        (("A", "B"), "{parallel: {shard: 2}}", "equal"),  # its ranks go in step
    ],
)
def test_unequal_devices_share_by_speed_unless_told(
    tmp_path: Path, types: tuple[str, str], options: str, shares: str
) -> None:
    hosts = f"one slots=1 type={types[0]}\ntwo slots=1 type={types[1]}"
    text = f"task: tasks/small.yaml\noptions: {options}\nlaunch: {{hostfile: hosts.txt}}\n"
    assert load_experiment(written(tmp_path, text, hosts)).options.train.shares == shares


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        ("launch:\n  port: 1\n", "experiment.yaml: : "),
        ("task: tasks/small.yaml\nlunch: {}\n", "experiment.yaml line 2: the configuration has no option 'lunch'; it"),
        ("task: tasks/small.yaml\nlaunch:\n  prt: 1\n", "experiment.yaml line 3: launch has no option 'prt'; it has"),
        ("task: tasks/small.yaml\nlaunch:\n  port: x\n", "experiment.yaml line 3: launch.port must be int, got 'x'"),
        ("task: tasks/small.yaml\nlaunch:\n  port: 0\n", "line 3: launch.port must lie in [1, 65535], got 0"),
        ("task: tasks/small.yaml\nlaunch: {processes: -1}\n", "line 2: launch.processes must be at least 0, got -1"),
        ("task: tasks/small.yaml\nlaunch: {max_restarts: -1}\n", "launch.max_restarts must be at least 0, got -1"),
        ("task: tasks/small.yaml\nlaunch:\n  env: {a b: 1}\n", "line 3: launch.env must give texts or numbers to"),
        ("task: tasks/small.yaml\nlaunch:\n  env: {A: true}\n", "line 3: launch.env must give texts or numbers to"),
        ("task: tasks/small.yaml\nlaunch:\n  env: {A: no}\n", "line 3: launch.env must give texts or numbers to"),
        ("task: tasks/small.yaml\nlaunch: {ssh: ''}\n", "launch.ssh must be a command, got ''"),
        ("task: tasks/small.yaml\nlaunch:\n  ssh: ssh 'a\n", "line 3: launch.ssh must be a command, got"),
        (
            "task: tasks/small.yaml\noptions:\n  optimizer:\n    lr: fast\n",
            "experiment.yaml line 4: optimizer.lr must be float, got 'fast'",
        ),
        ("task: [\n", "experiment.yaml is no YAML"),
        ("7\n", "experiment.yaml must hold sections with options, got 7"),
    ],
)
def test_a_malformed_experiment_is_one_sentence_with_its_line(tmp_path: Path, experiment: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_experiment(written(tmp_path, experiment))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_wrong_with_the_task_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "task: tasks/small.yaml\n", task=TASK + "batch:\n  micro: many\n")
    with pytest.raises(ValueError, match=r"tasks/small\.yaml line 7: batch\.micro must be int, got 'many'"):
        load_experiment(path)


def test_the_commands_of_two_hosts(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "task: tasks/small.yaml\n"
        "launch: {hostfile: hosts.txt, port: 4711, max_restarts: 1, env: {N: 1, S: a b}, ssh: ssh -p 23, python: py}\n",
        "me@one slots=8 type=A\ntwo slots=4 type=B\n",
    )
    nodes = nodes_of(load_experiment(path), Path("/my runs/first/launch/task.yaml"), Path("/work"))
    assert [node.name for node in nodes] == ["me@one", "two"]
    for number, (node, slots) in enumerate(zip(nodes, (8, 4), strict=True)):
        *ssh, host, remote = node.command
        assert node.pid and node.pid.parent == Path("/my runs/first/launch")
        assert node.pid.name.startswith(f"node-{number}-")
        pid = f"'{node.pid}'"
        assert (ssh, host) == (["ssh", "-p", "23"], node.name)
        assert remote.startswith(f"cd /work && echo $$ > {pid} && exec env N=1 'S=a b' py -m torch.distributed.run ")
        torchrun = shlex.split(remote.partition(" && exec ")[2])[6:]
        settings = dict(zip(torchrun[:-4:2], torchrun[1:-4:2], strict=True))
        settings.pop("--shutdown-timeout", None)  # torch 2.11 has none
        assert settings.pop("--rdzv-id").startswith("first-")
        assert settings == {
            "--nnodes": "2",
            "--rdzv-backend": "c10d",
            "--rdzv-endpoint": "one:4711",
            "--nproc-per-node": str(slots),
            "--max-restarts": "1",
        }
        assert torchrun[-4:] == ["-m", "aquila2.cli", "train", "/my runs/first/launch/task.yaml"]
        assert node.signal == ["ssh", "-p", "23", node.name, f"test -s {pid} && kill -s NAME $(cat {pid})"]
    again = nodes_of(load_experiment(path), Path("/my runs/first/launch/task.yaml"), Path("/work"))
    assert not {node.pid for node in nodes} & {node.pid for node in again}
    script = script_of(nodes)
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    assert "kill -s TERM $(cat" in script and "kill -s INT $(cat" in script


@pytest.mark.parametrize(("device", "processes"), [("cpu", 1), ("cuda", 4), ("cuda:0", 1)])
def test_a_rank_for_every_gpu_that_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, processes: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    plan = load_experiment(written(tmp_path, "task: tasks/small.yaml\n"), [f"train.device={device}"])
    [node] = nodes_of(plan, tmp_path / "task.yaml", tmp_path)
    assert node.command[node.command.index("--nproc-per-node") + 1] == str(processes)


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "task: tasks/small.yaml\nlaunch: {processes: 3}\n")
    assert main(["launch", str(path), f"run.folder={tmp_path / 'run'}", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 3 --max-restarts 3" in printed
    assert f"train {tmp_path / 'run' / 'launch' / 'task.yaml'} &" in printed
    assert sorted(os.listdir(tmp_path)) == ["experiment.yaml", "hosts.txt", "tasks"]
    assert main(["launch", "--dry-run", str(path), "launch.port=70000"]) == 2
    assert "aquila2 launch: " in capsys.readouterr().err
