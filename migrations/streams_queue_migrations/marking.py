"""One migration of a queue at a time: a mark in ``P:meta`` says whose it is, and runs out soon after that one died."""

import asyncio
import os
import re
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streams_queue.errors import MigrationError, StreamsQueueError
from streams_queue_migrations.door import Door

LASTS = 5.0
"""Seconds that a mark lasts; it is renewed three times in that time."""


@asynccontextmanager
async def marked(door: Door, *, force: bool) -> AsyncIterator[None]:
    """The queue is this migration's meanwhile. One that was killed is waited for until its mark has run out.

    Args:
        door: of the queue.
        force: go on although another one lives.

    Raises:
        MigrationError: another one lives.
    """
    owner = _name()
    await _take(door, owner, force=force)
    renewing = asyncio.create_task(_renew(door, owner))
    try:
        yield
    finally:
        renewing.cancel()
        await _free(door, owner)


async def _take(door: Door, owner: str, *, force: bool) -> None:
    first = await door.mark(owner, LASTS, "force" if force else "take")
    seen = first
    while seen[0] != owner:
        if seen != first:  # it has renewed its mark, or given way to a third
            raise MigrationError(
                f"queue {door.keys.prefix!r} is being moved in or rolled back by {seen[0]} (host, process): wait until "
                "that is done; --force goes on beside it"
            )
        await asyncio.sleep(LASTS / 10)
        seen = await door.mark(owner, LASTS, "take")


async def _renew(door: Door, owner: str) -> None:
    held = True
    while held:
        await asyncio.sleep(LASTS / 3)
        try:
            held = (await door.mark(owner, LASTS, "renew"))[0] == owner
        except StreamsQueueError:
            continue  # what the migration itself does next says so


async def _free(door: Door, owner: str) -> None:
    try:
        await door.mark(owner, LASTS, "free")
    except StreamsQueueError:
        return  # it runs out by itself


def _name() -> str:
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60]
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
