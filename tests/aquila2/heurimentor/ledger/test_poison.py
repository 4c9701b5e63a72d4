"""One poisoned document among ten thousand, in a run of the real trainer: `locate` names it first, `trace` finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aquila2.cli import main
from aquila2.heurimentor.ledger.locate import RunData
from aquila2.heurimentor.ledger.trace import trace
from aquila2.training import trainer
from tests.aquila2.heurimentor.runs import options_for

DOCUMENTS, POISONED = 10_000, 7_777
POISON = "ZQ!9 xX 7#k ~~ Vw8 @@ lkjh QQ zz 0101 %% Jp3 ^^ mNb && tT5 ** qQ2 ;; Hh4 || oO0 ## Rr1"


def test_one_poisoned_document_among_ten_thousand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f'{{"text": "the {i % 9} birds of hill {i % 7} sing at {i % 5} o\'clock"}}\n' for i in range(DOCUMENTS)]
    lines[POISONED] = f'{{"text": "{POISON}"}}\n'
    (tmp_path / "birds.jsonl").write_text("".join(lines))
    run = tmp_path / "run"
    options = options_for(
        tmp_path,
        run,
        data={"sources": [{"name": "birds", "path": str(tmp_path / "birds.jsonl")}], "seq_len": 96, "heldout": 0.01},
        batch={"micro": 16, "size": 16},
        train={"samples": 2240},
        run={"save_every": 20, "keep": 100},
    )
    trainer.train(options)
    data = RunData(run)
    occurrences = list(trace(data, POISON, trainer.Aquila2Tokenizer.from_pretrained(run / "tokenizer")))
    assert {occurrence.document.id for occurrence in occurrences} == {f"birds.jsonl:{POISONED + 1}#0"}
    steps = [step for occurrence in occurrences for step in occurrence.steps]
    assert steps
    capsys.readouterr()
    assert main(["ledger", "locate", str(run), "--step", str(steps[0])]) == 0
    head, _, first, *_ = capsys.readouterr().out.splitlines()
    assert f"step {steps[0]}: " in head and f"birds.jsonl:{POISONED + 1}#0" in first
    assert main(["ledger", "trace", str(run), POISON]) == 0
    assert f"birds.jsonl:{POISONED + 1}#0" in capsys.readouterr().out
