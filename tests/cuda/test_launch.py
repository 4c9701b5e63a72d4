"""ptx::launch on a GPU, and on a stand-in for the CUDA runtime: its errors are its own, and it keeps nobody else's."""

from __future__ import annotations

import pytest

from tests.cuda import programs


@pytest.mark.parametrize("name", ["launches_without_gpu", pytest.param("launches", marks=pytest.mark.gpu)])
def test_a_refused_launch_leaves_no_error_behind(name: str) -> None:
    program = programs.built(name)
    if program is None:
        pytest.skip("there is no CUDA compiler")
    done = programs.run(program)
    assert done.returncode == 0 and ": wrong" not in done.stdout, done.stdout
