"""Roll back: a queue of this engine -> one that the old code works on. May be killed at any moment and run again."""

from collections import Counter
from typing import Any

from streams_queue.errors import MigrationError
from streams_queue.queue import Queue
from streams_queue_migrations.door import START, Door
from streams_queue_migrations.marking import marked
from streams_queue_migrations.model import Progress, RolledBack
from streams_queue_migrations.preflight import OURS

_ORDER = ("scheduled", "retry", "main", "dlq")
"""What was scheduled goes to the retries first, so that it is counted once."""


async def roll_back(queue: Queue[Any], progress: Progress, *, force: bool = False) -> RolledBack:
    """Delete what is the engine's own, and leave the documented keys as the old code knows them. O(n).

    A producer of this engine may go on meanwhile; what it schedules for later after the end is found by the old code
    only when this is run again.

    Args:
        queue: open.
        progress: told after each page.
        force: go on although workers of this engine run, or a migration.

    Raises:
        MigrationError: workers of this engine run, or a migration is under way; nothing was written.
        QueueUnavailable: the server does not answer any more; run it again.
    """
    door = Door(queue.connection, queue.keys)
    await _refuse_beside_workers(door, force=force)
    async with marked(door, force=force):
        counts = await _strip(door, progress)
        await door.dismantle()
    await door.unlock(queue.keys.global_lock, OURS)
    return RolledBack(
        prefix=queue.keys.prefix,
        messages=counts["messages"],
        prioritised=counts["prioritised"],
        scheduled=counts["scheduled"],
        escaped=counts["escaped"],
        typed=counts["typed"],
    )


async def _strip(door: Door, progress: Progress) -> Counter[str]:
    sizes = await door.sizes()
    total, counts = sum(sizes[name] for name in _ORDER), Counter[str]()
    for name in _ORDER:
        cursor = START
        while True:
            page = await door.strip(name, cursor)
            cursor = page.cursor
            counts.update(
                messages=page.ids if name != "scheduled" else 0,  # these are met again among the retries
                prioritised=page.prioritised, scheduled=page.scheduled, escaped=page.escaped, typed=page.typed,
            )  # fmt: skip
            progress(name, counts["messages"], max(total, counts["messages"]))
            if cursor == START:
                break
    return counts


async def _refuse_beside_workers(door: Door, *, force: bool) -> None:
    lease = float((await door.meta()).get("lease_ms", 0)) / 1000
    living = sorted({consumer.name for consumer in await door.consumers() if consumer.idle < lease})
    if living and not force:
        raise MigrationError(
            f"queue {door.keys.prefix!r} is not rolled back: workers of this engine run ({', '.join(living[:5])}): "
            f"stop them; one that was killed counts for a lease ({lease:g} s) more"
        )
