"""Verify: whether all of a queue is as it must be. Reads only, at any time."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from streams_queue.errors import NotFound
from streams_queue.queue import Queue
from streams_queue.sharding import ShardedQueue
from streams_queue_migrations.census import take_census
from streams_queue_migrations.door import Door
from streams_queue_migrations.model import Census, Check, Progress, Verified

PATIENCE = 3.0
"""Seconds after which what was found is looked at again: an id that an old producer has just added is found by a worker
within two."""

_SAMPLES = 10_000
"""Ids of each kind that are remembered from one look to the next."""


async def verify(queue: Queue[Any], progress: Progress, *, patience: float = PATIENCE) -> Verified:
    """Look at all of the queue. O(n), and the keys of the whole database.

    On a queue at work only that is held against it which is found twice, `patience` seconds apart.

    Args:
        queue: open.
        progress: told after each page.
        patience: seconds.

    Raises:
        NotFound: there is no such queue.
        QueueUnavailable: the server does not answer.
        ConfigurationError: a newer engine wrote the queue, access is denied, or a key has the wrong type.
    """
    if isinstance(queue, ShardedQueue) and queue.shards:
        return await verify_shards(queue, progress, patience=patience)
    door = Door(queue.connection, queue.keys)
    if not await door.kinds():
        raise NotFound(
            f"there is no queue {door.keys.prefix!r} in this database: look at the prefix, and at the server"
        )
    return await look_twice(door, progress, partial(asyncio.sleep, patience))


async def verify_shards(queue: ShardedQueue[Any], progress: Progress, *, patience: float = PATIENCE) -> Verified:
    """`verify` for each shard of a queue, as one answer: what is found is added up.

    Args:
        queue: open.
        progress: told after each page.
        patience: seconds.
    """
    doors = [Door(shard.connection, shard.keys) for shard in queue.shards]
    found = [await _look(door, progress, moving=False) for door in doors]
    if not all(one.clean for one in found):
        await asyncio.sleep(patience)
        found = [
            one if one.clean else _found_twice(one, await _look(door, progress, moving=False))
            for one, door in zip(found, doors, strict=True)
        ]
    ids = {name: sum(one.ids[name] for one in found) for name in found[0].ids}
    checks = [_summed(of_shards) for of_shards in zip(*(one.checks for one in found), strict=True)]
    return Verified(prefix=queue.keys.prefix, ids=ids, checks=checks)


def _summed(checks: Sequence[Check]) -> Check:
    return msgspec.structs.replace(
        checks[0],
        violations=sum(check.violations for check in checks),
        examples=[example for check in checks for example in check.examples],
    )


async def look_twice(
    door: Door, progress: Progress, between: Callable[[], Awaitable[None]], *, moving: bool = False
) -> Verified:
    """What is found before and after `between`, which gives it time to pass, or mends it.

    Args:
        door: of the queue.
        progress: told after each page.
        between: called where anything was found.
        moving: entries must stand in main's order, which they need not later, where old producers' clocks differ;
            and bodies that the old code left behind without a place are no fault of the move.
    """
    found = await _look(door, progress, moving=moving)
    if found.clean:
        return found
    await between()
    return _found_twice(found, await _look(door, progress, moving=moving))


async def _look(door: Door, progress: Progress, *, moving: bool) -> Verified:
    censuses = await take_census(door, progress, samples=_SAMPLES)
    main = censuses[0]
    strays = await _strays(door)
    checks = [
        _check(
            "entries", "all ids of main have one living entry in a stream", [main], ("no_entry",),
            "start a worker, which finds them within a minute, or run migrate",
        ),
        _check(
            "order", "the entries stand in main's order", [main], ("out_of_order",),
            "run migrate; or leave them: they were found later than their time says", fatal=moving,
        ),
        _check(
            "bodies", "all ids have a body", censuses, ("bodiless", "damaged"),
            "a worker sets those of main aside on P:lost within a minute; for others run migrate",
        ),
        _check(
            "places", "all ids stand in one place", censuses, ("two_places",),
            "run migrate: main wins, then retry, then scheduled",
        ),
        _check(
            "strays", "each body has a place, or an end", [strays], ("staying",),
            "look at them; ZADD the id to queue:main to have it worked on, or DEL the hash", fatal=not moving,
        ),
        _check(
            "passing", "each body has a place", [strays], ("passing",),
            "nothing: they end by themselves", fatal=False,
        ),
        _check(
            "times", "all scores are times", censuses, ("no_time",),
            "nothing, where their place in line may stay; or run migrate", fatal=False,
        ),
        _check(
            "locks", "all messages of main are free, or held by workers", [main], ("locked",),
            "find out who took the lock; it runs out by itself, or DEL it", fatal=False,
        ),
        _check(
            "lives", "all bodies last five minutes more", censuses, ("ends_soon",),
            "start workers", fatal=False,
        ),
        await holders(door),
    ]  # fmt: skip
    return Verified(prefix=door.keys.prefix, ids={census.queue: census.ids for census in censuses}, checks=checks)


def _check(
    name: str, what: str, censuses: Iterable[Census], kinds: tuple[str, ...], remedy: str, *, fatal: bool = True
) -> Check:
    pairs = list(itertools.product(censuses, kinds))
    return Check(
        name=name,
        what=what,
        violations=sum(census.found.get(kind, 0) for census, kind in pairs),
        examples=[id for census, kind in pairs for id in census.examples.get(kind, ())],
        remedy=remedy,
        fatal=fatal,
    )


async def _strays(door: Door) -> Census:
    """Bodies without a place: those that end by themselves (``passing``), and those that would stay (``staying``)."""
    start, census = len(door.keys.message("")), Census(queue="")
    async for keys in door.scan(f"{door.keys.message('')}*"):
        ids = [key.decode(errors="surrogateescape")[start:] for key in keys]
        for id, kind in zip(ids, await door.strays(ids), strict=True):
            if kind:
                census.note("passing" if kind == 1 else "staying", id, _SAMPLES)
    return census


async def holders(door: Door) -> Check:
    """Whether somebody recovers what dead workers held."""
    lease = float((await door.meta()).get("lease_ms", 0)) / 1000
    holders = [consumer for consumer in await door.consumers() if consumer.pending and lease]
    dead = [f"{consumer.name} ({consumer.pending})" for consumer in holders if consumer.idle > 3 * lease]
    return Check(
        name="holders", what="all who hold messages give signs of life", violations=len(dead), examples=dead,
        remedy="start a worker: it hands on what dead ones held", fatal=False,
    )  # fmt: skip


def _found_twice(first: Verified, second: Verified) -> Verified:
    checks = [_both(one, two) for one, two in zip(first.checks, second.checks, strict=True)]
    return msgspec.structs.replace(second, checks=checks)


def _both(one: Check, two: Check) -> Check:
    if max(one.violations, two.violations) > _SAMPLES:
        return msgspec.structs.replace(two, violations=min(one.violations, two.violations))
    both = sorted(set(one.examples) & set(two.examples))
    return msgspec.structs.replace(two, violations=len(both), examples=both)
