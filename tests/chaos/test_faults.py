"""Every fault at smoke size; `make chaos` is the full one.

Most of a fault's time is spent on waiting, for leases above all: so a few of them are injected at a time, each with a
server and processes of its own. The tests only ask how it went.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future

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
    results: dict[str, Future[Row | None]] = {str(fault): Future() for fault in asked}

    async def inject(fault: Scenario, turn: asyncio.Semaphore) -> None:
        async with turn:
            try:
                row = None if server in fault.not_on else await scenario.run(fault, server, full=False)
                results[str(fault)].set_result(row)
            except Exception as error:  # noqa: BLE001  (the test raises it)
                results[str(fault)].set_exception(error)

    async def inject_all() -> None:
        turn = asyncio.Semaphore(AT_A_TIME)
        with scenario.environment():
            await asyncio.gather(*(inject(fault, turn) for fault in asked))

    thread = threading.Thread(target=lambda: asyncio.run(inject_all()))
    thread.start()
    yield results
    thread.join()


@pytest.mark.parametrize("fault", SMOKE, ids=str)
def test_fault(fault, rows):
    row = rows[str(fault)].result(timeout=180)
    if row is None:
        pytest.skip("this server cannot be made to have this fault")
    assert not row.broken, f"{fault.what}: " + "; ".join(row.broken)
    assert row.runs
