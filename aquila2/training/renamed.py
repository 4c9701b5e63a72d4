"""Options that older versions had, in the words of today: their runs can be read and go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aquila2.training.option_rules import POLICIES
from aquila2.training.sections import OptionError

STOP_ON = [finding for finding in POLICIES if finding not in ("spike", "not_finite")]


def in_words_of_today(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections, where `monitor.stop_on: [plateau]` has become `monitor.plateau: stop`.

    Raises:
        OptionError: `monitor.stop_on` lists something else than findings, or one whose own option says otherwise.
    """
    monitor = entries.get("monitor")
    if not isinstance(monitor, Mapping) or "stop_on" not in monitor:
        return entries
    findings = monitor["stop_on"]
    if not isinstance(findings, list) or not all(finding in STOP_ON for finding in findings):
        sentence = f"monitor.stop_on must list some of {', '.join(STOP_ON)}, got {findings!r}"
        raise OptionError(sentence, "monitor.stop_on")
    for finding in findings:
        if monitor.get(finding, "stop") != "stop":
            sentence = f"monitor.{finding} must be stop where monitor.stop_on lists it, got {monitor[finding]!r}"
            raise OptionError(sentence, f"monitor.{finding}")
    others = {name: value for name, value in monitor.items() if name != "stop_on"}
    return {**entries, "monitor": {**others, **dict.fromkeys(findings, "stop")}}
