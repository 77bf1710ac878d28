"""All that is asked of Redis: one typed coroutine for each Lua file, and the few plain reads."""

import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from msgspec.structs import replace

from streams_queue import scripts
from streams_queue.answers import (
    Answered,
    Claimed,
    Enqueued,
    Examined,
    Failure,
    Held,
    NewMessage,
    Oldest,
    Outdated,
    Page,
    Parked,
    Place,
    Promoted,
    Reconciled,
    Refused,
    Swept,
    Turn,
    Upkeep,
    Working,
    claimed_of,
    enqueued_of,
    examined_of,
    id_of,
    parked_of,
    status_of,
)
from streams_queue.codec import Fields, fields_of, number
from streams_queue.connection import Connection
from streams_queue.door import BATCH, Argument, Door, Resharded, batches
from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys
from streams_queue.limits import FIELDS, Limits, from_meta, to_meta
from streams_queue.model import Lease, Priority, Stats, Status

SCHEMA = 1
"""The version of the layout in Redis. An engine refuses a queue that a newer one wrote."""

GROUP = "workers"

_BATCH_BYTES = 4 << 20
_BATCH_VALUES = 1 << 19
"""Names and values of fields: Redis 6.2 drops a connection that sends a command of more than 1,048,576 arguments."""

_CLAIM_BYTES = 8 << 20

_COUNTER = re.compile(rb"-?\d{1,19}")


class Transitions(Door):
    """The transitions of one queue over one connection.

    Every coroutine raises `QueueUnavailable` when the server cannot do it now and `ConfigurationError` when a key
    has the wrong type or a permission is missing. None of them waits: they are single round trips.
    """

    def __init__(self, connection: Connection, keys: Keys) -> None:
        super().__init__(connection, keys)
        self.shards_version = 0
        """Of a shard: the version of the registry that its callers go by. Where it has seen a newer one, it refuses."""

    # ---- into the queue

    async def enqueue(
        self,
        messages: Sequence[NewMessage],
        *,
        dedup_expiry: int,
        index_users: bool = False,
        anew: bool = False,
    ) -> list[Enqueued | Refused]:
        """Accept messages, in calls of at most 500 messages, 4 MiB, or 2**19 names and values. O(log n) each.

        `anew`: an id whose message has ended, as a dead letter too, is free for a new one.
        """
        answers = await self.enqueue_on_replicas(
            messages, dedup_expiry=dedup_expiry, index_users=index_users, replicas=0, anew=anew
        )
        if any(isinstance(answer, Outdated) for answer, _ in answers):
            raise Resharded(f"queue {self.keys.prefix!r} has another number of shards by now")
        return [answer for answer, _ in answers if not isinstance(answer, Outdated)]

    async def enqueue_on_replicas(
        self,
        messages: Sequence[NewMessage],
        *,
        dedup_expiry: int,
        index_users: bool = False,
        replicas: int,
        in_order: bool = False,
        anew: bool = False,
    ) -> list[tuple[Answered, int]]:
        """As `enqueue`; for each message also how many replicas have it. Each call waits until so many as are asked
        for do, half of the client's timeout at most.

        `in_order`: the first that is refused ends it. Those after it are not taken, and are answered as it is.
        """
        head = (dedup_expiry, int(index_users), replicas, int(in_order), int(anew), self.shards_version)
        answers: list[tuple[Answered, int]] = []
        for batch in _by_size(messages):
            rows = [_row_of_new(message) for message in batch]
            keys = [key for message in batch for key in self._keys_of_new(message)]
            fields = [message.fields for message in batch]
            try:
                reply = await self._run(scripts.ENQUEUE, head, rows, keys, fields, replicas=replicas)
            except Resharded:
                left = messages[len(answers) :]
                return answers + [(Outdated(head[-1]), replicas)] * len(left)
            written, confirmed = reply if replicas else (reply, 0)
            answers += [(enqueued_of(*row), confirmed) for row in written]
            if in_order and isinstance(answers[-1][0], Refused):
                answers += [answers[-1]] * (len(messages) - len(answers))
                break
        return answers

    async def known(self, id: str, slot: str | None) -> Enqueued | None:
        """The message that a new one with this id and slot would double, if any. Writes nothing."""
        body = self.keys.message(id)
        keys = (body, self.keys.done(id), slot or body)
        found = await self._run(scripts.KNOWN, (id, int(slot is not None)), (), keys)
        return Enqueued(id_of(found[0]), status_of(found[1]), duplicate=True) if found else None

    def _keys_of_new(self, message: NewMessage) -> tuple[str, str, str]:
        body = self.keys.message(message.id)
        slot = message.slot or body  # without a slot, a key of the same message fills in
        return body, self.keys.done(message.id), slot

    async def promote(self) -> Promoted:
        """Put what is due in line."""
        more, promoted, next_due = await self._run(scripts.PROMOTE, (BATCH,))
        return Promoted(bool(more), promoted, float(next_due) if next_due else None)

    async def requeue(self, ids: Sequence[str], *, dedup_expiry: int) -> list[str]:
        """Dead letters back in line: ``queued``, ``missing`` or ``expired`` for each."""
        return await self._each(scripts.REQUEUE, (dedup_expiry,), [(id,) for id in ids])

    async def prioritise(self, ids: Sequence[str], priority: Priority) -> list[str]:
        """Give waiting messages another priority, at the tail of its line: ``changed`` or ``same`` for each, or
        ``processing``, ``dead`` or ``missing`` where it does not wait. O(log n) each.
        """
        return await self._each(scripts.PRIORITISE, (priority,), [(id,) for id in ids])

    # ---- to a worker

    async def schema(self) -> int:
        """The number of the layout that the queue has."""
        with self._translated():
            schema: Any = await self.connection.client.hget(self.keys.meta, "schema")
        return int(number(schema, SCHEMA))

    async def check_schema(self) -> None:
        """Nothing, where this engine knows the layout that the queue has.

        Raises:
            ConfigurationError: a newer engine wrote the queue.
        """
        self._refuse_newer(await self.schema())

    def too_new(self, schema: int) -> ConfigurationError | None:
        """What is to be said of a layout that this engine does not know; None where it does."""
        if schema <= SCHEMA:
            return None
        return ConfigurationError(
            f"queue {self.keys.prefix!r} has schema {schema}, this engine knows {SCHEMA}: upgrade streams-queue"
        )

    def _refuse_newer(self, schema: int) -> None:
        if error := self.too_new(schema):
            raise error

    async def join(self, consumer: str, lease: float, one_at_a_time_per: str | None = None) -> None:
        """Make the groups and the consumer, and agree on the lease (seconds); and on this key, where one is named.

        Raises:
            ConfigurationError: workers with another lease live, a newer engine wrote the queue, or it has other limits
                per key.
        """
        wanted = round(lease * 1000)
        in_force, schema = await self._run(scripts.JOIN, (consumer, wanted, SCHEMA))
        self._refuse_newer(schema)
        if in_force != wanted:
            raise ConfigurationError(
                f"lease={lease:g} s was asked for, but workers of queue {self.keys.prefix!r} live with a lease of "
                f"{in_force / 1000:g} s: use the same, or stop them first"
            )
        if one_at_a_time_per is not None:
            await self.one_at_a_time_per(one_at_a_time_per)

    async def claim(
        self, consumer: str, max_messages: int, *, alone: bool = True, lock: float | None = None
    ) -> Claimed:
        """Take messages to work on, at most 500 of them and 8 MiB of bodies, of which each field counts as
        64 bytes at least.

        Args:
            consumer: who takes them.
            max_messages: how many at most.
            alone: the consumer holds nothing now; then it may be given one suspect, which must run alone.
            lock: seconds; one that outlasts the queue's lease is respected by sweepers: for a holder that does not
                renew.
        """
        head = (consumer, _milliseconds(lock), min(max_messages, BATCH), _CLAIM_BYTES, int(alone))
        return claimed_of(await self._run(scripts.CLAIM, head))

    async def adopt(self, consumer: str, entries: Sequence[str], max_messages: int) -> Claimed:
        """Take the entries that a blocking read delivered; what is over `max_messages` is handed back."""
        return claimed_of(await self._run(scripts.ADOPT, (consumer, max_messages), [(entry,) for entry in entries]))

    async def wait(self, reader: Any, consumer: str, block: float) -> list[str]:
        """Wait up to `block` seconds for new entries, on a connection of its own; they must be adopted.

        At most one entry per priority is delivered.
        """
        with self._translated():
            reply = await reader.xreadgroup(
                GROUP,
                consumer,
                dict.fromkeys(self.keys.streams.values(), ">"),
                count=1,
                block=max(1, round(block * 1000)),
            )
        letters = {key.encode(): letter for letter, key in self.keys.streams.items()}
        return [letters[stream] + entry.decode() for stream, entries in reply or () for entry, _ in entries]

    async def pending(self, consumer: str) -> list[str]:
        """The entries that Redis holds for this consumer. Counts no delivery."""
        with self._translated():
            return [
                letter + entry
                for letter, key in self.keys.streams.items()
                for entry in await self._pending_in(key, consumer)
            ]

    async def _pending_in(self, stream: str, consumer: str) -> list[str]:
        found: list[str] = []
        start, full = "-", True
        while full:
            page: Any = await self.connection.client.xpending_range(
                stream, GROUP, start, "+", BATCH, consumername=consumer
            )
            found += [row["message_id"].decode() for row in page]
            full = len(page) == BATCH
            start = f"({found[-1]}" if found else "-"
        return found

    async def renew(self, consumer: str, leases: Sequence[Lease], *, lock: float | None = None) -> list[bool]:
        """Begin these leases afresh, as `claim` does: for each, whether the consumer still holds the message."""
        head = (consumer, _milliseconds(lock))
        return [answer == "held" for answer in await self._each(scripts.RENEW, head, [_row(lease) for lease in leases])]

    # ---- out of a worker's hands

    async def complete(self, consumer: str, done: Sequence[tuple[Lease, bytes]], *, result_ttl: int) -> list[str]:
        """Finish messages with their encoded results: ``completed`` or ``stale`` for each."""
        rows = [(*_row(lease), result) for lease, result in done]
        return await self._each(scripts.COMPLETE, (consumer, result_ttl), rows)

    async def retry(
        self,
        consumer: str,
        failures: Sequence[Failure],
        *,
        max_retries: int,
        dead_letter_ttl: int,
        dedup_expiry: int,
    ) -> list[str]:
        """Have messages tried again later, or given up: ``retry``, ``error``, ``stale`` or ``gone`` for each.

        ``queued`` where it waits in line for its key, which is paused.
        """
        rows = [(*_row(lease), delay, reason, error, key) for lease, delay, reason, error, key in failures]
        return await self._each(scripts.RETRY, (consumer, max_retries, dead_letter_ttl, dedup_expiry), rows)

    async def dead_letter(self, consumer: str, failures: Sequence[Failure], *, dead_letter_ttl: int) -> list[str]:
        """Give messages up: ``error``, ``stale`` or ``gone`` for each."""
        rows = [(*_row(failure.lease), failure.reason, failure.error) for failure in failures]
        return await self._each(scripts.DEAD_LETTER, (consumer, dead_letter_ttl), rows)

    async def release(self, consumer: str, leases: Sequence[Lease]) -> list[str]:
        """Hand messages back uncharged: ``queued``, ``stale`` or ``gone`` for each."""
        return await self._each(scripts.RELEASE, (consumer,), [_row(lease) for lease in leases])

    async def remove(self, ids: Sequence[str], *, only_dead: bool = False) -> list[bool]:
        """Take messages out, wherever they stand (or only dead letters): for each, whether there was one."""
        reply: list[int] = []
        for batch in batches(ids):
            reply += await self._run(
                scripts.REMOVE, (int(only_dead),), [(id,) for id in batch], self._keys_of(scripts.REMOVE, batch)
            )
        return [bool(answer) for answer in reply]

    # ---- maintenance

    async def sweep(self, *, max_deliveries: int, dead_letter_ttl: int, maintainer: str = "") -> Swept:
        """Recover what dead workers held; nothing where it is not the maintainer's turn any more."""
        head = (maintainer, max_deliveries, dead_letter_ttl, BATCH)
        reply = await self._run(scripts.SWEEP, head, (), [self.keys.maintainer])
        more_dead, more_unlocked, recovered, dead = reply
        return Swept(bool(more_dead), bool(more_unlocked), recovered, dead)

    async def upkeep(self, consumer: str, turn: float, *, adopted_ttl: int, dedup_expiry: int) -> Upkeep:
        """Look after the queue for `turn` seconds, where nobody else does: promote, and mend the newest scores."""
        head = (consumer, round(turn * 1000), BATCH, adopted_ttl, dedup_expiry)
        reply = await self._run(scripts.UPKEEP, head, (), [self.keys.maintainer])
        whose, waiting, pending, more_due, promoted, adopted, difference, next_due = reply
        newest = Reconciled("", adopted, 0, difference)
        due = float(next_due) if next_due else None
        return Upkeep(Turn(whose), bool(waiting), bool(pending), bool(more_due), promoted, newest, due)

    async def reconcile(self, cursor: str, *, adopted_ttl: int, dedup_expiry: int) -> Reconciled:
        """Mend what outsiders did to main: the newest scores (empty cursor), or a step of a full pass (from
        ``"0"``).
        """
        after, adopted, expired, difference = await self._run(
            scripts.RECONCILE, (cursor, BATCH, adopted_ttl, dedup_expiry)
        )
        return Reconciled(after.decode(), adopted, expired, difference)

    async def prune(self, consumer: str, idle: float) -> int:
        """Forget consumers that hold nothing: this one, and all that gave no sign for `idle` seconds."""
        return cast(int, await self._run(scripts.PRUNE, (consumer, round(idle * 1000))))

    # ---- for callers

    async def update(self, id: str, fields: Sequence[bytes], types: bytes) -> bool:
        """Write fields of a message's hash; False when there is no such message."""
        return bool(await self._run(scripts.UPDATE, (id, types or b"{}"), (), [self.keys.message(id)], [fields]))

    async def positions(self, ids: Sequence[str]) -> list[tuple[int | None, int | None]]:
        """(position, ahead) for each, None where it is in no queue. O(log n) each."""
        reply: list[list[int]] = []
        for batch in batches(ids):
            reply += await self._run(scripts.POSITION, (), [(id,) for id in batch])
        return [(None, None) if position < 0 else (position, ahead) for position, ahead in reply]

    async def watch(self, channel: str, ids: Sequence[str]) -> list[tuple[Status, bytes] | None]:
        """How messages stand, with their result or error; unfinished ones are told of on `channel` from now on."""
        replies: list[list[bytes]] = []
        for batch in batches(ids):
            replies += await self._run(
                scripts.WATCH, (channel,), [(id,) for id in batch], self._keys_of(scripts.WATCH, batch)
            )
        return [(status_of(reply[0]), reply[1]) if reply else None for reply in replies]

    async def first_of_user(self, user_id: str) -> str | None:
        """The id of a user's first message in main. O(log n), and the user's own messages."""
        found = await self._run(scripts.FIRST_OF_USER, (), (), [self.keys.user(user_id)])
        return None if found is None else id_of(found)

    async def lock(self, key: str, owner: str, ttl: float, *, shared: bool = False) -> bool:
        """Take a lock for `ttl` seconds; a shared one also when this owner's name holds it already."""
        return bool(
            await self._run(scripts.LOCK, (owner, max(1, round(ttl * 1000)), int(shared)), (), [key], house=False)
        )

    async def unlock(self, key: str, owner: str) -> bool:
        """Free a lock; False when somebody else holds it."""
        return bool(await self._run(scripts.UNLOCK, (owner,), (), [key], house=False))

    async def register(self, count: int | str = "", key: str = "", servers: int | str = "", id: str = "") -> Fields:
        """What is agreed about the shards of a queue; these where nothing was, or nothing for an empty `count`."""
        found = await self._run(scripts.REGISTER, (count, key, servers, id), (), [self.keys.registry], house=False)
        return fields_of(found)

    async def note_server(self, place: str, address: str) -> None:
        """Have the registry know that the server at this place bears the queue's mark."""
        with self._translated():
            await self.connection.client.hset(self.keys.registry, place, address)

    async def read(self, ids: Sequence[str]) -> list[Fields]:
        """The hashes of messages; empty where there is none, or a key of another type."""
        replies: list[list[bytes]] = []
        for batch in batches(ids):
            replies += await self._run(scripts.READ, (), [(id,) for id in batch], self._keys_of(scripts.READ, batch))
        return [fields_of(flat) for flat in replies]

    async def read_at(self, places: Sequence[Place]) -> list[Fields]:
        """As `read`, of the messages at these places: two shards may have the same id."""
        return await self.read([place.id for place in places])

    async def examine(self, ids: Sequence[str]) -> list[Examined]:
        """All that is known of each message. O(log n) each, and the size of its hash."""
        replies: list[list[Any]] = []
        for batch in batches(ids):
            replies += await self._run(
                scripts.EXAMINE, (), [(id,) for id in batch], self._keys_of(scripts.EXAMINE, batch)
            )
        return [examined_of(reply) for reply in replies]

    async def page(self, set: Literal["main", "dlq"], after: Place, count: int, *, newest_first: bool = False) -> Page:
        """The places of main or of the dead letters that follow a place, which need not be taken. O(log² n + count)."""
        head = (set, repr(after.score), after.id, int(newest_first), count)
        now, flat = await self._run(scripts.PAGE, head)
        found = iter(flat)
        return Page(float(now), [Place(id_of(id), float(score)) for id, score in zip(found, found, strict=True)])

    async def walk(
        self,
        set: Literal["main", "dlq"],
        *,
        newest_first: bool = False,
        since: float = -math.inf,
        until: float = math.inf,
        count: int = BATCH,
    ) -> AsyncIterator[Page]:
        """All places with a score from `since` to `until`, in pages of at most `count`.

        Ids may come and go meanwhile: one that stays is met once, a new one perhaps.
        """
        place = Place("", until if newest_first else since)
        while True:
            page = await self.page(set, place, count, newest_first=newest_first)
            within = [place for place in page.places if since <= place.score <= until]
            if within:
                yield Page(page.now, within)
            if len(within) < count:
                return
            place = within[-1]

    async def stats(self) -> Stats:
        """The counts of one moment. O(number of workers)."""
        reply = await self._run(scripts.STATS, ())
        main, processing, retry, scheduled, dead, lost, paused, counters, oldest, workers, parked, *lines = reply
        numbers = {name: int(raw) for name, raw in fields_of(counters).items() if _COUNTER.fullmatch(raw)}
        return Stats(
            main=main, processing=processing, retry=retry, scheduled=scheduled, dead=dead, lost=lost,
            parked=parked, high=lines[0], low=lines[1], paused=bool(paused),
            oldest_waiting=float(oldest) if oldest else None, workers=workers,
            counters=numbers, died=_with_prefix("dead_", numbers), edits=_with_prefix("outside_", numbers),
        )  # fmt: skip

    async def oldest(self) -> Oldest:
        """Since when the message waits that has stood in line for the longest. O(log n)."""
        now, since = await self._run(scripts.OLDEST, ())
        return Oldest(float(now), float(since) if since else None)

    async def workers(self, limit: int) -> list[Working]:
        """Who works on the queue, and some of what each holds: `limit` messages of each priority in all.

        O(workers + limit · log n).
        """
        consumers, messages = await self._run(scripts.WORKERS, (limit,))
        held: dict[bytes, list[Held]] = {name: [] for name, _, _ in consumers}
        for name, id, delivery in messages:
            held[name].append(Held(id_of(id), int(number(delivery or None))))
        return [
            Working(name.decode(errors="replace"), idle / 1000, pending, held[name])
            for name, idle, pending in consumers
        ]

    async def parked(self, limit: int) -> Parked:
        """For which keys messages are parked: at most so many that a time holds up, and those of the `limit` messages
        that have been in line for the longest. O(limit · log n).
        """
        return parked_of(await self._run(scripts.PARKED, (limit,)))

    async def of_user(self, user_id: str, limit: int, first: int = 0) -> list[str] | None:
        """Ids of a user's unfinished messages, those in line first, without the `first` ones; None where the queue
        keeps no such index.

        O(log n + limit).
        """
        indexed, ids = await self._run(scripts.OF_USER, (limit, first), (), [self.keys.user(user_id)])
        return [id_of(id) for id in ids] if indexed else None

    async def amend(self, id: str, died: float, fields: Sequence[bytes], removed: Sequence[bytes]) -> str:
        """Write fields of a dead letter's hash and remove others: ``amended``, ``missing``, or ``changed`` where its
        time of death is another one.
        """
        tail = [*removed, *fields]
        answer = await self._run(scripts.AMEND, (id, repr(died), len(removed)), (), [self.keys.message(id)], [tail])
        return cast(bytes, answer).decode()

    async def time(self) -> float:
        """The server's clock, in epoch seconds."""
        with self._translated():
            answer = await self.connection.ask("TIME", near=self.keys.prefix)
        if answer is None:
            raise ConfigurationError(f"queue {self.keys.prefix!r}: the user may not run TIME")
        return int(answer[0]) + int(answer[1]) / 1_000_000

    async def in_line(self, id: str) -> bool:
        """Whether the message stands in main."""
        with self._translated():
            return await self.connection.client.zscore(self.keys.main, id) is not None

    async def dead_letters(self, start: int, count: int) -> list[Place]:
        """Dead letters, the newest first. O(log n + count)."""
        with self._translated():
            client: Any = self.connection.client
            found = await client.zrevrange(self.keys.dlq, start, start + count - 1, withscores=True)
        return [Place(id_of(id), float(score)) for id, score in found]

    async def tell(self, channels: Iterable[str], event: bytes) -> None:
        """Tell listeners something that is no transition."""
        with self._translated():
            for channel in channels:
                await self.connection.client.publish(channel, event)

    async def count(self, counter: str, by: int = 1) -> None:
        """Add to a counter of ``P:stats``."""
        with self._translated():
            await self.connection.client.hincrby(self.keys.stats, counter, by)

    async def free(self, slot: str) -> bool:
        """Free a dedup slot, whoever holds it; False when it was free."""
        with self._translated():
            return bool(await self.connection.client.delete(slot))

    async def index_users(self) -> None:
        """Have every message that comes into line from now on found by its user too."""
        with self._translated():
            await self.connection.client.hset(self.keys.meta, "user_index", "1")

    async def pause(self, paused: bool) -> None:
        """Have workers claim nothing, or claim again."""
        with self._translated():
            if paused:
                await self.connection.client.hset(self.keys.meta, "paused", "1")
            else:
                await self.connection.client.hdel(self.keys.meta, "paused")

    async def limits(self) -> Limits:
        """The limits in force."""
        with self._translated():
            values: Any = await self.connection.client.hmget(self.keys.meta, FIELDS)
        found = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
        return from_meta({name: value.decode(errors="replace") for name, value in found.items()})

    async def limit(self, limits: Limits) -> None:
        """Have these limits from now on, and no others."""
        tail = [part for pair in to_meta(limits).items() for part in pair]
        await self._run(scripts.LIMIT, (), (), (), [tail])

    async def one_at_a_time_per(self, key: str) -> None:
        """Have messages of one key worked on one after the other.

        Raises:
            ConfigurationError: the queue has other limits per key.
        """
        limits = await self.limits()
        wanted = replace(limits, key=key, concurrency_per_key=1)
        if limits.key not in (None, key) or limits.concurrency_per_key not in (None, 1):
            raise ConfigurationError(
                f"one_at_a_time_per={key!r} was asked for, but queue {self.keys.prefix!r} has limits with "
                f"key={limits.key!r} and concurrency_per_key={limits.concurrency_per_key}: ask for the same, or change "
                "them first (streams-queue limits)"
            )
        if limits != wanted:
            await self.limit(wanted)


def _with_prefix(prefix: str, counters: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in counters.items() if name.startswith(prefix)}


def _row_of_new(m: NewMessage) -> tuple[Argument, ...]:
    ttl = "" if m.ttl is None else m.ttl
    at = "" if m.at is None else m.at
    return (m.id, m.priority, m.delay, at, ttl, m.listener, int(m.slot is not None), len(m.fields) // 2)


def _milliseconds(duration: float | None) -> int | str:
    return "" if duration is None else max(1, round(duration * 1000))


def _row(lease: Lease) -> tuple[str, str, str]:
    return (lease.id, lease.entry, lease.delivery)


def _by_size(messages: Sequence[NewMessage]) -> Iterable[list[NewMessage]]:
    batch: list[NewMessage] = []
    size, values = 0, 0
    for message in messages:
        bytes_, fields = sum(map(len, message.fields)), len(message.fields)
        if batch and (len(batch) == BATCH or size + bytes_ > _BATCH_BYTES or values + fields > _BATCH_VALUES):
            yield batch
            batch, size, values = [], 0, 0
        batch.append(message)
        size += bytes_
        values += fields
    if batch:
        yield batch
