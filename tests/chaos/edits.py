"""Other programs that write the documented keys as they please (fault 14)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from chaos.lab import Lab, Lane
from chaos.scenario import fault
from helpers import until
from streams_queue.keys import Keys


class Edited(NamedTuple):
    """What an edit is made on: a raw client, the queue's keys, and an id that was accepted, finished or not."""

    redis: Any
    keys: Keys
    id: str

    @property
    def body(self) -> str:
        return self.keys.message(self.id)


Edit = Callable[[Edited], Awaitable[Any]]

HARMLESS: list[Edit] = []
"""After these a message still runs, or stands somewhere."""
DESTRUCTIVE: list[Edit] = []
"""These take a message out, or its body away: it is excused, its neighbours are not."""


KINDS = (
    "added", "entry_lost", "taken_out", "unlocked", "locked", "two_places", "damaged", "claimed_elsewhere",
)  # fmt: skip
"""Which `Stats.edits` tells apart."""


def harmless(edit: Edit) -> Edit:
    HARMLESS.append(edit)
    return edit


def destructive(edit: Edit) -> Edit:
    DESTRUCTIVE.append(edit)
    return edit


@harmless
async def requeue(e: Edited) -> None:
    """As the operators' script does it, whatever the message's state."""
    await e.redis.zrem(e.keys.dlq, e.id)
    await e.redis.zadd(e.keys.main, {e.id: time.time()})
    if await e.redis.exists(e.body):
        await e.redis.hset(e.body, mapping={"retry_count": 0, "status": "queued"})


@harmless
async def move_to_retry(e: Edited) -> None:
    if await e.redis.zrem(e.keys.main, e.id):
        await e.redis.zadd(e.keys.retry, {e.id: time.time() + random.choice((-5, 0, 0.5))})


@harmless
async def put_into_two_sets(e: Edited) -> None:
    if await e.redis.zscore(e.keys.main, e.id) is not None:
        await e.redis.zadd(random.choice((e.keys.retry, e.keys.dlq)), {e.id: time.time()})


@harmless
async def odd_score(e: Edited) -> None:
    score = random.choice(("inf", "-inf", -1, 0, 1.7e12, time.time() + 3600))
    await e.redis.zadd(e.keys.main, {e.id: score}, xx=True)


@harmless
async def claim_elsewhere(e: Edited) -> None:
    """As a worker of the old code does, which peeks at main."""
    if await e.redis.hexists(e.body, "timestamp"):
        await e.redis.hset(e.body, "status", "processing")


@harmless
async def delete_the_lock(e: Edited) -> None:
    await e.redis.delete(e.keys.lock(e.id))


@harmless
async def take_the_lock(e: Edited) -> None:
    await e.redis.set(e.keys.lock(e.id), "somebody", px=300)


@harmless
async def odd_fields(e: Edited) -> None:
    if await e.redis.exists(e.body):
        name, value = random.choice(
            [("retry_count", "many"), ("status", "strange"), ("_sq_entry", "x"), ("_sq_deliveries", "1e400"),
             ("_sq_crashes", "none"), ("_sq_ttl", "-7"), ("dedup_key", "elsewhere"), ("_sq_owner", "nobody"),
             ("priority", "\ud7ff")]
        )  # fmt: skip
        await e.redis.hset(e.body, name, value)


@harmless
async def unknown_id(e: Edited) -> None:
    await e.redis.zadd(random.choice((e.keys.main, e.keys.retry)), {f"unknown-{random.random()}": time.time()})


@harmless
async def odd_name(e: Edited) -> None:
    await e.redis.zadd(e.keys.main, {b"\xff\x00 \r\n{}": time.time()})


@harmless
async def damage_statistics(e: Edited) -> None:
    await e.redis.hset(e.keys.stats, random.choice(("completed_messages", "total_messages", "retry_count")), "many")


@harmless
async def statistics_of_another_type(e: Edited) -> None:
    await e.redis.delete(e.keys.stats)
    await e.redis.set(e.keys.stats, "text", px=200)


@harmless
async def foreign_entry(e: Edited) -> None:
    await e.redis.xadd(e.keys.streams["n"], {"other": "field"})


@harmless
async def lock_of_another_type(e: Edited) -> None:
    await e.redis.delete(e.keys.lock(e.id))
    await e.redis.rpush(e.keys.lock(e.id), "x")
    await e.redis.pexpire(e.keys.lock(e.id), 300)


@destructive
async def take_out(e: Edited) -> None:
    for queue in (e.keys.main, e.keys.retry, e.keys.dlq):
        await e.redis.zrem(queue, e.id)


@destructive
async def delete_the_body(e: Edited) -> None:
    await e.redis.delete(e.body)


@destructive
async def delete_everything(e: Edited) -> None:
    await take_out(e)
    await delete_the_body(e)


@destructive
async def damage_the_body(e: Edited) -> None:
    await e.redis.hdel(e.body, "timestamp")


@destructive
async def body_of_another_type(e: Edited) -> None:
    await e.redis.delete(e.body)
    await e.redis.set(e.body, "text", ex=60)


@fault("14", "outside edits of the documented keys, 100 a second, at random")
async def outside_edits(lab: Lab) -> None:
    """No crash; a bad id never stops the queue; whatever was not taken out or deleted runs, or stands somewhere.

    At the end, one edit of each kind on a message of its own: each is counted.
    """
    async with lab.lane() as lane, lab.server.client(encoding_errors="surrogateescape") as admin:
        await lane.start(2, max_retries=1)
        gone: set[str] = set()
        edits = lab.size(300, 10_000)
        async with lane.producing(60, do="sleep", seconds=0.1):
            await lane.started(5)
            for _ in range(edits):
                id = random.choice(_likely(lane))
                edit = random.choice(HARMLESS if random.random() < 0.8 else DESTRUCTIVE)
                if edit in DESTRUCTIVE:
                    gone.add(id)
                with contextlib.suppress(ResponseError):  # an edit before it changed the key's type
                    await edit(Edited(admin, lane.queue.keys, id))
                lab.tally.runs += 1
                await asyncio.sleep(0.01)  # the fault's own rhythm
        (last,) = await lane.enqueue()
        began = time.monotonic()
        await lane.queue.result(last, timeout=20)
        lab.tally.recovered(time.monotonic() - began, lab.after_outage)
        await admin.zremrangebyscore(lane.queue.keys.retry, time.time() + 60, "+inf")
        gone |= await _each_kind_is_counted(lane, admin)
        await lane.idle(60)
        await lane.judge(duplicates=edits, gone=gone, overlaps=True, counted=False, bodies_of=gone, edited=True)


async def _each_kind_is_counted(lane: Lane, admin: Any) -> set[str]:
    """The ids that were taken out or damaged."""
    keys = lane.queue.keys
    await lane.idle(60)
    await admin.delete(keys.stats)
    before = lane.ledger.count("start")
    (unlocked,) = await lane.enqueue(do="sleep", seconds=2 * lane.lab.lease)
    await lane.started(before + 1)
    await lane.queue.pause()
    taken_out, locked, twice, lost, damaged, claimed = await lane.enqueue(6)
    (added,) = await lane.enqueue(delay=3600)
    await admin.delete(keys.lock(unlocked))
    await lane.queue.transitions.sweep(max_deliveries=3, dead_letter_ttl=60)  # before it looks as if it had run out
    await admin.zadd(keys.retry, {twice: 1})
    await until(lambda: _is_not_in(admin, keys.retry, twice))
    await admin.zrem(keys.main, taken_out)
    await admin.set(keys.lock(locked), "somebody", px=2000)
    await admin.xdel(keys.streams["n"], (await admin.hget(keys.message(lost), "_sq_entry"))[1:])
    await admin.hdel(keys.message(damaged), "timestamp")
    await admin.hset(keys.message(claimed), "status", "processing")
    await admin.zrem(keys.scheduled, added)
    await admin.zadd(keys.main, {added: time.time()})
    await lane.queue.resume()
    await lane.done([unlocked, locked, twice, lost, claimed, added])
    edits = (await lane.queue.stats()).edits
    assert set(edits) == set(KINDS), f"counted were {edits}"
    return {taken_out, damaged}


async def _is_not_in(admin: Any, key: str, id: str) -> bool:
    return await admin.zscore(key, id) is None


def _likely(lane: Lane) -> list[str]:
    """The ids that were accepted last: most of them are in the queue now."""
    ids = [entry.id for entry in lane.ledger.entries()[-300:] if entry.word == "accepted"]
    return ids[-60:] or ["nobody"]
