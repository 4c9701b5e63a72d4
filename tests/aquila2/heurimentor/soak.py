"""The soak of kills: what trains, keeps a ledger or writes folders dies by kill -9, and goes on as if nothing had been.

`python -m tests.aquila2.heurimentor.soak -o soak.json [--kills 200] [--seconds 200]` runs what the file does not hold
yet, rounds of kills with other seeds, until there are that many of each kind or the time is up; run it again to go on.
It prints what is left and fails where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from aquila2.atomic import atomic_write
from tests.aquila2.heurimentor import test_verified
from tests.aquila2.heurimentor.engine import test_trainer_kills
from tests.aquila2.heurimentor.ledger import test_kills

COMMAND = "python -m tests.aquila2.heurimentor.soak"
KINDS = {
    "trainer": test_trainer_kills.kill_and_compare,
    "ledger": test_kills.kill_and_compare,
    "folder": test_verified.kill_writers,
}
ROUND = 20  # kills with one seed


def round_of(kind: str, seed: int) -> dict[str, Any]:
    """What a round has come to; `said` is empty where all is right."""
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            KINDS[kind](Path(folder), ROUND, seed)
        except Exception:
            said = traceback.format_exc()[-2000:]
    return {"kind": kind, "seed": seed, "kills": ROUND, "right": not said, "said": said}


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a JSON file, read first if it is there")
    parser.add_argument("--kills", type=int, default=200, help="of every kind (default 200)")
    parser.add_argument("--seconds", type=float, default=200, help="begin no round after so long (default 200)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    if options.output.exists():
        rounds = json.loads(options.output.read_text())["rounds"]
    known = {(found["kind"], found["seed"]) for found in rounds}
    seeds = range(1, -(-options.kills // ROUND) + 1)
    left = [(kind, seed) for seed in seeds for kind in options.kinds if (kind, seed) not in known]
    end = time.monotonic() + options.seconds
    while left and time.monotonic() < end:
        rounds.append(round_of(*left.pop(0)))
        done = {kind: sum(found["kills"] for found in rounds if found["kind"] == kind) for kind in KINDS}
        facts = {"command": f"{COMMAND} --kills {options.kills}", "kills": done, "rounds": rounds}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(options.output, json.dumps(facts, indent=1) + "\n")
    wrong = [found for found in rounds if not found["right"]]
    print(f"{sum(found['kills'] for found in rounds)} kills, {len(wrong)} rounds wrong, {len(left)} rounds left")
    for found in wrong:
        print(f"{found['kind']}, seed {found['seed']}:\n{found['said']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
