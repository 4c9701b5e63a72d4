"""A pipeline of uneven stages is the same model: gradients, and a run that goes on with and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from aquila2 import Aquila2Config
from aquila2.parallel.pipeline import check_stages
from aquila2.training.metrics import read_metrics
from tests.aquila2.heurimentor.runs import ranks_of, run_python
from tests.aquila2.parallel.gradients import compare_gradients
from tests.aquila2.parallel.turns import same_run

GRADIENTS = """
import sys
from pathlib import Path
from tests.aquila2.parallel.gradients import save_gradients

out = Path(sys.argv[1])
save_gradients(out / "one", [1], {}, False, num_hidden_layers=4)
save_gradients(out / "two", [1], {"stages": [3, 1]}, True, num_hidden_layers=4)
save_gradients(out / "four", [3, 1], {"stages": [1, 3]}, False, num_hidden_layers=4)
save_gradients(out / "one row", [1], {}, False, rows=1, num_hidden_layers=4)
save_gradients(out / "more stages", [1], {"stages": [1, 2, 1]}, False, rows=1, num_hidden_layers=4)
"""


def test_gradients_of_uneven_stages_equal_the_single_process(tmp_path: Path) -> None:
    run_python("-c", GRADIENTS, tmp_path)
    assert compare_gradients(tmp_path / "two", tmp_path / "one", ranks=2) == 1  # nobody has another's layers
    assert compare_gradients(tmp_path / "four", tmp_path / "one", ranks=4) == 2
    assert compare_gradients(tmp_path / "more stages", tmp_path / "one row", ranks=3) == 1  # than there are batches


def test_a_run_goes_on_with_and_without_stages(tmp_path: Path) -> None:
    run, alone, _ = same_run(tmp_path, "4 4 parallel.stages=[2,1]", "2 8 parallel.stages=[1,2]", "1 0", layers=3)
    assert ranks_of(run) == [[1, 1], [1]]  # the stages of a copy count as one
    for kind in ("heldout", "attention", "weights"):
        ours, theirs = ([r for r in read_metrics(folder) if r["kind"] == kind] for folder in (run, alone))
        assert len(ours) == len(theirs) > 0
        assert ours[1].keys() == theirs[1].keys()
        for key, value in theirs[1].items():
            assert ours[1][key] == (pytest.approx(value, rel=1e-2) if isinstance(value, float) else ours[1][key])


@pytest.mark.parametrize(
    ("stages", "tied", "sentence"),
    [
        ([1, 2], False, r"parallel.stages must be positive and sum to the model's 2 layers, got \[1, 2\]"),
        ([2, 0], False, r"parallel.stages must be positive and sum to the model's 2 layers, got \[2, 0\]"),
        ([1, 1], True, "parallel.stages needs a model whose tie_word_embeddings is false"),
    ],
)
def test_stages_that_do_not_make_up_the_model_are_refused(stages: list[int], tied: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        check_stages(Aquila2Config.named("tiny", tie_word_embeddings=tied), stages)
