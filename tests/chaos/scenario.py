"""Faults by number and name: each a function that is given a lab and says in its docstring what must hold."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import setups
from chaos.lab import Lab, Nursery

OF_ONE_SERVER = frozenset({
    "killed_finish_sent", "stopped_at_bad_moments", "power_lost", "power_lost_always", "loading", "no_replicas",
    "read_only", "half_open", "replies_dropped", "latency", "fragments", "resets", "denied", "distrusted",
    "sentinel_crash", "sentinel_crash_confirmed", "sentinel_planned", "slot_moves", "slot_moves_whole", "cluster_crash",
    "cluster_crash_confirmed", "cluster_planned", "against_its_model",
})  # fmt: skip
"""Faults that need a proxy, a file or a role of a server that stands alone, or that bring servers of their own."""

Injection = Callable[[Lab], Awaitable[None]]


class Scenario(NamedTuple):
    number: str
    name: str
    what: str
    inject: Injection
    seconds: float
    """After so many, at full size, something hangs."""
    not_on: tuple[str, ...]
    """Servers that cannot be made to have this fault."""

    def is_for(self, server: str) -> bool:
        """Whether this server can be made to have this fault.

        Several servers cannot where one of a kind is started for the fault, or reached through a proxy: they tell each
        client the addresses of their own.
        """
        return server not in self.not_on and (server not in setups.NAMES or self.name not in OF_ONE_SERVER)

    def __str__(self) -> str:
        return f"{self.number}-{self.name}"


class Row(NamedTuple):
    """One line of the table."""

    scenario: Scenario
    runs: int
    accepted: int
    lost: int
    forgotten: int
    at_risk: int
    duplicates: int
    allowed: int
    recovery: float
    seconds: float
    broken: list[str]


SCENARIOS: list[Scenario] = []


def fault(
    number: str, what: str, *, seconds: float = 600.0, not_on: tuple[str, ...] = ()
) -> Callable[[Injection], Injection]:
    """Decorator: a scenario of this fault of the list. `what` is what the table calls it."""

    def register(inject: Injection) -> Injection:
        assert inspect.getdoc(inject), "say what must hold"
        SCENARIOS.append(Scenario(number, inject.__name__, what, inject, seconds, not_on))
        return inject

    return register


def environment() -> contextlib.AbstractContextManager[object]:
    """What all clients of the lab are told: patience of a second."""
    return mock.patch.dict(os.environ, REDIS_TIMEOUT="1.0")


async def run(scenario: Scenario, server: str, *, full: bool) -> Row:
    """Inject a fault; whatever goes wrong is a row that does not hold."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as directory:
        nursery = await Nursery.open()
        lab = Lab(Path(directory), server, nursery, full=full)
        try:
            await asyncio.wait_for(scenario.inject(lab), scenario.seconds if full else 60)
        except Exception as error:  # noqa: BLE001  (a row that does not hold stays in the table)
            lab.tally.broken.append(_said(error))
        finally:
            lab.close()
            await nursery.close()
    tally = lab.tally
    return Row(
        scenario, tally.runs, tally.accepted, tally.lost, tally.forgotten, tally.at_risk, tally.duplicates,
        tally.allowed, tally.recovery, time.monotonic() - began, list(dict.fromkeys(tally.broken)),
    )  # fmt: skip


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in where if "chaos" in frame.filename]
    line = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{line}" if str(error) else f"{type(error).__name__}{line}"
