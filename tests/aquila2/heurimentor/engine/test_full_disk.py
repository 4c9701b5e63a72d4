"""The disk is full when any file of a run is to be made: the run ends, says so, and goes on when there is room.

One run meets a full disk at one file after the other, and is started again each time.
"""

from __future__ import annotations

from pathlib import Path

from aquila2.heurimentor.ledger.audit import audit
from aquila2.training.checkpoints import checkpoint_fault, list_checkpoints
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import losses_of, options_for, rows_of, run_python, write_texts

SCRIPT = """
import errno, os, re, sys, traceback
from pathlib import Path
import pyarrow, torch
from aquila2 import checkpoint
from aquila2.cli import main
from aquila2.training import checkpoints, trainer
from torch.utils.tensorboard import SummaryWriter

torch.set_num_threads(1)
config, runs = Path(sys.argv[1]), Path(sys.argv[2])
log, refused = None, None

def kind(path):
    return re.sub(r"[0-9]+", "N", re.sub(r"tfevents.*", "tfevents", path))

def hook(event, arguments):
    # Python tells of every file before it opens it.
    if event != "open" or isinstance(arguments[0], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    path = os.path.relpath(os.fsdecode(arguments[0]), run)
    if not path.startswith(".."):
        os.write(log, (kind(path) + "\\n").encode())
        if kind(path) == refused:
            raise OSError(errno.ENOSPC, "No space left on device", path)

def telling(write, place):  # of files that libraries open, not Python
    def writing(*arguments):
        sys.audit("open", str(arguments[place]), "wb", os.O_WRONLY)
        return write(*arguments)
    return writing

def start(folder, full=None):
    global run, log, refused
    child = os.fork()
    if not child:
        run, refused = runs / folder, full
        log = os.open(runs / (folder + ".opened"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(runs / (folder + ".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        checkpoint.save_file = checkpoints.save_file = telling(checkpoint.save_file, 1)
        pyarrow.OSFile = telling(pyarrow.OSFile, 0)
        sys.addaudithook(hook)
        try:
            status = main(["train", str(config), f"run.folder={run}"])
        except BaseException:
            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert start("calm") == 0, (runs / "calm.said").read_text()
# In the order in which they are opened. The empty .rights beside a file is made after it, in the same folder.
opened = dict.fromkeys((runs / "calm.opened").read_text().split())
names = [name for name in opened if not name.endswith(".rights")]
number = 0
for name in names:
    folder = f"run{number}"
    status = start(folder, name)
    if status == 0:  # it has what it would have written there
        number, folder = number + 1, f"run{number + 1}"
        status = start(folder, name)
    said = (runs / f"{folder}.said").read_text()
    assert status == 2 and "aquila2 train: [Errno 28] No space left on device" in said, (name, status, said)
    assert "Traceback" not in said or name.startswith("tensorboard/"), said  # whose thread tells what ends it
    print(name)
assert start(folder) == 0, (runs / f"{folder}.said").read_text()
"""


def test_every_file_may_find_the_disk_full(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    runs = tmp_path / "runs"
    runs.mkdir()
    options = options_for(tmp_path / "texts", runs, train={"samples": 8}, run={"save_every": 1, "tensorboard": True})
    (tmp_path / "config.yaml").write_text(dump_options(options))
    names = run_python("-c", SCRIPT, tmp_path / "config.yaml", runs, timeout=600).stdout.split()
    assert {"ledger.jsonl", "metrics.jsonl", "checkpoints/step-N.tmp/manifest.json"} < set(names)
    for path in (path for path in (runs / "calm").rglob("*") if path.is_file() and path.suffix != ".lock"):
        assert sum(path.name.split(".")[0] in name for name in names), f"{path} was made behind the test's back"
    ended = [path for path in runs.glob("run*") if path.is_dir()]
    assert len(ended) < 4  # else each name has nearly its own
    for run in ended:
        assert losses_of(run) == losses_of(runs / "calm") and rows_of(run) == rows_of(runs / "calm"), run
        assert not audit(run, data=True).faults, run
        assert all(checkpoint_fault(path) is None for path in list_checkpoints(run / "checkpoints")), run
