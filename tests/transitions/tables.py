"""A queue seen from inside: each key as a line of a table, and short ways to bring messages into every state.

The tables leave the prefix out and show no clock readings: a time is ``now`` or ``now+100`` (to the nearest ten
seconds), a stream entry is ``*``, a digest is what it was made from (``dedup:k``). A stream is a dict of id -> who
holds it; ``-`` stands for nobody so far, and ``a (old)`` for an entry that message ``a`` has moved on from. What
expires stands under ``ttl``, in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import redis.asyncio as redis_asyncio

from streams_queue.answers import Claimed, Enqueued, Failure, NewMessage, Refused, Upkeep
from streams_queue.connection import Connection
from streams_queue.keys import Keys, hash_of_key
from streams_queue.model import Lease, Priority
from streams_queue.transitions import GROUP, Transitions

Table = dict[str, Any]

LEASE = 30.0
LEASE_MS = "30000"
META = {"lease_ms": LEASE_MS, "schema": "1"}
"""What ``join`` leaves in ``P:meta``."""

NEVER = "-"
"""Holder of an entry that was not delivered so far."""

RETURNED, LOCKED, SUSPECTS = "returned", "locked", "suspects"

DEAD_LETTER_TTL = 1000
DEDUP_EXPIRY = 500
RESULT_TTL = 300

_NAMES = ("k", "k1", "k2", "u1", "u2")
"""Dedup keys and users that tables show by name."""

_TIMES = {"timestamp", "last_error_time", "moved_to_dlq_at", "next_retry"}
_IN_ORDER = re.compile(r"queue:main|line:(?:high|low)|user:.*|parked|parked:.*|key:.*")
_ENTRY = re.compile(r"\d{13,}-\d+")
_CURSORS = re.compile(r"(?:sweep|lock)_cursor_[hnl]")


def body(id: str, status: str, entry: str = "n*", **more: str | None) -> dict[str, str]:
    """A message's hash as `Queue.enqueue` wrote it and transitions left it; None takes a field out."""
    fields = {
        "timestamp": "now",
        "status": status,
        "retry_count": "0",
        "text": f"text of {id}",
        "_sq_types": "",
        "_sq_entry": entry,
        **more,
    }
    return {name: value for name, value in fields.items() if value is not None}


class Queue:
    """The transitions of one queue, the raw client beside them, and how to arrange a state."""

    def __init__(self, connection: Connection, keys: Keys, redis: redis_asyncio.Redis) -> None:
        self.transitions = Transitions(connection, keys)
        self.keys = keys
        self.redis: Any = redis  # its stubs know too little of streams
        self._named = {keys.slot(name): f"dedup:{name}" for name in _NAMES} | {
            keys.user(name): f"user:{name}" for name in _NAMES
        }
        self._hashed = {hash_of_key("user_id", name.encode()): name for name in _NAMES}
        for hash, name in self._hashed.items():
            self._named |= {
                keys.turns(hash): f"key:{name}", keys.parked_of(hash): f"parked:{name}",
                keys.pause(hash): f"pause:{name}", keys.rate_of(hash): f"rate:{name}",
                keys.accepts_of(hash): f"accept:{name}",
            }  # fmt: skip

    # ---- tables

    async def table(self) -> Table:
        """Every key under the prefix, readable."""
        now = await self.now()
        table: Table = {}
        expires: dict[str, int] = {}
        for key in sorted([key async for key in self.redis.scan_iter(match=f"{self.keys.prefix}:*", count=1000)]):
            name = self._named.get(key, key.removeprefix(f"{self.keys.prefix}:"))
            if value := await self._value(key, name, now):
                table[name] = value
            if (ttl := await self.redis.pttl(key)) > 0:
                expires[name] = _rounded(ttl / 1000)
        return {**table, "ttl": expires} if expires else table

    async def _value(self, key: str, name: str, now: float) -> Any:
        match await self.redis.type(key):
            case "zset" if _IN_ORDER.fullmatch(name):
                return await self.redis.zrange(key, 0, -1)
            case "zset":
                rows = await self.redis.zrange(key, 0, -1, withscores=True)
                return {self._hashed.get(id, id): _when(score, now) for id, score in rows}
            case "stream":
                return await self._holders(key)
            case "hash":
                fields = await self.redis.hgetall(key)
                if name == "stats":
                    return {counter: _int(value) for counter, value in fields.items()}
                fields = {name: self._named.get(value, value) for name, value in fields.items()}
                return {name: _field(name, value, now) for name, value in fields.items() if not _at_start(name, value)}
            case "string" if name.startswith("accept"):
                return _when(float(await self.redis.get(key)), now)
            case "string":
                return _ENTRY.sub("*", await self.redis.get(key))
            case kind:
                return f"a {kind}"

    async def _holders(self, key: str) -> dict[str, Any]:
        held = {}
        if any(group["name"] == GROUP for group in await self.redis.xinfo_groups(key)):
            rows = await self.redis.xpending_range(key, GROUP, "-", "+", 10_000)
            held = {row["message_id"]: row["consumer"] for row in rows}
        letter = next(letter for letter, stream in self.keys.streams.items() if stream == key)
        holders: dict[str, Any] = {}
        for entry, fields in await self.redis.xrange(key):
            id = fields.get("id", "?")
            message = self.keys.message(id)
            live = await self.redis.hget(message, "_sq_entry") if await self.redis.type(message) == "hash" else None
            label = id if live in {letter + entry, None} else f"{id} (old)"
            holders[label] = held.pop(entry, NEVER)
        return holders | ({"(deleted)": sorted(held.values())} if held else {})

    async def now(self) -> float:
        """The server's time."""
        whole, micro = await self.redis.time()
        return float(whole) + float(micro) / 1e6

    # ---- arranging

    async def enqueue(self, *ids: str, **options: Any) -> list[Enqueued]:
        """Enqueue messages with these ids in one call, as `offer` does; no limit refuses them."""
        answers = await self.offer(*ids, **options)
        accepted = [answer for answer in answers if isinstance(answer, Enqueued)]
        assert len(accepted) == len(answers), answers
        return accepted

    async def offer(
        self,
        *ids: str,
        priority: Priority = "normal",
        delay: float = 0.0,
        ttl: float | None = None,
        unique: str | None = None,
        index_users: bool = False,
        **fields: str,
    ) -> list[Enqueued | Refused]:
        """Enqueue messages with these ids in one call; each holds one field, ``text``, beside the given ones."""
        messages = [
            new(id, priority=priority, delay=delay, ttl=ttl, slot=unique and self.keys.slot(unique), **fields)
            for id in ids
        ]
        return await self.transitions.enqueue(messages, dedup_expiry=DEDUP_EXPIRY, index_users=index_users)

    async def claim(self, consumer: str = "w1", count: int = 1) -> list[Lease]:
        """What `claim` hands to this consumer."""
        return [delivery.lease for delivery in (await self.claimed(consumer, count)).deliveries]

    async def claimed(self, consumer: str = "w1", count: int = 1) -> Claimed:
        return await self.transitions.claim(consumer, count)

    async def processing(self, id: str, consumer: str = "w1", **options: Any) -> Lease:
        """A message that this consumer works on."""
        await self.enqueue(id, **options)
        (lease,) = await self.claim(consumer)
        assert lease.id == id, "arrange it before other messages wait"
        return lease

    async def abandoned(self, id: str, consumer: str = "dead", **options: Any) -> Lease:
        """A message whose worker died more than a lease ago."""
        lease = await self.processing(id, consumer, **options)
        await self.run_out(lease, consumer)
        return lease

    async def retrying(self, id: str, delay: float = 100, error: str = "oops", **options: Any) -> Lease:
        """A message that waits for its next attempt."""
        lease = await self.processing(id, **options)
        assert await self.retry(lease, delay=delay, error=error) == "retry"
        return lease

    async def dead(self, id: str, error: str = "oops", **options: Any) -> Lease:
        """A dead letter."""
        lease = await self.processing(id, **options)
        assert await self.dead_letter(lease, error=error) == "error"
        return lease

    async def old(self, id: str, score: float | None = None, ttl: int | None = 3600, **fields: str) -> None:
        """A message from a producer of the documented queue: a hash and a place in main."""
        hash = {"request_id": id, "timestamp": str(await self.now()), "status": "queued", "retry_count": "0", **fields}
        await self.redis.hset(self.keys.message(id), mapping=hash)
        if ttl is not None:
            await self.redis.expire(self.keys.message(id), ttl)
        await self.redis.zadd(self.keys.main, {id: await self.now() if score is None else score})

    async def age(self, lease: Lease, consumer: str = "w1", seconds: float = LEASE + 5) -> None:
        """Let this much time pass for the entry, as Redis sees it; the lock is as it was."""
        await self.age_entry(lease.entry, consumer, seconds)

    async def age_entry(self, entry: str, consumer: str, seconds: float = LEASE + 5) -> None:
        stream, idle = self.keys.streams[entry[0]], round(seconds * 1000)
        await self.redis.xclaim(stream, GROUP, consumer, 0, [entry[1:]], idle=idle, justid=True)

    async def run_out(self, lease: Lease, consumer: str = "w1") -> None:
        """Let the lease run out: the entry idle for longer than it, the lock expired."""
        await self.age(lease, consumer)
        await self.redis.delete(self.keys.lock(lease.id))

    async def make_due(self, *ids: str) -> None:
        """Let the time come for which these messages wait."""
        for key in (self.keys.retry, self.keys.scheduled):
            await self.redis.zadd(key, dict.fromkeys(ids, 1.0), xx=True)

    async def read_only(self, consumer: str, *, block: float = 0.01) -> list[str]:
        """The blocking read of an idle worker: delivers entries that nobody adopted yet."""
        return await self.transitions.wait(self.redis_bytes(), consumer, block)

    def redis_bytes(self) -> Any:
        return self.transitions.connection.client

    async def delete_stream(self) -> None:
        """Delete the stream of normal messages, a millisecond or more after its last entry."""
        await self.redis.delete(self.keys.streams["n"])
        start = await self.now()
        while await self.now() < start + 0.002:
            pass

    async def fill(self) -> None:
        """The server has no memory left."""
        await self.redis.config_set("maxmemory", "1")

    async def empty(self) -> None:
        """It has memory again."""
        await self.redis.config_set("maxmemory", "0")

    # ---- the transitions, with the tests' policy

    async def complete(self, lease: Lease, by: str = "w1", result: bytes = b"") -> str:
        (answer,) = await self.transitions.complete(by, [(lease, result)], result_ttl=RESULT_TTL)
        return answer

    async def retry(
        self, lease: Lease, by: str = "w1", *, delay: float = 100, error: str = "oops", max_retries: int = 3
    ) -> str:
        (answer,) = await self.retry_many([lease], by, delay=delay, error=error, max_retries=max_retries)
        return answer

    async def retry_many(
        self, leases: Iterable[Lease], by: str = "w1", *, delay: float = 100, error: str = "oops", max_retries: int = 3
    ) -> list[str]:
        return await self.transitions.retry(
            by,
            [Failure(lease, delay, "error", error) for lease in leases],
            max_retries=max_retries,
            dead_letter_ttl=DEAD_LETTER_TTL,
            dedup_expiry=DEDUP_EXPIRY,
        )

    async def dead_letter(self, lease: Lease, by: str = "w1", *, reason: str = "rejected", error: str = "oops") -> str:
        (answer,) = await self.transitions.dead_letter(
            by, [Failure(lease, 0.0, reason, error)], dead_letter_ttl=DEAD_LETTER_TTL
        )
        return answer

    async def release(self, lease: Lease, by: str = "w1") -> str:
        (answer,) = await self.transitions.release(by, [lease])
        return answer

    async def renew(self, lease: Lease, by: str = "w1") -> bool:
        (held,) = await self.transitions.renew(by, [lease])
        return held

    async def sweep(self, max_deliveries: int = 3) -> tuple[int, int]:
        """Sweeps to the end of both lists; messages handed back and given up in all."""
        recovered = dead = 0
        more_dead = more_unlocked = True
        for _ in range(1000):
            swept = await self.transitions.sweep(max_deliveries=max_deliveries, dead_letter_ttl=DEAD_LETTER_TTL)
            recovered, dead = recovered + swept.recovered, dead + swept.dead
            more_dead, more_unlocked = more_dead and swept.more_dead, more_unlocked and swept.more_unlocked
            if not (more_dead or more_unlocked):
                return recovered, dead
        raise AssertionError("sweep comes to no end")

    async def requeue(self, id: str) -> str:
        (answer,) = await self.transitions.requeue([id], dedup_expiry=DEDUP_EXPIRY)
        return answer

    async def quick_look(self) -> tuple[int, int]:
        """What maintenance does each second: (adopted, expired)."""
        seen = await self.transitions.reconcile("", adopted_ttl=3600, dedup_expiry=DEDUP_EXPIRY)
        return seen.adopted, seen.expired

    async def upkeep(self, maintainer: str) -> Upkeep:
        return await self.transitions.upkeep(maintainer, LEASE, adopted_ttl=3600, dedup_expiry=DEDUP_EXPIRY)

    async def full_pass(self) -> tuple[int, int, int]:
        """(adopted, expired, ids in main less entries in streams)."""
        adopted = expired = 0
        cursor = "0"
        for _ in range(1000):
            step = await self.transitions.reconcile(cursor, adopted_ttl=3600, dedup_expiry=DEDUP_EXPIRY)
            adopted, expired, cursor = adopted + step.adopted, expired + step.expired, step.cursor
            if cursor == "0":
                return adopted, expired, step.difference
        raise AssertionError("a full pass comes to no end")


def new(
    id: str,
    *,
    priority: Priority = "normal",
    delay: float = 0.0,
    ttl: float | None = None,
    slot: str | None = None,
    listener: str = "",
    **fields: str,
) -> NewMessage:
    """A message with one field of payload, ``text``, beside the given ones."""
    values = {"text": f"text of {id}", **fields, "_sq_types": ""}
    flat = [part.encode() for name, value in values.items() for part in (name, value)]
    return NewMessage(id, priority, delay, ttl, slot, flat, listener)


def outside(id: str, order: str = "") -> Lease:
    """No delivery at all: an order from outside, for `retry` and `dead_letter`."""
    return Lease(id, "", order)


def _rounded(seconds: float) -> int:
    """Small numbers as they are, larger ones to the nearest ten."""
    return round(seconds) if seconds < 10 else round(seconds / 10) * 10


def _when(moment: float, now: float) -> str:
    offset = moment - now
    if offset < -20:
        return f"{moment:g}"
    return "now" if abs(offset) < 10 else f"now+{_rounded(offset)}"


def _field(name: str, value: str, now: float) -> str:
    if name in _TIMES:
        try:
            return _when(float(value), now)
        except ValueError:
            return value
    return _ENTRY.sub("*", value)


def _int(value: str) -> int | str:
    return int(value) if value.lstrip("-").isdigit() else value


def _at_start(field: str, value: str) -> bool:
    return _CURSORS.fullmatch(field) is not None and value in {"0-0", "-"}
