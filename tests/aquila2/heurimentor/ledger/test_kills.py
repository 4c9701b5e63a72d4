"""kill -9 at random points of steps, decisions, requests and saves: every run goes on, and its audit proves it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from aquila2.heurimentor.ledger import audit as audit_module
from aquila2.heurimentor.ledger.audit import audit
from aquila2.heurimentor.ledger.book import NAME
from aquila2.heurimentor.ledger.chain import scan
from aquila2.heurimentor.ledger.lineage import Lineage

# A trainer without a model: its state is a hash over all rows that it was fed, which its checkpoints keep.
TRAINER = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
from aquila2.heurimentor.ledger.book import Book, row_digest
from aquila2.heurimentor.ledger.control import answer_requests, request
from aquila2.heurimentor.ledger.lineage import Head
from aquila2.heurimentor.verified import keep_newest, newest_verified, numbered_folders, verified_folder

run, kills, least, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])

def train(ends):
    found = newest_verified(numbered_folders(run / "checkpoints", "step-"), lambda sentence: sys.exit(sentence))
    if found:
        head = Head.of(found[1]["ledger"])
        book, state = Book(run, head), (found[0] / "state").read_bytes()
    elif (run / "ledger.jsonl").exists() and (run / "begun").exists():
        book, state = Book(run), b""
    else:
        (run / "ledger.jsonl").unlink(missing_ok=True)
        book, state = Book.create(run, seed=5, row_tokens=8), b""
        for domain, rows in (("en", 300), ("zh", 170)):
            book.decide("open", {"domain": domain, "id": domain, "folder": domain, "rows": rows})
        book.mix({"en": 2, "zh": 1})
        (run / "begun").touch()
    last = max(least, book.lineage.step + 100)
    while book.lineage.step < last or not ends:  # nobody reaches the end before all kills are done
        time.sleep(0.002)
        answer_requests(book)
        step, plan = book.lineage.step + 1, book.plan(4)
        for number, row in zip(plan.segments.tolist(), plan.rows.tolist()):
            state = hashlib.sha256(state + f"{number} {row}".encode()).digest()
        book.commit(4, sum(row_digest(int(sample), plan.rows[:1]) for sample in plan.samples))
        if step % 40 == 7 and not (run / f"asked-{step}").exists():
            (run / f"asked-{step}").touch()
            request(run, "mix", {"en": step % 3 + 1, "zh": 1}, after=step + 45)
        if step % 10 == 0:
            book.sync()
            name = run / "checkpoints" / f"step-{step}"
            with verified_folder(name, {"ledger": book.head.facts()}) as folder:
                (folder / "state").write_bytes(state)
            keep_newest(name, "step-", 2)
    (run / "state").write_bytes(state)
    book.close()

def length():
    return (run / "ledger.jsonl").stat().st_size if (run / "ledger.jsonl").exists() else 0

random.seed(seed)
killed = 0
while True:
    child = os.fork()
    if not child:
        train(killed == kills)
        os._exit(0)
    if killed < kills:
        if random.random() < 0.8:  # not before it has written, however slow the machine is
            before = length()
            while length() == before and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.001)
        time.sleep(random.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        killed += 1
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    else:
        assert os.waitpid(child, 0)[1] == 0
        print(killed)
        break
"""


def kill_and_compare(folder: Path, kills: int, seed: int) -> None:
    """Kills a run that often, and fails where its state is not that of its lineage without any kill."""
    script = folder / "trainer.py"
    script.write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(Path(audit_module.__file__).parents[3])}
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    command = [sys.executable, str(script), str(run), str(kills), "240", str(seed)]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) == kills
    result = audit(run)
    assert not result.faults and result.steps >= 240 and result.heads == 2 and len(result.resumes) >= kills // 2

    # The state of the weights is that of the lineage, replayed from the file.
    lineage, state = Lineage.of(scan(run / NAME).lines), b""
    plan = lineage.schedule.draws(0, lineage.samples)
    for number, row in zip(plan.segments.tolist(), plan.rows.tolist(), strict=True):
        state = hashlib.sha256(state + f"{number} {row}".encode()).digest()
    assert (run / "state").read_bytes() == state
    asked = [line.record["request"] for line, _ in lineage.applied if "request" in line.record]
    assert len(asked) == len(set(asked)) >= 3


def test_a_killed_run_equals_itself_undisturbed(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 20, 20)
