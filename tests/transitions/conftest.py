"""A queue for each test, its groups made and its lease agreed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import servers
import setups
from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue.settings import Settings
from transitions.tables import LEASE, Queue


@pytest.fixture
async def unjoined(server: servers.AnyServer, redis: Any, prefix: str) -> AsyncIterator[Queue]:
    """A queue that nobody joined. Afterwards, the lines of priorities hold nothing that main does not."""
    connection = Connection(Settings(server.url))
    await connection.open()
    queue = Queue(connection, Keys(prefix), redis)
    yield queue
    for line in queue.keys.lines.values():
        if await redis.type(line) == "zset":
            strays = set(await redis.zrange(line, 0, -1)) - set(await redis.zrange(queue.keys.main, 0, -1))
            assert not strays, f"{line} still holds {strays}"
    await connection.close()


@pytest.fixture
async def queue(unjoined: Queue) -> Queue:
    """A queue that worker w1 joined."""
    await unjoined.transitions.join("w1", LEASE)
    return unjoined


@pytest.fixture
async def small(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Queue]:
    """A queue on a server of its own, of the run's kind, that evicts nothing: `fill` and `empty` it."""
    name = setups.kind_asked_for(request.config)
    try:
        server = servers.start(name, tmp_path, "--maxmemory-policy", "noeviction")
    except KeyError:
        pytest.skip(f"{name} has no server of one's own")
    connection = Connection(Settings(server.url))
    try:
        await connection.open()
        async with server.client() as client:
            queue = Queue(connection, Keys("small"), client)
            await queue.transitions.join("w1", LEASE)
            yield queue
    finally:
        await connection.close()
        server.stop()
