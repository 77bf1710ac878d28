"""Single steps of a migration, and whole ones, as the tests take them."""

from __future__ import annotations

from typing import Any

import redis.asyncio as redis_asyncio

from migrations.old_state import OldState
from streams_queue import Message, Queue, Worker
from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue_migrations import Applied, RolledBack, apply, roll_back, verify
from streams_queue_migrations.door import START, Door, Entered, Kept, Stripped
from transitions import tables

ADOPTED_TTL = 3600
KEPT = 1000


class Moving(tables.Queue):
    """A queue's tables, with the migration's transitions."""

    def __init__(self, connection: Connection, keys: Keys, redis: redis_asyncio.Redis) -> None:
        super().__init__(connection, keys, redis)
        self.door = Door(connection, keys)

    async def prepare(self, *, index_users: bool = False) -> bool:
        return await self.door.prepare(index_users=index_users)

    async def enter(self) -> Entered:
        return await self.door.enter(begins=True, adopted_ttl=ADOPTED_TTL, dedup_expiry=tables.DEDUP_EXPIRY)

    async def keep(self, queue: str) -> Kept:
        return await self.door.keep(queue, START, adopted_ttl=ADOPTED_TTL, dead_letter_ttl=KEPT)

    async def put_aside(self, grace: float = 0.0) -> list[str]:
        """Ids that were set aside."""
        _, doomed = await self.door.doomed(grace=grace)
        ids = [id for id, _ in doomed]
        answers = await self.door.set_aside(ids, kept_for=KEPT)
        return [id for id, aside in zip(ids, answers, strict=True) if aside]

    async def stripped(self, queue: str) -> Stripped:
        return await self.door.strip(queue, START)


def silent(*_: object) -> None:
    """Nobody is told."""


async def move(queue: Queue[Any], *, force: bool = False, told: list[tuple[str, str]] | None = None) -> Applied:
    """Migrate without watching for old workers."""

    def tell(id: str, name: str) -> None:
        if told is not None:
            told.append((id, name))

    return await apply(queue, silent, tell, force=force, watch=0)


async def move_clean(queue: Queue[Any], **options: Any) -> Applied:
    applied = await move(queue, **options)
    assert applied.verified.clean, failures(applied.verified.checks)
    return applied


async def move_back(queue: Queue[Any], *, force: bool = False) -> RolledBack:
    return await roll_back(queue, silent, force=force)


async def failed_checks(queue: Queue[Any], patience: float = 0.05) -> dict[str, int]:
    """Checks that `verify` finds anything for."""
    verified = await verify(queue, silent, patience=patience)
    return {check.name: check.violations for check in verified.checks if not check.holds}


def failures(checks: Any) -> list[tuple[str, int, list[str]]]:
    return [(check.name, check.violations, check.examples[:3]) for check in checks if check.fatal and not check.holds]


async def work_off(queue: Queue[Any], **options: Any) -> list[Message[Any]]:
    """What a worker with one slot is given, in order."""
    seen: list[Message[Any]] = []
    worker = Worker(queue, **{"concurrency": 1, "lease": 1.0, "retry_delay": 0.0, "poll_interval": 0.2, **options})

    async def handle(message: Message[Any]) -> None:
        seen.append(message)

    worker.handler(handle)
    await worker.run(burst=True)
    return seen


def ids_of(state: OldState, name: str) -> list[str]:
    return [id.decode("utf-8", "surrogateescape") for id in getattr(state, name)]
