"""Every fault at smoke size; `make chaos` is the full one.

Most of a fault's time is spent on waiting, for leases above all: so a few of them are injected at a time, each with a
server and processes of its own. The tests only ask how it went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import servers
from chaos import scenario
from chaos.faults import FAULTS
from chaos.scenario import Row, Scenario

AT_A_TIME = 3
SMOKE = [fault for fault in FAULTS if fault.number != "23"]
"""All but the state machine, whose test is test_machine.py."""


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Row | None]]]:
    """What came of each fault that this run asks for."""
    server = request.config.getoption("--server") or servers.DEFAULT
    if server == "testcontainers":
        pytest.skip("a container's process is not ours to kill")
    asked = [item.callspec.params["fault"] for item in request.session.items if item.path == request.path]  # type: ignore[attr-defined]

    def inject(fault: Scenario) -> Row | None:
        if not fault.is_for(server):
            return None
        return asyncio.run(scenario.run(fault, server, full=False))

    # A loop each: what holds up one of them, such as the start of a Cluster, is no fault of the others'.
    with scenario.environment(), ThreadPoolExecutor(AT_A_TIME) as turns:
        yield {str(fault): turns.submit(inject, fault) for fault in asked}


@pytest.mark.parametrize("fault", SMOKE, ids=str)
def test_fault(fault, rows):
    row = rows[str(fault)].result(timeout=180)
    if row is None:
        pytest.skip("this server cannot be made to have this fault")
    assert not row.broken, f"{fault.what}: " + "; ".join(row.broken)
    assert row.runs
