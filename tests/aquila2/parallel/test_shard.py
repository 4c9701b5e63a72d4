"""A model divided by FSDP2 is the same model: gradients, and a run that goes on however it was divided before."""

from __future__ import annotations

from pathlib import Path

from aquila2.training.options import dump_options
from tests.aquila2.heurimentor.runs import options_for, ranks_of, run_python, write_texts
from tests.aquila2.parallel.gradients import compare_gradients
from tests.aquila2.parallel.turns import same_run

GRADIENTS = """
import sys
from pathlib import Path
from tests.aquila2.parallel.gradients import save_gradients

out = Path(sys.argv[1])
save_gradients(out / "one", [1], {}, False)
save_gradients(out / "three", [2, 0, 1], {"shard": 3}, True)
save_gradients(out / "tied", [1], {}, False, tie_word_embeddings=True)
save_gradients(out / "four", [1, 2, 1, 3], {"shard": 2, "replicate": 2}, False, tie_word_embeddings=True)
"""


def test_gradients_of_a_divided_model_equal_the_single_process(tmp_path: Path) -> None:
    run_python("-c", GRADIENTS, tmp_path)
    assert compare_gradients(tmp_path / "three", tmp_path / "one", ranks=3) == 1  # nobody has more than its part
    assert compare_gradients(tmp_path / "four", tmp_path / "tied", ranks=4) == 2


def test_a_run_goes_on_however_it_was_divided(tmp_path: Path) -> None:
    run, _, _ = same_run(tmp_path, "1 2", "2 4 parallel.shard=0", "3 8 parallel.shard=3", "1 0")
    assert [len(shares) for shares in ranks_of(run)] == [2, 3, 1]


def test_sizes_that_do_not_make_up_the_ranks_are_refused_once(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    options = options_for(tmp_path / "texts", tmp_path / "run", parallel={"shard": 3})
    (tmp_path / "config.yaml").write_text(dump_options(options))
    script = (
        "import sys; from aquila2.cli import main\n"
        "from tests.aquila2.heurimentor.engine.fork_ranks import fork_ranks\n"
        "assert fork_ranks(2, lambda rank: sys.exit(main(['train', sys.argv[1]]))) == [1, 1]\n"
    )
    said = run_python("-c", script, tmp_path / "config.yaml").stderr
    sentence = "must make up the 2 ranks of the run, got 1 x 3 x 1 x 1"
    assert said.count(sentence) == 1, said
