"""The command that measures."""

from __future__ import annotations

import pytest

from bench import __main__ as command


def test_modules_start_with_the_machine() -> None:
    names = command.modules()
    assert names[0] == "machine"
    assert {"attention", "piecewise", "norm", "activation", "rotary", "training_step"} <= set(names)


def test_the_recorded_command_can_be_repeated() -> None:
    assert command.command_of([], None) == "python -m bench"
    assert command.command_of(["norm"], "fp32 and forward") == "python -m bench norm -k 'fp32 and forward'"


def test_an_unknown_module_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "no bench named 'nonsense'" in capsys.readouterr().err
