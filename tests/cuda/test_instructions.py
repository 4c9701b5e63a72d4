"""Every wrapper of csrc/arch/ptx compiles for the architectures that have its instruction, and does on a GPU what its
host twin does."""

from __future__ import annotations

import pytest

from tests.cuda import programs


@pytest.mark.parametrize("name", [name for name in programs.PROGRAMS if name.startswith("instructions")])
def test_compiles_and_links(name: str) -> None:
    """Without a GPU the program says so; with one the checks below ask it."""
    program = programs.built(name)
    if program is None:
        pytest.skip("there is no CUDA compiler")
    assert program.exists()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in programs.PROGRAMS if name.startswith("instructions")])
def test_a_gpu_does_what_the_host_twins_do(name: str) -> None:
    if name not in programs.of_this_gpu():
        pytest.skip(f"{name} does not run on this GPU")
    program = programs.built(name)
    if program is None:
        pytest.skip("there is no CUDA compiler, and the program was not built ahead")
    done = programs.run(program)
    assert done.returncode == 0 and ": right" in done.stdout and ": wrong" not in done.stdout, done.stdout
