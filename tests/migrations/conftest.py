"""A queue of the old layout for each test, and the migration's own door to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import servers
from migrations.old_state import OldState
from migrations.steps import Moving
from streams_queue import Queue
from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue.settings import Settings
from streams_queue_migrations import applying


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "GRACE", 0.2)


@pytest.fixture
def client(server: servers.AnyServer) -> Iterator[Any]:
    """A client that answers in bytes."""
    with server.sync_client(decode_responses=False) as client:
        yield client


@pytest.fixture
def state(client: Any, prefix: str) -> OldState:
    """The old queue, to be written: `flush` sends what is left."""
    return OldState(client, prefix)


@pytest.fixture
async def moving(server: servers.AnyServer, redis: Any, prefix: str) -> AsyncIterator[Moving]:
    """The queue seen through the migration's door, and as a table."""
    connection = Connection(Settings(server.url))
    await connection.open()
    yield Moving(connection, Keys(prefix), redis)
    await connection.close()


@pytest.fixture
async def queue(server: servers.AnyServer, prefix: str) -> AsyncIterator[Queue[Any]]:
    """The queue as the engine has it."""
    async with Queue(prefix, url=server.url) as queue:
        yield queue
