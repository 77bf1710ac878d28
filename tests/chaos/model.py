"""The queue against its model, on every server that is installed (fault 23)."""

from __future__ import annotations

import asyncio
from functools import partial

from hypothesis.stateful import run_state_machine_as_test

import servers
from chaos.lab import Lab
from chaos.limited import Limited
from chaos.machine import Machine, settings
from chaos.scenario import fault


@fault("23", "state machine over all operations and outside edits, on every server", seconds=1200)
async def against_its_model(lab: Lab) -> None:
    """After each step every documented key is as the model says."""
    for name in servers.NAMES[:-1]:
        try:
            server = servers.start(name, lab.directory / name)
        except servers.Missing:
            continue
        Machine.server, Machine.examples, Machine.enqueued = server, 0, 0
        try:
            for machine in (Machine, Limited):
                run = partial(run_state_machine_as_test, machine, settings=settings(lab.size(10, 1_500)))
                await asyncio.to_thread(run)
        finally:
            lab.tally.runs += Machine.examples
            lab.tally.accepted += Machine.enqueued
            server.kill()
