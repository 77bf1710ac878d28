"""Reshard: a number of shards -> another one, at work. May be killed at any moment and run again."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from streams_queue import failpoints
from streams_queue.codec import field_of
from streams_queue.door import Resharded as Superseded
from streams_queue.errors import ConfigurationError, InvalidMessage, MigrationError, StreamsQueueError
from streams_queue.routing import MOST_SHARDS
from streams_queue.sharding import ShardedQueue
from streams_queue.shards import Routing, part_of
from streams_queue_migrations.door import START
from streams_queue_migrations.model import QUEUES, Check, Progress
from streams_queue_migrations.shard_door import MOVERS, Arrival, Held, RegistryDoor, Row, ShardDoor
from streams_queue_migrations.verifying import holders, verify_shards

logger = logging.getLogger(__name__)

PAUSE = 0.5
"""Seconds between two passes, where something is left that workers hold."""

TELLS = 5.0
"""Seconds until it is said for whom it waits, and then every so often."""

SHOWN = 5
"""Ids of each fault that are named."""

LASTS = 5.0
"""Seconds that the lock of a resharder lasts; it is renewed three times in that time."""


class ShardCount(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in one shard: messages in its sets, and those of them that belong elsewhere."""

    shard: int
    messages: int
    elsewhere: int


class ReshardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of the number of shards would move; nothing was written."""

    prefix: str
    before: int
    after: int
    shards: list[ShardCount]
    under_way: bool
    """Whether a change to this number was begun, and is to be finished."""


class Resharded(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of the number of shards did."""

    prefix: str
    before: int
    after: int
    moved: dict[str, int]
    """Messages that this run moved, by the set that they stood in."""
    finished: int
    """Messages that an earlier run had left on their way."""
    expired: int
    """Ids whose bodies had run out; they are counted, and stand on ``P:lost``."""
    known: list[str]
    """Ids of messages that met another with the same id where they belong: that one stays, they are dropped."""
    passes: int
    seconds: float
    shards: list[ShardCount]
    checks: list[Check]

    @property
    def clean(self) -> bool:
        """Whether all holds that must."""
        return all(check.holds or not check.fatal for check in self.checks)


async def plan_reshard(queue: ShardedQueue[Any], count: int, progress: Progress) -> ReshardPlan:
    """Count what would move. O(n), in pages; writes nothing.

    Args:
        queue: open.
        count: of shards, as it is to be.
        progress: told after each page.

    Raises:
        ConfigurationError: the number is none from 1 to 1024.
        MigrationError: a change to another number is under way.
    """
    _check(queue, count)
    routing = queue.routing
    wanted = routing if routing.moving else routing._replace(shards=count, former=routing.shards)
    found = await _count(_doors(queue), wanted, progress)
    return ReshardPlan(
        prefix=queue.keys.prefix, before=(routing.former or count) if routing.moving else routing.shards, after=count,
        shards=found, under_way=routing.moving,
    )  # fmt: skip


async def reshard(queue: ShardedQueue[Any], count: int, progress: Progress) -> Resharded:
    """Change the number of shards, and verify it. O(n), in calls of a few milliseconds, while all goes on.

    Run again, it finishes what was begun, and does nothing on a queue that has this number.

    Args:
        queue: open.
        count: of shards, as it is to be.
        progress: told after each page.

    Raises:
        ConfigurationError: the number is none from 1 to 1024, or limits cannot be divided by it.
        MigrationError: a change to another number is under way, or somebody else is at it; nothing was written.
        QueueUnavailable: a server does not answer any more; run it again.
    """
    _check(queue, count)
    registry = RegistryDoor.of(queue.connection, queue.keys.prefix)
    async with _one_at_a_time(registry, queue.keys.prefix) as owner:
        await queue.look()
        _check(queue, count)
        return await _Move(queue, registry, count, owner, progress).run()


def _check(queue: ShardedQueue[Any], count: int) -> None:
    if type(count) is not int or not 1 <= count <= MOST_SHARDS:
        raise ConfigurationError(f"shards={count!r:.200} is not a whole number from 1 to {MOST_SHARDS}")
    if not queue.shards:
        raise MigrationError(
            f"queue {queue.keys.prefix!r} has no shards: enqueue to a ShardedQueue of another name, and have workers "
            "of both until the old one is empty"
        )
    routing = queue.routing
    if routing.moving and routing.shards != count:
        raise MigrationError(
            f"queue {queue.keys.prefix!r} is on its way from {routing.former} to {routing.shards} shards: finish that "
            f"first, by `streams-queue reshard --prefix {queue.keys.prefix} --shards {routing.shards}`"
        )


def _doors(queue: ShardedQueue[Any]) -> list[ShardDoor]:
    return [ShardDoor(shard.connection, shard.keys, queue.version) for shard in queue.shards]


class _Move:
    """One run, and what it has done so far."""

    def __init__(
        self, queue: ShardedQueue[Any], registry: RegistryDoor, count: int, owner: str, progress: Progress
    ) -> None:
        self._queue = queue
        self._registry = registry
        self._count = count
        self._owner = owner
        self._progress = progress
        self._doors: list[ShardDoor] = []
        self._routing = queue.routing
        self._version = queue.version
        self._moved: Counter[str] = Counter()
        self._known: list[str] = []
        self._vanished: list[str] = []
        self._expired = self._finished = self._passes = 0

    async def run(self) -> Resharded:
        began, routing = time.monotonic(), self._queue.routing
        before = (routing.former or self._count) if routing.moving else routing.shards
        try:
            await self._turn()
            await self._move_home()
            checks, shards = await self._verify()
        except Superseded as error:
            raise self._superseded() from error
        return Resharded(
            prefix=self._queue.keys.prefix, before=before, after=self._count,
            moved=dict(self._moved), finished=self._finished, expired=self._expired, known=self._known,
            passes=self._passes, seconds=time.monotonic() - began, shards=shards, checks=checks,
        )  # fmt: skip

    async def _turn(self) -> None:
        """Have all go by the new number, and what is agreed for the queue hold in all shards: in new ones beforehand,
        or who is quick would work there on a queue that is paused.
        """
        queue, routing = self._queue, self._queue.routing
        if not routing.moving:
            part = part_of(await queue.limits(), routing._replace(shards=self._count))  # refused before the first write
            paused = (await queue.stats()).paused
            for shard in (await queue.shards_to_be(self._count))[routing.shards :]:
                await shard.transitions.limit(part)
                await shard.transitions.pause(paused)
        known = [await door.known_version() for door in _doors(queue)]
        if not await self._registry.turn(self._count, least=max(known)):
            raise self._superseded()
        failpoints.hit("mid_reshard")
        await queue.look()
        self._routing, self._version, self._doors = queue.routing, queue.version, _doors(queue)
        await queue.set_limits(await queue.limits())
        if (await queue.stats()).paused:
            await queue.pause()
        for door in self._doors:
            await door.fence()
        failpoints.hit("mid_reshard")

    def _superseded(self) -> MigrationError:
        return MigrationError(
            f"another process has changed the number of shards of queue {self._queue.keys.prefix!r} meanwhile: this "
            "one was stopped for too long, and does nothing more"
        )

    async def _settle_number(self) -> None:
        """Have programs go by the new number alone: nothing is in the former shards any more."""
        await self._registry.turn(self._count, settled=self._version)
        await self._queue.look()
        await self._queue.set_limits(await self._queue.limits())  # of the shards that are left

    # ---- moving

    async def _move_home(self) -> None:
        for target in range(len(self._doors)):
            await self._finish_arrivals(target)
        found, left = await self._pass()
        told_at = time.monotonic()
        while found:
            await asyncio.sleep(PAUSE if left else 0)
            if left and time.monotonic() - told_at >= TELLS:
                told_at = time.monotonic()
                await self._tell_of_dead_workers()
            found, left = await self._pass()

    async def _tell_of_dead_workers(self) -> None:
        """What they held waits for another worker: where there is none, this waits for ever."""
        checks = [await holders(door) for door in self._doors]
        dead = [name for check in checks for name in check.examples]
        if dead:
            logger.warning(
                "queue %s: messages wait in their former shards, held by workers that give no sign of life: %s. Start "
                "a worker: it hands on what dead ones held", self._queue.keys.prefix, ", ".join(dead[:SHOWN]),
            )  # fmt: skip

    async def _pass(self) -> tuple[int, int]:
        """Move what does not belong where it stands: (how many that were, how many of them are left: held by workers,
        or changed meanwhile).
        """
        found = left = 0
        self._passes += 1
        for source, door in enumerate(self._doors):
            for queue in QUEUES:
                async for strays in _strays(door, source, queue, self._routing):
                    found += len(strays)
                    left += await self._move_all(source, strays)
                self._progress(f"shard {source}", QUEUES.index(queue) + 1, len(QUEUES))
        return found, left

    async def _move_all(self, source: int, strays: dict[str, int]) -> int:
        """By target; how many could not be moved now."""
        left = 0
        for target in sorted(set(strays.values())):
            left += await self._move(source, target, [id for id, home in strays.items() if home == target])
        return left

    async def _move(self, source: int, target: int, ids: Sequence[str]) -> int:
        """Hold, copy, let go at the source, and let the copy be a message: in this order, each provable afterwards."""
        left, ids = 0, list(ids)
        while ids:
            held, others = await self._doors[source].leave(self._owner, ids)
            self._expired += sum(state == "expired" for state in others.values())
            left += sum(state == "busy" for state in others.values())
            if held:
                left += await self._carry(source, target, held)
            ids = [id for id, state in others.items() if state == "later"]
        return left

    async def _carry(self, source: int, target: int, held: Sequence[Held]) -> int:
        here, there = self._doors[source], self._doors[target]
        failpoints.hit("mid_reshard")
        await there.arrive(self._owner, source, here.keys, held)
        failpoints.hit("mid_reshard")
        parted = await here.part(self._owner, held)
        failpoints.hit("mid_reshard")
        await self._settle(
            target,
            [one.id for one, state in zip(held, parted, strict=True) if state == "moved"],
            [Arrival(one.id, source, self._owner) for one, state in zip(held, parted, strict=True) if state != "moved"],
        )
        self._moved.update(one.set for one, state in zip(held, parted, strict=True) if state == "moved")
        return sum(state != "moved" for state in parted)

    async def _settle(self, target: int, entering: Sequence[str], others: Sequence[Arrival]) -> None:
        if entering:
            states = await self._doors[target].settle(entering)
            self._known += [id for id, state in zip(entering, states, strict=True) if state == "known"]
            self._vanished += [id for id, state in zip(entering, states, strict=True) if state == "expired"]
        if others:
            await self._doors[target].discard(others)

    async def _finish_arrivals(self, target: int) -> None:
        """What a run that was killed had left on its way: whoever still stands at the source is held anew, so that the
        other run, should it live, cannot let go of it.
        """
        arrivals = [arrival async for arrival in self._doors[target].arrivals()]
        owners = {arrival.id: arrival.owner for arrival in arrivals}
        for source in sorted({arrival.source for arrival in arrivals}):
            here = self._doors[source]
            for page in _pages([arrival.id for arrival in arrivals if arrival.source == source]):
                held, others = await here.leave(self._owner, page)
                if held:
                    await self._carry(source, target, held)
                gone = [id for id, state in others.items() if state == "gone"]
                moved = [id for id, has in zip(gone, await here.has_moved(gone), strict=True) if has]
                not_moved = [id for id, state in others.items() if state != "later" and id not in moved]
                await self._settle(target, moved, [Arrival(id, source, owners[id]) for id in not_moved])
                self._finished += len(held) + len(moved)

    # ---- proving

    async def _verify(self) -> tuple[list[Check], list[ShardCount]]:
        """Whether all is where it belongs, which ends the move; and whether all of it is as it must be."""
        counts = await _count(self._doors, self._routing, self._progress)
        on_their_way = [arrival.id for door in self._doors async for arrival in door.arrivals()]
        again = f"run `streams-queue reshard --prefix {self._queue.keys.prefix} --shards {self._count}` again"
        at_home = [
            Check(
                name="homes", what="every message stands in the shard that it goes by, and in no other",
                violations=sum(found.elsewhere for found in counts), remedy=again,
            ),
            Check(
                name="arrivals", what="no message is on its way",
                violations=len(on_their_way), examples=on_their_way[:SHOWN], remedy=again,
            ),
        ]  # fmt: skip
        if all(check.holds for check in at_home):
            await self._settle_number()
        found = await verify_shards(self._queue, self._progress)
        return [*at_home, *self._losses(), *(check for check in found.checks if check.fatal)], counts

    def _losses(self) -> list[Check]:
        return [
            Check(
                name="whole", what="every message that left a shard has come into another",
                violations=len(self._vanished), examples=self._vanished[:SHOWN],
                remedy="nothing, where its TTL ran out just then; else look for who deletes or evicts keys. The ids "
                "are on P:lost",
            ),
            Check(
                name="ids", what="no message met another with the same id",
                violations=len(self._known), examples=self._known[:SHOWN], fatal=False,
                remedy="nothing, where the same id means the same work: the one that was there stays, the one that "
                "came is dropped. Else enqueue it with an id of its own",
            ),
        ]  # fmt: skip


async def _strays(door: ShardDoor, number: int, queue: str, routing: Routing) -> AsyncIterator[dict[str, int]]:
    """Page by page the messages of a set that belong to another shard, and to which."""
    async for page in _homes(door, queue, routing):
        strays = {id: home for id, home in page if home != number}
        if strays:
            yield strays


async def _homes(door: ShardDoor, queue: str, routing: Routing) -> AsyncIterator[list[tuple[str, int]]]:
    cursor = START
    while True:
        cursor, rows = await door.roll(queue, cursor, field_of(routing.key or ""))
        yield [(row.id, _home(routing, row)) for row in rows]
        if cursor == START:
            return


def _home(routing: Routing, row: Row) -> int:
    try:
        return routing.home(row.id, row.flat)
    except InvalidMessage:  # somebody has changed what it goes by: it is looked for where its id says
        return routing.holders(row.id)[0]


async def _count(doors: Sequence[ShardDoor], routing: Routing, progress: Progress) -> list[ShardCount]:
    found = []
    for number, door in enumerate(doors):
        messages = elsewhere = 0
        for queue in QUEUES:
            async for page in _homes(door, queue, routing):
                messages += len(page)
                elsewhere += sum(home != number for _, home in page)
        found.append(ShardCount(shard=number, messages=messages, elsewhere=elsewhere))
        progress("look", number + 1, len(doors))
    return found


def _pages(ids: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    return (ids[at : at + size] for at in range(0, len(ids), size))


@asynccontextmanager
async def _one_at_a_time(registry: RegistryDoor, name: str) -> AsyncIterator[str]:
    """The name under which this run holds messages. One that was killed is waited for until its lock has run out.

    Raises:
        MigrationError: another one lives.
    """
    key, deadline = registry.keys.resharder, time.monotonic() + 2 * LASTS
    while not await registry.lock(key, owner := await _name(registry), LASTS, shared=True):
        if time.monotonic() > deadline:
            raise MigrationError(
                f"the number of shards of queue {name!r} is being changed by another process: wait for it"
            )
        await asyncio.sleep(LASTS / 10)
    renewing = asyncio.create_task(_renew(registry, owner))
    try:
        yield owner
    finally:
        renewing.cancel()
        with suppress(StreamsQueueError):  # it runs out by itself
            await registry.unlock(key, owner)


async def _name(registry: RegistryDoor) -> str:
    """One that comes later than those of all earlier movers: by the clock of the server that has the lock."""
    seconds, microseconds = await registry.command("TIME")
    return f"{MOVERS}{int(seconds):011d}{int(microseconds):06d}-{uuid.uuid4().hex}"


async def _renew(registry: RegistryDoor, owner: str) -> None:
    while True:
        await asyncio.sleep(LASTS / 3)
        try:
            await registry.lock(registry.keys.resharder, owner, LASTS, shared=True)
        except StreamsQueueError:
            continue  # what the run itself does next says so
