"""All scenarios, in the order of their faults."""

from __future__ import annotations

import importlib
import re

from chaos.scenario import SCENARIOS, Scenario

ROOMS = ("kills", "callers", "outages", "network", "edits", "upkeep", "byhand", "access", "several", "model")
"""The files that hold scenarios."""

for _room in ROOMS:
    importlib.import_module(f"chaos.{_room}")


def _order(scenario: Scenario) -> tuple[int, str]:
    match = re.fullmatch(r"(\d+)(\w*)", scenario.number)
    assert match is not None
    return int(match[1]), match[2]


FAULTS = sorted(SCENARIOS, key=_order)
