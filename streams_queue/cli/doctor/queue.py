"""What the doctor looks at in one queue: what its messages take, who works on it, whether sets and streams agree."""

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import anyio

from streams_queue.answers import Working
from streams_queue.cli.doctor.check import Check, Verdict
from streams_queue.durations import spelt
from streams_queue.inspection import size
from streams_queue.model import Stats
from streams_queue.queue import Queue
from streams_queue.sharding import ShardedQueue
from streams_queue.shards import part_of
from streams_queue_migrations import verify
from streams_queue_migrations.door import Door
from streams_queue_migrations.verifying import PATIENCE

AnyQueue = Queue[dict[str, Any]]

MEASURED = 2.0
"""Seconds for which it is watched how fast a queue grows."""

SOON, LATER = 3600.0, 86400.0
"""Seconds until memory is full that are a danger, or a warning."""

_WEIGHED = 10
"""Messages weighed at each end of each set."""

_LEASE = 30.0
_GONE_AFTER = 3
"""Leases without a sign of life."""


def door_of(queue: AnyQueue) -> Door:
    """The plain reads that the migrations have, too."""
    return Door(queue.connection, queue.keys)


# ---- keys


async def look_at_keys(queue: AnyQueue) -> Iterator[Check]:
    """Whether one of the queue's keys is another program's: nothing moves then, and nothing else can be looked at."""
    return (
        Check(
            "queue",
            Verdict.DANGER,
            f"{key} is a {kind}, not a {wanted}: another program's, or a mistake. Nothing is enqueued or taken.",
            f"look at it, and move it away: redis-cli RENAME {key} {key}.old",
        )
        for key, kind, wanted in await door_of(queue).wrong_kinds()
    )


# ---- memory


class _Weight(NamedTuple):
    """Bytes that a message takes, its places in sets and streams included, and how many were weighed."""

    each: float
    weighed: int


async def look_at_growth(queue: AnyQueue) -> Check:
    """How much a message takes, and how long memory lasts at the rate of this moment."""
    info = await queue.connection.ask("INFO", "memory", near=queue.keys.main)
    if not info:
        return _unknown("growth", "The server does not let this user send INFO.", queue, "+info")
    limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    whose = "of maxmemory" if int(info.get("maxmemory", 0)) else "of the machine's memory (maxmemory is not set)"
    free = max(0, limit - int(info.get("used_memory", 0)) + int(info.get("mem_not_counted_for_evict", 0)))
    before = await queue.stats()
    if not _held(before):
        return Check("growth", Verdict.OK, f"No message is here to be weighed; {size(free)} {whose} are free.")
    weight = await _weigh(queue, _held(before))
    if weight is None:
        return _unknown("growth", "The server does not let this user weigh messages.", queue, "+memory|usage")
    await anyio.sleep(MEASURED)
    after = await queue.stats()
    growth, arrivals = (_held(after) - _held(before)) / MEASURED, (_accepted(after) - _accepted(before)) / MEASURED
    reason = (
        f"A message takes about {weight.each / 1024:.1f} KiB ({weight.weighed} weighed), so {size(free)} {whose} "
        f"have room for {free / weight.each:,.0f} more; measured over {MEASURED:g} s, {arrivals:.1f}/s arrive "
        "and the queue "
    )
    if growth <= 0:
        return Check("growth", Verdict.OK, f"{reason}does not grow.")
    lasts = free / weight.each / growth
    reason += f"grows by {growth:.1f}/s: full in {spelt(lasts)}."
    if lasts > LATER:
        return Check("growth", Verdict.OK, reason)
    remedy = "start more workers (streams-queue worker MODULE:OBJECT), or redis-cli CONFIG SET maxmemory to more"
    return Check("growth", Verdict.DANGER if lasts < SOON else Verdict.WARNING, reason, remedy)


def _held(stats: Stats) -> int:
    return stats.main + stats.retry + stats.scheduled + stats.dead


def _accepted(stats: Stats) -> int:
    return stats.counters.get("total_messages", 0)


async def _weigh(queue: AnyQueue, held: int) -> _Weight | None:
    door, keys = door_of(queue), queue.keys
    sets = (keys.main, keys.retry, keys.scheduled, keys.dlq)
    ids: set[str] = set()
    for places in sets:
        for start, stop in ((0, _WEIGHED - 1), (-_WEIGHED, -1)):
            ids.update(id.decode(errors="surrogateescape") for id in await door.command("ZRANGE", places, start, stop))
    bodies = [taken for id in sorted(ids) if (taken := await _usage(queue, keys.message(id))) is not None]
    shared = [await _usage(queue, key) or 0 for key in (*sets, *keys.streams.values(), *keys.lines.values())]
    return _Weight(statistics.fmean(bodies) + sum(shared) / held, len(bodies)) if bodies else None


async def _usage(queue: AnyQueue, key: str) -> int | None:
    taken: int | None = await queue.connection.ask("MEMORY USAGE", key, near=key)
    return taken


# ---- workers


async def look_at_workers(queue: AnyQueue) -> Check:
    """Whether somebody works on the queue, and who holds messages without a sign of life."""
    stats, lease = await queue.stats(), float((await door_of(queue).meta()).get("lease_ms", 0)) / 1000 or _LEASE
    consumers = await queue.transitions.workers(1)
    living = [consumer for consumer in consumers if consumer.idle < lease]
    gone = [consumer for consumer in consumers if consumer.idle > _GONE_AFTER * lease]
    holders = [consumer for consumer in gone if consumer.pending]
    waiting = stats.main - stats.processing
    if stats.paused:
        reason = f"The queue is paused, and nothing is taken; messages that wait: {waiting}."
        return Check("workers", Verdict.WARNING, reason, f"streams-queue resume --prefix {queue.keys.prefix}")
    start = "streams-queue worker MODULE:OBJECT"
    if holders:
        held = sum(consumer.pending for consumer in holders)
        reason = (
            f"{_names(holders)} gave no sign of life for {_silence(holders)}, and {held} messages are in their hands; "
        )
        if not living:
            reason += "no worker lives that could hand them on."
            return Check("workers", Verdict.DANGER, reason, start)
        reason += f"{len(living)} workers live, and hand them on within a lease and a sixth, unless locks keep them."
        return Check("workers", Verdict.WARNING, reason, f"redis-cli XPENDING {queue.keys.streams['n']} workers")
    if not living and stats.main + stats.retry + stats.scheduled:
        reason = f"No worker lives; messages that wait: {stats.main + stats.retry + stats.scheduled}."
        return Check("workers", Verdict.DANGER, reason, start)
    if gone and not living:
        reason = f"No worker lives, and {_names(gone)} never said goodbye; the next worker forgets them."
        return Check("workers", Verdict.WARNING, reason, start)
    if not living:
        return Check("workers", Verdict.OK, "No worker lives, and nothing waits for one.")
    return Check("workers", Verdict.OK, f"{len(living)} workers live, and hold {stats.processing} messages.")


def _names(consumers: list[Working]) -> str:
    return _some([consumer.name for consumer in consumers])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _silence(consumers: list[Working]) -> str:
    return spelt(min(consumer.idle for consumer in consumers))


# ---- agreement


async def look_at_agreement(queue: AnyQueue) -> Iterator[Check]:
    """Whether sets, streams and bodies agree: what `streams-queue verify` looks at."""
    found = await verify(queue, lambda *_: None, patience=PATIENCE)
    failing = [check for check in found.checks if not check.holds and check.name != "holders"]
    if not failing:
        ids = sum(found.ids.values())
        return iter(
            [Check("agreement", Verdict.OK, f"Every message has a place, a body and an entry: {ids} of {ids}.")]
        )
    return (
        Check(
            "agreement",
            Verdict.DANGER if check.fatal else Verdict.WARNING,
            f"{check.violations} messages break the rule that {check.what}, {', '.join(check.examples[:3])} for one.",
            f"{check.remedy}; all of them: streams-queue verify --prefix {queue.keys.prefix}",
        )
        for check in failing
    )


async def look_at_shards(queue: ShardedQueue[Any]) -> Iterator[Check]:
    """Whether all shards have their part of the queue's limits, and are paused or not as one."""
    prefix, shards = queue.keys.prefix, [shard.keys.prefix for shard in queue.shards]
    whole = await queue.limits()
    part = part_of(whole, queue.routing)
    limits = [await shard.limits() for shard in queue.shards]
    paused = [(await shard.stats()).paused for shard in queue.shards]
    differing = [shard for shard, found in zip(shards, limits, strict=True) if found != part]
    still = [shard for shard, is_paused in zip(shards, paused, strict=True) if is_paused]
    checks = []
    if differing:
        reason = f"{_some(differing)} of {len(shards)} shards do not have their part of the queue's limits."
        again = f"streams-queue limits set --prefix {prefix} --low-share {whole.low_share:g}, which sends all"
        checks.append(Check("shards", Verdict.WARNING, reason, again))
    if 0 < len(still) < len(shards):
        reason = f"{_some(still)} of {len(shards)} shards are paused, and the others are not."
        remedy = f"streams-queue pause --prefix {prefix}, or streams-queue resume --prefix {prefix}"
        checks.append(Check("shards", Verdict.DANGER, reason, remedy))
    agreed = f"All {len(shards)} shards have their part of the limits, and {'are' if still else 'none is'} paused."
    return iter(checks or [Check("shards", Verdict.OK, agreed)])


async def look_at_confirmations(queue: AnyQueue) -> Iterator[Check]:
    """Whether there are as many replicas as enqueues wait for, where any does."""
    wanted = int((await door_of(queue).meta()).get("replicas", 0))
    if not wanted:
        return iter(())
    info = await queue.connection.ask("INFO", "replication", near=queue.keys.main)
    if not info:
        return iter([_unknown("confirmations", "The server does not let this user send INFO.", queue, "+info")])
    present = int(info.get("connected_slaves", 0))
    if wanted <= present:
        return iter([Check("confirmations", Verdict.OK, f"Enqueues wait for {wanted} of {present} replicas.")])
    reason = f"Enqueues ask for {wanted} replicas, and {present} are connected: they raise QueueUnavailable."
    return iter([Check("confirmations", Verdict.DANGER, reason, "redis-cli INFO replication; bring the replicas back")])


def _unknown(check: str, reason: str, queue: AnyQueue, right: str) -> Check:
    user = queue.settings.address.username or "default"
    return Check(check, Verdict.UNKNOWN, reason, f"redis-cli ACL SETUSER {user} '{right}'")
