"""kill -9 at random points of a real run that saves after every step: it goes on each time, as if nothing had been."""

from __future__ import annotations

from pathlib import Path

from aquila2.heurimentor.ledger.audit import audit
from aquila2.training.checkpoints import checkpoint_fault, list_checkpoints
from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import losses_of, options_for, rows_of, run_python, write_texts

SCRIPT = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from aquila2.heurimentor import verified
from aquila2.heurimentor.ledger.book import Book
from aquila2.training import checkpoints, trainer
from aquila2.training.options import load_options

torch.set_num_threads(1)
config, calm, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
# Where some die by their own hand: between a checkpoint's files, before its manifest, behind it, before a ledger line,
# and after a step that was taken while a checkpoint is written.
AIMS = [(verified, "fsync_path"), (verified, "_write_manifest"), (checkpoints, "keep_newest"), (Book, "commit")]
AIMS += [(verified, "_write_manifest")]
FIRST_AIM, MOST_STEPS = 5, 2

def fall(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def fall_behind_a_step(folder, facts):
    while length() <= facts["ledger"]["offset"]:
        time.sleep(0.001)
    fall()

def pausing(one_step):
    steps = []
    def stepping(self, *arguments):
        if len(steps) == MOST_STEPS:  # nobody reaches the end before all kills are done
            time.sleep(3600)
        steps.append(1)
        return one_step(self, *arguments)
    return stepping

def start(*overrides, killed=None):
    child = os.fork()
    if not child:
        status = 1
        try:
            if killed is not None:
                trainer.Loop._one_step = pausing(trainer.Loop._one_step)
                overrides = [f"run.save={'sync' if killed % 4 == 3 else 'async'}"]
                if 0 <= killed - FIRST_AIM < len(AIMS):
                    aim = killed - FIRST_AIM
                    setattr(*AIMS[aim], fall_behind_a_step if aim == len(AIMS) - 1 else fall)
            trainer.train(load_options(config, overrides))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child

ledger = Path(load_options(config).run.folder) / "ledger.jsonl"

def length():
    return ledger.stat().st_size if ledger.exists() else 0

assert os.waitpid(start(f"run.folder={calm}"), 0)[1] == 0
random.seed(seed)
killed = 0
while killed < kills:
    child = start(killed=killed)
    if 0 <= killed - FIRST_AIM < len(AIMS):
        pass
    elif random.random() < 0.8:  # not before it has written, however slow the machine is
        before = length()
        while length() == before and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
    if not 0 <= killed - FIRST_AIM < len(AIMS):
        time.sleep(random.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    killed += 1
assert os.waitpid(start(), 0)[1] == 0
print(killed)
"""


def kill_and_compare(folder: Path, kills: int, seed: int) -> None:
    """Kills a run that often, and fails where it ends otherwise than the one beside it that nobody touched."""
    write_texts(folder / "texts")
    run, calm = folder / "run", folder / "calm"
    options = options_for(
        folder / "texts",
        run,
        train={"samples": 12 * kills},
        run={"save_every": 1, "keep": 2},
        decisions=[{"after": 4, "mixture": {"words": 1.0, "sums": 2.0}}, {"after": 7, "skip": 5}],
    )
    (folder / "config.yaml").write_text(dump_options(options))
    done = run_python("-c", SCRIPT, folder / "config.yaml", calm, str(kills), str(seed), timeout=60 * kills)
    assert int(done.stdout) == kills
    result = audit(run, data=True)
    assert not result.faults and len(result.resumes) >= kills // 2 and result.heads == 2
    assert losses_of(run) == losses_of(calm) and rows_of(run) == rows_of(calm)
    assert all(checkpoint_fault(checkpoint) is None for checkpoint in list_checkpoints(run / "checkpoints"))


def test_a_killed_run_equals_itself_undisturbed(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 20, 20)
