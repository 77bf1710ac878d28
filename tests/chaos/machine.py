"""A queue against its model, by all operations and outside edits in any order (fault 23).

The model is one small record for each message: where it stands, who holds it, how often it failed and crashed. What
an operation must answer is read off the model; after each step every documented key is compared with it.

An outside edit makes a message `wild`: until `heal` nothing is asked of it but that it disturbs no other. After `heal`
it must stand in one place with its body, or in none; gone it may be only where an edit took it out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, note
from hypothesis import settings as Settings  # noqa: N812  (a class)
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from redis.exceptions import ResponseError

import servers
import setups
from chaos.edits import DESTRUCTIVE, HARMLESS, Edited, claim_elsewhere, odd_fields
from streams_queue import settings as server_settings
from streams_queue.answers import Claimed, Refused
from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue.limits import LOW_SHARE, NORMAL_SHARE
from streams_queue.model import Lease, Priority
from streams_queue.transitions import GROUP
from transitions.tables import LEASE, Queue

Answer = TypeVar("Answer")

MAX_RETRIES = 2
MAX_DELIVERIES = 3
LATER = 1000.0
"""Seconds of every delay: until a step lets that time come."""
WORKERS = ("w1", "w2")
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
SLOT = 1_000_000


class Place(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    RETRY = "retry"
    SCHEDULED = "scheduled"
    DEAD = "error"
    GONE = "gone"


FINAL = (Place.DEAD, Place.GONE)

COUNTERS = (
    "total_messages", "duplicate_messages", "completed_messages", "retry_count", "dlq_messages", "removed_messages",
    "requeued_messages", "recovered_messages",
)  # fmt: skip


class Model:
    """One message."""

    def __init__(
        self, id: str, priority: Priority, place: Place, slot: str | None = None, fields: dict[str, Any] | None = None
    ) -> None:
        self.id = id
        self.priority = priority
        self.place = place
        self.slot = slot
        self.fields = fields or {}
        self.unseen = False
        """An old producer wrote it, and `reconcile` has not met it yet: it has no entry."""
        self.turn: int | None = None
        """Its place among those that never were delivered; None once it was."""
        self.lease: Lease | None = None
        self.holder = ""
        self.expired_lease = False
        self.retries = 0
        self.crashes = 0
        self.end = ""
        """The final status, of one that is gone."""
        self.suspect = False
        """The next crash would be its last: it runs alone."""
        self.begun_under: str | None = None
        """The field that told keys apart when it was begun, where so many of a key run at once: it stands before others
        of its key, also when it was handed back."""
        self.wild = False
        self.healed = False
        """It was wild: who knows when its turn is."""
        self.destroyed = False
        """An edit took it out, or its body away."""
        self.words: set[str | None] = set()
        """What edits wrote into its status: it stays until the message moves on."""

    def leaves_its_worker(self, place: Place) -> None:
        self.place, self.lease, self.holder, self.expired_lease = place, None, "", False
        if place is not Place.QUEUED:
            self.begun_under = None

    def __repr__(self) -> str:
        return f"{self.id}({self.priority} {self.place.value} retries={self.retries} crashes={self.crashes})"


class Machine(RuleBasedStateMachine):
    """Steps, each with what must come of it."""

    server: ClassVar[servers.AnyServer]
    _prefixes: ClassVar[Any] = itertools.count()

    examples: ClassVar[int] = 0
    enqueued: ClassVar[int] = 0

    counters: ClassVar[tuple[str, ...]] = COUNTERS
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        Machine.examples += 1
        self.runner = asyncio.Runner()
        self.known: dict[str, Model] = {}
        self.lost: list[tuple[str, Lease]] = []
        self.turns = itertools.count()
        self.counted: Counter[str] = Counter()
        self.touched = False
        """A body ran out, or somebody edited something: who knows what was counted."""
        self.outsiders = True
        """There are old producers, bodies that run out, and programs that edit the queue's keys: upkeep has to mend."""
        self.edited = False
        """Somebody edited something."""
        self.phantoms = False
        """Entries are left in the streams whose messages are gone."""
        home = setups.HOME if isinstance(self.server, setups.Cluster) else ""
        self.prefix = f"{home}machine{next(self._prefixes)}"
        self.queue = self.do(self._open())

    def do(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return self.runner.run(coroutine)

    async def _open(self) -> Queue:
        self.connection = Connection(server_settings.Settings(self.server.url))
        await self.connection.open()
        self.client: Any = self.server.client(encoding_errors="surrogateescape")
        queue = Queue(self.connection, Keys(self.prefix), self.client)
        for worker in WORKERS:
            await queue.transitions.join(worker, LEASE)
        return queue

    def teardown(self) -> None:
        Machine.enqueued += len(self.known)
        try:
            self.heal()
            self.do(self._drain())
        finally:
            self.do(self._close())
            self.runner.close()

    async def _close(self) -> None:
        keys = [key async for key in self.client.scan_iter(f"{self.prefix}:*", count=1000)]
        if keys:
            await self.client.delete(*keys)
        await self.client.aclose()
        await self.connection.close()

    # ---- what the model knows

    def tame(self, *places: Place) -> list[Model]:
        return [message for message in self.known.values() if not message.wild and message.place in places]

    @property
    def shares(self) -> dict[Priority, int]:
        """In millionths of a slot, as credits are kept."""
        return {"normal": round(NORMAL_SHARE * SLOT), "low": round(LOW_SHARE * SLOT)}

    @property
    def is_wild(self) -> bool:
        return any(message.wild for message in self.known.values())

    def holder_of(self, slot: str) -> Model | None:
        return next((m for m in self.known.values() if m.slot == slot and m.place not in FINAL), None)

    def queue_up(self, message: Model) -> None:
        message.leaves_its_worker(Place.QUEUED)
        message.turn, message.healed = next(self.turns), False

    def crash(self, message: Model) -> None:
        assert message.lease is not None
        self.lost.append((message.holder, message.lease))
        message.crashes += 1
        message.suspect |= message.crashes >= MAX_DELIVERIES - 1
        is_dead = message.crashes >= MAX_DELIVERIES
        message.leaves_its_worker(Place.DEAD if is_dead else Place.QUEUED)
        self.counted["dlq_messages" if is_dead else "recovered_messages"] += 1

    # ---- steps

    @rule(
        target=messages,
        priority=st.sampled_from(PRIORITIES),
        delayed=st.booleans(),
        slot=st.sampled_from([None, None, "k1", "k2"]),
    )
    def enqueue(self, priority: Priority, delayed: bool, slot: str | None) -> Any:
        return self.offer(priority, slot, {}, delay=LATER if delayed else 0.0)

    def offer(self, priority: Priority, slot: str | None, fields: dict[str, Any], *, delay: float) -> Any:
        """The id of the message that is in the queue now, if one is."""
        id = f"m{len(self.known)}"
        refusal = self.refusal(fields)
        holder = self.holder_of(slot) if slot else None
        # One that was taken out of the line by hand keeps its slot as long as its body is there.
        wild_slot = slot is not None and any(m.wild or m.destroyed for m in self.known.values() if m.slot == slot)
        (answer,) = self.do(self.queue.offer(id, priority=priority, delay=delay, unique=slot, **fields))
        if isinstance(answer, Refused):
            assert (wild_slot or not holder) and answer.limit == refusal, answer
            self.counted[f"refused_{refusal}"] += 1
            return multiple()
        self.counted["duplicate_messages" if answer.duplicate else "total_messages"] += 1
        if wild_slot and answer.duplicate:
            return answer.id
        assert wild_slot or answer.duplicate == (holder is not None), answer
        if answer.duplicate and holder is not None:
            assert (answer.id, answer.status) == (holder.id, holder.place.value)
            return holder.id
        assert refusal is None, f"{refusal} should have refused it"
        place = Place.SCHEDULED if delay else Place.QUEUED
        assert answer.status == place.value
        self.accept(Model(id, priority, place, slot, fields))
        return id

    def accept(self, message: Model) -> None:
        self.known[message.id] = message
        if message.place is Place.QUEUED:
            message.turn = next(self.turns)

    def refusal(self, fields: dict[str, Any]) -> str | None:
        """The name of the limit that has to refuse a new message."""
        return None

    @rule(id=messages)
    def enqueue_again(self, id: str) -> None:
        message = self.known[id]
        if message.wild or (message.place is Place.GONE and message.destroyed):
            return
        (answer,) = self.do(self.queue.enqueue(id))
        self.counted["duplicate_messages"] += 1
        assert (answer.id, answer.duplicate) == (id, True)
        assert answer.status == (message.end if message.place is Place.GONE else message.place.value)

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 4), alone=st.booleans())
    def claim(self, worker: str, count: int, alone: bool) -> None:
        credits = self.do(self._credits())
        claimed = self.do(self.queue.transitions.claim(worker, count, alone=alone))
        ids = [delivery.lease.id for delivery in claimed.deliveries]
        assert len(set(ids)) == len(ids), ids
        note(f"{ids}")
        if self.knows_the_order():
            assert ids == self._chosen(count, alone, ids, credits)
        self.works_on(claimed, worker, alone=alone)

    def knows_the_order(self) -> bool:
        return not (self.is_wild or self.phantoms or any(m.healed for m in self.tame(Place.QUEUED)))

    def works_on(self, claimed: Claimed, worker: str, *, alone: bool) -> None:
        ids = [delivery.lease.id for delivery in claimed.deliveries]
        suspects = [id for id in ids if self.known[id].suspect and not self.known[id].wild]
        assert not suspects or (alone and len(ids) == 1), f"{suspects} is not to run beside others"
        for delivery in claimed.deliveries:
            assert "timestamp" in delivery.fields, "an empty body"
            message = self.known[delivery.lease.id]
            assert message.wild or message.place is Place.QUEUED, message
            message.place, message.lease, message.holder = Place.PROCESSING, delivery.lease, worker
            message.turn, message.healed = None, False

    def _chosen(self, count: int, alone: bool, ids: list[str], credits: dict[Priority, int]) -> list[str]:
        """A suspect alone and first; then by priority, with what the lower ones are due."""
        waiting = self.tame(Place.QUEUED)
        suspects = [m.id for m in waiting if m.suspect and m.turn is None]
        if alone and suspects:
            return [id for id in ids if id in suspects][:1]
        present = {m.priority for m in self.tame(Place.QUEUED, Place.PROCESSING)}
        lines = {priority: self._line(priority, ids) for priority in PRIORITIES if priority in present}
        chosen: dict[Priority, list[str]] = {priority: [] for priority in lines}

        def take(priority: Priority, wanted: int) -> None:
            taken, lines[priority] = lines[priority][:wanted], lines[priority][wanted:]
            for message in taken:
                if message.suspect:
                    message.turn = None  # met by somebody who does not run it alone: set aside
                else:
                    chosen[priority].append(message.id)

        def free() -> int:
            return count - sum(map(len, chosen.values()))

        for priority in [*lines][:0:-1]:
            take(priority, min(free(), max(0, (credits[priority] + self.shares[priority] * count) // SLOT)))
        for priority in lines:
            take(priority, free())
        return [*itertools.chain.from_iterable(chosen.values())]

    def _line(self, priority: Priority, ids: list[str]) -> list[Model]:
        """What was delivered before, in any order (so in the one of `ids`); then by turn."""
        waiting = [m for m in self.tame(Place.QUEUED) if m.priority == priority]
        back = [m for m in waiting if m.turn is None and not m.suspect]
        back.sort(key=lambda m: ids.index(m.id) if m.id in ids else len(ids))
        return back + sorted((m for m in waiting if m.turn is not None), key=lambda m: m.turn or 0)

    async def _credits(self) -> dict[Priority, int]:
        normal, low = await self.client.hmget(self.queue.keys.meta, "credit_normal", "credit_low")
        return {"normal": int(normal or 0), "low": int(low or 0)}

    @precondition(lambda self: self.tame(Place.PROCESSING))
    @rule(data=st.data(), how=st.sampled_from(["complete", "retry", "dead_letter", "release", "renew"]))
    def act_on_a_lease(self, data: st.DataObject, how: str) -> None:
        message = data.draw(st.sampled_from(self.tame(Place.PROCESSING)))
        lease, holder = message.lease, message.holder
        assert lease is not None
        match how:
            case "complete":
                assert self.do(self.queue.complete(lease, holder)) == "completed"
                message.leaves_its_worker(Place.GONE)
                message.end = "completed"
                self.counted["completed_messages"] += 1
                assert self.do(self.queue.complete(lease, holder)) == "completed", "sent again, it answers the same"
            case "retry":
                message.retries += 1
                place = Place.RETRY if message.retries <= MAX_RETRIES else Place.DEAD
                answer = self.do(self.queue.retry(lease, holder, delay=LATER, max_retries=MAX_RETRIES))
                assert answer == place.value
                self.counted["retry_count" if place is Place.RETRY else "dlq_messages"] += 1
                message.leaves_its_worker(place)
                assert self.do(self.queue.retry(lease, holder, delay=LATER, max_retries=MAX_RETRIES)) == answer
            case "dead_letter":
                assert self.do(self.queue.dead_letter(lease, holder)) == "error"
                self.counted["dlq_messages"] += 1
                message.leaves_its_worker(Place.DEAD)
            case "release":
                assert self.do(self.queue.release(lease, holder)) == "queued"
                message.leaves_its_worker(Place.QUEUED)
                self.lost.append((holder, lease))
            case _:
                assert self.do(self.queue.renew(lease, holder))
                message.expired_lease = False

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), how=st.sampled_from(["complete", "retry", "dead_letter", "release", "renew"]))
    def act_on_a_lost_lease(self, data: st.DataObject, how: str) -> None:
        """Fenced: nothing is written."""
        holder, lease = data.draw(st.sampled_from(self.lost))
        answer = self.do(getattr(self.queue, how)(lease, holder))
        assert answer in {"stale", False}, answer

    @precondition(lambda self: self.tame(Place.PROCESSING))
    @rule(data=st.data())
    def a_lease_runs_out(self, data: st.DataObject) -> None:
        """Its worker died, or the server was away: until somebody sweeps, the holder keeps it."""
        message = data.draw(st.sampled_from(self.tame(Place.PROCESSING)))
        assert message.lease is not None
        self.do(self.queue.run_out(message.lease, message.holder))
        message.expired_lease = True

    @rule()
    def sweep(self) -> None:
        self.do(self.queue.sweep(MAX_DELIVERIES))
        for message in self.tame(Place.PROCESSING):
            if message.expired_lease:
                self.crash(message)

    @rule()
    def due_times_come(self) -> None:
        waiting = self.tame(Place.RETRY, Place.SCHEDULED)
        self.do(self.queue.make_due(*(message.id for message in waiting)) if waiting else asyncio.sleep(0))
        self.do(self.queue.transitions.promote())
        # Those of one moment go by the order of their ids, retries first.
        for place in (Place.RETRY, Place.SCHEDULED):
            for message in sorted((m for m in waiting if m.place is place), key=lambda m: m.id):
                self.queue_up(message)

    @rule(id=messages)
    def remove(self, id: str) -> None:
        message = self.known[id]
        (removed,) = self.do(self.queue.transitions.remove([id]))
        if message.wild:
            message.destroyed = True
            return
        if not (message.place is Place.GONE and message.destroyed):
            assert removed == (message.place is not Place.GONE)
        if message.lease:
            self.lost.append((message.holder, message.lease))
        if removed:
            message.leaves_its_worker(Place.GONE)
            message.end = "removed"
            self.counted["removed_messages"] += 1

    @rule(id=messages)
    def requeue(self, id: str) -> None:
        message = self.known[id]
        if message.wild:
            return
        answer = self.do(self.queue.requeue(id))
        assert answer == ("queued" if message.place is Place.DEAD else "missing")
        if message.place is Place.DEAD:
            message.retries, message.crashes, message.suspect = 0, 0, False
            self.counted["requeued_messages"] += 1
            self.queue_up(message)

    @precondition(lambda self: self.outsiders and self.tame(Place.QUEUED, Place.RETRY, Place.SCHEDULED))
    @rule(data=st.data())
    def a_body_runs_out(self, data: st.DataObject) -> None:
        """As its TTL would have it."""
        message = data.draw(st.sampled_from(self.tame(Place.QUEUED, Place.RETRY, Place.SCHEDULED)))
        self.do(self.client.delete(self.queue.keys.message(message.id)))
        message.wild = message.destroyed = self.touched = True

    @rule()
    def reconcile(self) -> None:
        adopted, expired, _ = self.do(self.queue.full_pass())
        unseen = self.sees_the_unseen()
        if not self.is_wild:
            assert (adopted, expired) == (unseen, 0), "a queue that nobody touched was mended"

    def sees_the_unseen(self) -> int:
        return 0

    @precondition(lambda self: self.outsiders)
    @rule(id=messages, edit=st.sampled_from([*HARMLESS, *DESTRUCTIVE]))
    def somebody_edits(self, id: str, edit: Any) -> None:
        message = self.known[id]
        note(f"{edit.__name__} on {message}")
        self.edited = self.touched = True
        with contextlib.suppress(ResponseError):  # an edit before it changed the key's type
            self.do(edit(Edited(self.client, self.queue.keys, id)))
            if edit in {claim_elsewhere, odd_fields}:
                message.words.add(self.do(self.client.hget(self.queue.keys.message(id), "status")))
        message.wild = True
        message.destroyed |= edit in DESTRUCTIVE

    @rule()
    def heal(self) -> None:
        """Time passes, upkeep is done; from then on wild messages stand somewhere, or nowhere, like all others."""
        wild = [message for message in self.known.values() if message.wild]
        if not wild:
            return
        self.do(self._heal(wild))
        self.sees_the_unseen()
        for message in self.tame(Place.PROCESSING):
            if message.expired_lease:
                self.crash(message)
        places = self.do(self._places())
        strangers = set(places) - set(self.known)
        assert not strangers, f"{strangers} are still in line"
        for message in wild:
            place = places.get(message.id, Place.GONE)
            excused = message.destroyed or message.place is Place.GONE
            assert place is not Place.GONE or excused, f"{message} got lost"
            message.destroyed |= place is Place.GONE
            message.leaves_its_worker(place)
            message.wild, message.healed, message.turn = False, True, None
            self.do(self._read_counts(message))
            self.do(self._unsay(message))

    async def _unsay(self, message: Model) -> None:
        """Whoever wrote another status writes the true one: nobody else may have left it so."""
        key = self.queue.keys.message(message.id)
        if message.place is not Place.GONE and await self.client.hget(key, "status") in message.words:
            await self.client.hset(key, "status", message.place.value)
        message.words.clear()

    async def _heal(self, wild: list[Model]) -> None:
        """What time brings: locks and leases run out, due times come, upkeep is done."""
        keys, queue = self.queue.keys, self.queue
        for message in wild:
            await self.client.delete(keys.lock(message.id))
        held = {message.lease.entry for message in self.tame(Place.PROCESSING) if message.lease}
        for letter, stream in keys.streams.items():
            for row in await self.client.xpending_range(stream, GROUP, "-", "+", 1000):
                if letter + row["message_id"] not in held:
                    await queue.age_entry(letter + row["message_id"], row["consumer"])
        for set_ in (keys.retry, keys.scheduled):
            ids = await self.client.zrange(set_, 0, -1)
            if strange := [id for id in ids if id not in self.known or self.known[id].wild]:
                await self.client.zadd(set_, dict.fromkeys(strange, 1.0))
        for _ in range(3):
            await queue.transitions.promote()
            await queue.full_pass()
            await queue.quick_look()
            for id in await self.client.zrange(keys.bodiless, 0, -1):
                await self.client.zadd(keys.bodiless, {id: await queue.now() - 10})
            await queue.sweep(MAX_DELIVERIES)
        for message in wild:  # main wins: what else an edit put it into is cleared when it is finished
            if await self.client.zscore(keys.main, message.id) is not None:
                await self.client.zrem(keys.dlq, message.id)
            elif await self.client.zscore(keys.dlq, message.id) is not None:
                await self.client.zadd(keys.dlq, {message.id: await queue.now() - 100})
        await queue.transitions.prune("", idle=1e6)  # dead letters without a body, among others

    async def _read_counts(self, message: Model) -> None:
        names = ("retry_count", "_sq_crashes", "_sq_suspect")
        with contextlib.suppress(ResponseError):
            retries, crashes, suspect = await self.client.hmget(self.queue.keys.message(message.id), *names)
            message.retries, message.crashes = _number(retries), _number(crashes)
            message.suspect = suspect is not None

    async def _places(self) -> dict[str, Place]:
        keys = self.queue.keys
        found: dict[str, Place] = {}
        for key, place in (
            (keys.main, Place.QUEUED), (keys.retry, Place.RETRY), (keys.scheduled, Place.SCHEDULED),
            (keys.dlq, Place.DEAD),
        ):  # fmt: skip
            for id in await self.client.zrange(key, 0, -1):
                assert id not in found, f"{id} stands in {place.value} and {found[id].value}"
                found[id] = place
        return found

    # ---- what always holds

    @invariant()
    def keys_are_as_the_model_says(self) -> None:
        self.do(self._compare())

    async def _compare(self) -> None:
        keys = self.queue.keys
        async with self.client.pipeline(transaction=True) as at_once:
            for key in (keys.main, keys.retry, keys.scheduled, keys.dlq):
                at_once.zrange(key, 0, -1)
            for stream in keys.streams.values():
                at_once.xlen(stream)
            for message in self.tame(*Place):
                at_once.hmget(keys.message(message.id), "status", "timestamp")
                at_once.get(keys.lock(message.id))
            replies = await at_once.execute(raise_on_error=False)
        main, retry, scheduled, dead, *rest = replies
        lengths, rest = rest[:3], rest[3:]
        for message in self.tame(*Place):
            body, lock, *rest = rest
            status, timestamp = body if isinstance(body, list) else (None, None)  # a key of another type is no body
            where = {
                name for name, ids in (("main", main), ("retry", retry), ("scheduled", scheduled), ("dlq", dead))
                if message.id in ids
            }  # fmt: skip
            assert where == _SETS[message.place], f"{message} stands in {where or 'no queue'}"
            if message.place is not Place.GONE:
                assert (status, bool(timestamp)) == (message.place.value, True), f"{message}: {status}"
                held = message.place is Place.PROCESSING and not message.expired_lease
                assert lock == (message.holder if held else None), f"{message}: lock of {lock}"
            elif not message.destroyed:
                assert timestamp is None, f"{message} left a body"
        if not self.is_wild:
            in_line = len([m for m in self.tame(Place.QUEUED, Place.PROCESSING) if not m.unseen])
            # One whose message ran out stays in the stream until somebody is given it.
            assert sum(lengths) >= in_line, f"{sum(lengths)} entries for {in_line} messages"
            self.phantoms = sum(lengths) > in_line
        if not self.edited:
            stats = await self.queue.transitions.stats()
            assert stats.edits == {}, f"{stats.edits} were counted, and nobody edited anything"
            if not self.touched:
                counted = {name: stats.counters.get(name, 0) for name in self.counters}
                assert counted == {name: self.counted[name] for name in self.counters}

    async def _drain(self) -> None:
        """Everything that is left can be worked on, and nothing remains."""
        for message in self.tame(Place.RETRY, Place.SCHEDULED):
            await self.queue.make_due(message.id)
        await self.queue.transitions.promote()
        expected = {m.id for m in self.tame(Place.QUEUED, Place.RETRY, Place.SCHEDULED)}
        for message in self.tame(Place.PROCESSING):
            assert message.lease is not None
            assert await self.queue.complete(message.lease, message.holder) == "completed"
        done: set[str] = set()
        while claimed := (await self.queue.transitions.claim("w1", 100, alone=True)).deliveries:
            for delivery in claimed:
                assert await self.queue.complete(delivery.lease) == "completed"
                done.add(delivery.lease.id)
        assert done == expected, f"{expected - done} were never handed out, {done - expected} were too many"
        for stream in self.queue.keys.streams.values():
            assert await self.client.xlen(stream) == 0, f"{stream} is not empty"
            assert (await self.client.xpending(stream, GROUP))["pending"] == 0
        for key in (self.queue.keys.main, *self.queue.keys.lines.values()):
            assert not await self.client.zrange(key, 0, -1), f"{key} is not empty"

    @initialize()
    def begin(self) -> Any:
        """An empty queue."""


def _number(raw: str | None) -> int:
    return int(raw) if raw and raw.isdigit() else 0


_SETS: dict[Place, set[str]] = {
    Place.QUEUED: {"main"},
    Place.PROCESSING: {"main"},
    Place.RETRY: {"retry"},
    Place.SCHEDULED: {"scheduled"},
    Place.DEAD: {"dlq"},
    Place.GONE: set(),
}


def settings(examples: int) -> Settings:
    """Many steps each; a failing sequence is made short and printed with what replays it."""
    return Settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )
