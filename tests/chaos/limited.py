"""A queue with limits against its model: keys and their turns, rates, pauses, priorities that change (fault 23).

`Machine` with more steps and looser knowledge of the order: of one key no more run than may, in order where one runs at
a time; no rate is exceeded; whatever may run is handed out, and at the end everything was.

Rates have periods so long that none is refilled while an example runs: time passes when a step says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, multiple, precondition, rule

from chaos.machine import COUNTERS, LATER, MAX_RETRIES, PRIORITIES, SLOT, WORKERS, Machine, Model, Place
from streams_queue.answers import Claimed, Failure
from streams_queue.keys import hash_of_key
from streams_queue.limits import Limits, Rate
from streams_queue.model import Priority
from streams_queue.transitions import GROUP
from transitions.tables import DEAD_LETTER_TTL, DEDUP_EXPIRY, new

PERIOD = 10_000.0
"""Seconds of every rate."""
HAIR = 1e-6

Key = tuple[str, str]
"""Field and value: what tells messages apart."""

FIELDS = ("user_id", "chat")
KEYS: list[Key] = [("user_id", "u1"), ("user_id", "u2"), ("chat", "u1")]
PAYLOADS: list[dict[str, Any]] = [
    *[{"user_id": "u1", "chat": "u1"}] * 4, {"user_id": "u1"}, {"user_id": "u2", "chat": "u1"}, {}, {"user_id": ""},
]  # fmt: skip
"""Most have the same keys: they are in each other's way."""
RATES = [None, None, *(Rate(count, PERIOD) for count in (1, 2, 3))]
SELDOM = [*[None] * 6, Rate(2, PERIOD), Rate(5, PERIOD)]
"""What keeps messages out keeps much else from happening."""
LIMITS = st.builds(
    Limits,
    key=st.sampled_from(FIELDS),
    concurrency_per_key=st.sampled_from([None, 1, 1, 2]),
    work=st.sampled_from([None, *RATES]),
    work_per_key=st.sampled_from(RATES),
    accept=st.sampled_from(SELDOM),
    accept_per_key=st.sampled_from(SELDOM),
    max_length=st.sampled_from([None, None, None, 8]),
    normal_share=st.sampled_from([0.2, 0.0, 0.5]),
    low_share=st.sampled_from([0.05, 0.0, 0.25]),
)
IN_ORDER = st.just(Limits(key="user_id", concurrency_per_key=1))
SOME_LIMITS = st.one_of(LIMITS, LIMITS, IN_ORDER, IN_ORDER, st.just(Limits()))
HELPERS = ("parked", "wake", "turns", "parked_of", "rate_of", "pause", "rate")


class Limited(Machine):
    """Steps of `Machine`, and those that limits make interesting."""

    counters = (*COUNTERS, "paused_keys", "refused_max_length", "refused_accept", "refused_accept_per_key")

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits()
        self.paused = False
        self.paused_keys: set[Key] = set()
        self.owed: defaultdict[Any, float] = defaultdict(float)
        """Seconds until each bucket is full again."""
        self.of_old: set[str] = set()
        """Old producers wrote them, with scores of their own."""
        self.disordered: set[str] = set()
        """Waited when it was not known whose turn it is: so who knows whether it comes in order."""
        self.unlisted = False
        """Nobody knows any more which entries were those of parked messages without a body."""
        self.read: list[tuple[str, str, str]] = []
        """Worker, entry and id of what a blocking read brought and nobody adopted."""
        self.settled = True
        """Nobody has to look through all messages for somebody's turn to be seen."""

    # ---- what the model knows

    @property
    def shares(self) -> dict[Priority, int]:
        return {"normal": round(self.limits.normal_share * SLOT), "low": round(self.limits.low_share * SLOT)}

    def key_of(self, message: Model) -> Key | None:
        return self.key_in(message.fields)

    def key_in(self, fields: dict[str, Any]) -> Key | None:
        field = self.limits.key
        return (field, fields[field]) if field and fields.get(field) else None

    def room_in(self, bucket: Any, rate: Rate | None) -> tuple[float, float]:
        """How many may go at once, and in how many seconds one more."""
        if rate is None:
            return math.inf, 0.0
        owed, interval = min(self.owed[bucket], rate.per), rate.per / rate.count
        left = math.floor((rate.per - owed + HAIR) / interval)
        return left, owed + (left + 1) * interval - rate.per

    def spend(self, bucket: Any, rate: Rate | None) -> None:
        if rate is not None:
            self.owed[bucket] = min(self.owed[bucket], rate.per) + rate.per / rate.count

    def buckets_at_enqueue(self, fields: dict[str, Any]) -> list[tuple[str, Any, Rate | None]]:
        key = self.key_in(fields)
        per_key = [("accept_per_key", ("accept", key), self.limits.accept_per_key)] if key else []
        return [("accept", "accept", self.limits.accept), *per_key]

    def refusal(self, fields: dict[str, Any]) -> str | None:
        unfinished = self.do(self._unfinished())
        if self.limits.max_length is not None and unfinished >= self.limits.max_length:
            return "max_length"
        waits = []
        for limit, bucket, rate in self.buckets_at_enqueue(fields):
            left, wait = self.room_in(bucket, rate)
            waits += [(wait, limit)] if left < 1 else []
        return max(waits, key=lambda row: row[0])[1] if waits else None

    async def _unfinished(self) -> int:
        keys = self.queue.keys
        return sum([await self.client.zcard(key) for key in (keys.main, keys.retry, keys.scheduled)])

    def may_run(self, message: Model, line: list[str]) -> bool:
        """Whether a worker that has nothing else is to be given it; `line` is main."""
        left, _ = self.room_in("work", self.limits.work)
        if left < 1 or self.paused or message.unseen or any(id == message.id for _, _, id in self.read):
            return False
        key = self.key_of(message)
        if key is None:
            return True
        left, _ = self.room_in(("work", key), self.limits.work_per_key)
        if left < 1 or key in self.paused_keys:
            return False
        same = [m for m in self.tame(Place.QUEUED, Place.PROCESSING) if self.key_of(m) == key and m is not message]
        if message.begun_under:
            same = [m for m in same if m.place is Place.PROCESSING or m.begun_under]
        before = [
            m for m in same if m.place is Place.PROCESSING or m.begun_under or line.index(m.id) < line.index(message.id)
        ]
        return len(before) < (self.limits.concurrency_per_key or math.inf)

    @initialize(
        target=Machine.messages,
        limits=SOME_LIMITS,
        outsiders=st.booleans(),
        payloads=st.lists(st.sampled_from(PAYLOADS), min_size=3, max_size=8),
    )
    def begin_with(self, limits: Limits, outsiders: bool, payloads: list[dict[str, Any]]) -> Any:
        """A queue where some have to wait for others."""
        self.outsiders = outsiders
        self.limits_change(limits)
        ids = [self.offer("normal", None, fields, delay=0.0) for fields in payloads]
        return multiple(*(id for id in ids if isinstance(id, str)))

    # ---- into the queue

    @rule(
        target=Machine.messages,
        priority=st.sampled_from(PRIORITIES),
        delay=st.sampled_from([0.0, 0.0, 0.0, LATER]),
        slot=st.sampled_from([None, None, "k1"]),
        fields=st.sampled_from(PAYLOADS),
    )
    def enqueue(self, priority: Priority, delay: float, slot: str | None, fields: dict[str, Any]) -> Any:
        return self.offer(priority, slot, fields, delay=delay)

    @rule(target=Machine.messages, count=st.integers(2, 4), fields=st.sampled_from(PAYLOADS))
    def enqueue_some(self, count: int, fields: dict[str, Any]) -> Any:
        ids = [self.offer("normal", None, fields, delay=0.0) for _ in range(count)]
        return multiple(*(id for id in ids if isinstance(id, str)))

    @rule(target=Machine.messages, offset=st.sampled_from([-5.0, LATER]), fields=st.sampled_from(PAYLOADS))
    def enqueue_at(self, offset: float, fields: dict[str, Any]) -> Any:
        """At a time by the server's clock; one that has passed is now."""
        id, refusal = f"m{len(self.known)}", self.refusal(fields)
        at = self.do(self.queue.now()) + offset
        message = new(id, **fields)._replace(at=at)
        (answer,) = self.do(self.queue.transitions.enqueue([message], dedup_expiry=DEDUP_EXPIRY))
        if refusal:
            self.counted[f"refused_{refusal}"] += 1
            return multiple()
        place = Place.SCHEDULED if offset > 0 else Place.QUEUED
        assert answer == (id, place.value, False)
        self.counted["total_messages"] += 1
        self.accept(Model(id, "normal", place, fields=fields))
        return id

    def accept(self, message: Model) -> None:
        super().accept(message)
        for _, bucket, rate in self.buckets_at_enqueue(message.fields):
            self.spend(bucket, rate)

    @precondition(lambda self: self.outsiders)
    @rule(target=Machine.messages, offset=st.sampled_from([0.0, -2.0, -30.0, 30.0]), fields=st.sampled_from(PAYLOADS))
    def an_old_producer_enqueues(self, offset: float, fields: dict[str, Any]) -> str:
        """Two commands, and a clock of its own."""
        message = Model(f"m{len(self.known)}", "normal", Place.QUEUED, fields=fields)
        self.do(self._write_as_of_old(message, offset))
        message.unseen, self.settled = True, False
        self.of_old.add(message.id)
        self.known[message.id] = message
        return message.id

    async def _write_as_of_old(self, message: Model, offset: float) -> None:
        await self.queue.old(message.id, score=await self.queue.now() + offset, **message.fields)

    def sees_the_unseen(self) -> int:
        unseen = [m for m in self.known.values() if m.unseen]
        for id in self.do(self.main()):
            if id in self.known and self.known[id].unseen:
                self.queue_up(self.known[id])
                self.known[id].unseen = False
        for message in unseen:
            message.unseen = False
        return len([m for m in unseen if not m.wild and m.place is Place.QUEUED])

    @rule()
    def reconcile(self) -> None:
        if self.unlisted:  # it has parked messages to mend
            self.do(self.queue.full_pass())
            self.sees_the_unseen()
        else:
            super().reconcile()

    async def main(self) -> list[str]:
        line: list[str] = await self.client.zrange(self.queue.keys.main, 0, -1)
        return line

    @rule(id=Machine.messages, priority=st.sampled_from(PRIORITIES))
    def prioritise(self, id: str, priority: Priority) -> None:
        message = self.known[id]
        (answer,) = self.do(self.queue.transitions.prioritise([id], priority))
        if message.wild:
            message.priority = priority if answer == "changed" else message.priority
            return
        match message.place:
            case Place.GONE:
                assert answer == "missing"
            case Place.DEAD:
                assert answer == "dead"
            case Place.PROCESSING:
                assert answer == "processing"
            case _:
                assert answer == ("same" if message.priority == priority else "changed")
        if answer == "changed":
            message.priority = priority
            if message.place is Place.QUEUED and not message.unseen:
                self.queue_up(message)
                self.read = [row for row in self.read if row[2] != id]
                self.disordered.discard(id)
                message.begun_under = None

    # ---- limits

    @rule(limits=SOME_LIMITS)
    def limits_change(self, limits: Limits) -> None:
        note(f"{limits}")
        self.do(self.queue.transitions.limit(limits))
        assert self.do(self.queue.transitions.limits()) == limits
        if not limits.concurrency_per_key or not self.limits.concurrency_per_key or limits.key != self.limits.key:
            self.disordered |= {message.id for message in self.tame(Place.QUEUED)}
        if limits.concurrency_per_key:
            for message in self.tame(Place.PROCESSING):
                message.begun_under = limits.key
        self.limits = limits
        self.settled &= not self.tame(Place.QUEUED)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.do(self.queue.transitions.pause(paused))
        self.paused = paused

    @precondition(lambda self: self.tame(Place.PROCESSING))
    @rule(data=st.data(), of_its_own=st.booleans())
    def a_handler_has_a_key_paused(self, data: st.DataObject, of_its_own: bool) -> None:
        """It keeps its place and nothing is charged; where the key is another's, it waits for itself."""
        message = data.draw(st.sampled_from(self.tame(Place.PROCESSING)))
        own = self.key_of(message)
        key = own if of_its_own and own else (self.limits.key or "user_id", "u2")
        place = Place.QUEUED if own == key else Place.RETRY
        assert self.do(self._pause_key(message, key)) == place.value
        assert self.do(self._pause_key(message, key)) == place.value, "sent again, it answers the same"
        if self.limits.key:
            self.counted["paused_keys"] += 1
            self.paused_keys.add(key)
        message.leaves_its_worker(place)
        message.healed = True

    async def _pause_key(self, message: Model, key: Key) -> str:
        assert message.lease is not None
        failure = Failure(message.lease, LATER, "error", "slow down", key[1].encode())
        (answer,) = await self.queue.transitions.retry(
            message.holder, [failure], max_retries=MAX_RETRIES, dead_letter_ttl=DEAD_LETTER_TTL,
            dedup_expiry=DEDUP_EXPIRY,
        )  # fmt: skip
        return answer

    @rule(seconds=st.sampled_from([2_600.0, 5_100.0, PERIOD + 1]))
    def time_passes(self, seconds: float) -> None:
        """For rates and pauses; those of keys are over after the shortest time."""
        self.do(self._let_pass(seconds))
        for bucket in self.owed:
            self.owed[bucket] = max(0.0, self.owed[bucket] - seconds)
        self.paused_keys.clear()

    async def _let_pass(self, seconds: float) -> None:
        keys = self.queue.keys
        hashes = [hash_of_key(field, value.encode()) for field, value in KEYS]
        await self.client.delete(*(keys.pause(hash) for hash in hashes))
        buckets = [
            keys.rate,
            keys.accepts,
            *(kind(hash) for kind in (keys.rate_of, keys.accepts_of) for hash in hashes),
        ]
        for bucket in buckets:
            if full_at := await self.client.get(bucket):
                await self.client.set(bucket, float(full_at) - seconds, px=60_000)
        for hash in await self.client.zrange(keys.wake, 0, -1):
            await self.client.zincrby(keys.wake, -seconds, hash)
        await self.queue.transitions.promote()

    @precondition(lambda self: self.outsiders)
    @rule(kind=st.sampled_from(HELPERS), key=st.sampled_from(KEYS))
    def somebody_deletes_a_helper(self, kind: str, key: Key) -> None:
        self.edited, self.settled = True, False
        self.touched = True
        hash = hash_of_key(key[0], key[1].encode())
        helper = getattr(self.queue.keys, kind)
        self.do(self.client.delete(helper if isinstance(helper, str) else helper(hash)))
        match kind:
            case "rate":
                self.owed["work"] = 0
            case "rate_of":
                self.owed["work", key] = 0
            case "pause":
                self.paused_keys.discard(key)
            case "turns":
                for message in self.tame(Place.QUEUED, Place.PROCESSING):
                    message.begun_under = None
                    self.disordered.add(message.id)
            case "parked":
                self.unlisted = True
                for message in self.tame(Place.QUEUED):
                    message.healed = True

    # ---- at work

    def knows_the_order(self) -> bool:
        limits = self.limits
        free = limits.concurrency_per_key is None and limits.work_per_key is None and not self.paused_keys
        unseen = any(message.unseen for message in self.known.values())
        return super().knows_the_order() and free and not (limits.work or self.paused or self.read or unseen)

    def works_on(self, claimed: Claimed, worker: str, *, alone: bool) -> None:
        line = self.do(self.main())
        assert not (self.paused and claimed.deliveries), "the queue is paused"
        left, _ = self.room_in("work", self.limits.work)
        assert len(claimed.deliveries) <= left, "more begin than the queue's rate allows"
        waited = self.tame(Place.QUEUED)
        for delivery in claimed.deliveries:
            self._has_its_turn(self.known[delivery.lease.id], line)
        super().works_on(claimed, worker, alone=alone)
        for delivery in claimed.deliveries:
            self.spend("work", self.limits.work)
            if self.limits.concurrency_per_key:
                self.known[delivery.lease.id].begun_under = self.limits.key
            self.disordered.discard(delivery.lease.id)
        self._at_most_so_many_at_once(claimed)
        self._notes_who_was_parked(waited)

    def _has_its_turn(self, message: Model, line: list[str]) -> None:
        key = self.key_of(message)
        if key is None:
            return
        bucket, rate = ("work", key), self.limits.work_per_key
        left, _ = self.room_in(bucket, rate)
        self.spend(bucket, rate)
        if message.wild:
            return
        assert key not in self.paused_keys, f"{key} is paused"
        assert left >= 1, f"more of {key} begin than its rate allows"
        if self.limits.concurrency_per_key == 1 and self._is_in_order(message):
            others = [m for m in self.tame(Place.QUEUED) if self.key_of(m) == key and self._is_in_order(m)]
            first = min(others, key=lambda m: (m.begun_under != self.limits.key, line.index(m.id)))
            assert first is message, f"{first} was to come before {message}"

    def _is_in_order(self, message: Model) -> bool:
        return not (message.unseen or message.healed or message.id in self.disordered)

    def _at_most_so_many_at_once(self, claimed: Claimed) -> None:
        limit = self.limits.concurrency_per_key
        if limit is None:
            return
        at_work = defaultdict(list)
        for message in self.tame(Place.PROCESSING):
            if message.begun_under == self.limits.key:
                at_work[self.key_of(message)].append(message)
        for delivery in claimed.deliveries:
            key = self.key_of(self.known[delivery.lease.id])
            assert key is None or len(at_work[key]) <= limit, f"at once {at_work[key]}"

    def _notes_who_was_parked(self, waited: list[Model]) -> None:
        """Who was parked comes again before the others or after them, as it happens."""
        for message in waited:
            if message.place is Place.QUEUED and self.key_of(message):
                message.healed = True

    @precondition(lambda self: self.tame(Place.QUEUED) and not self.paused)
    @rule(worker=st.sampled_from(WORKERS))
    def a_blocking_read(self, worker: str) -> None:
        """Of an idle worker, which delivers outside any script."""
        for entry in self.do(self.queue.read_only(worker)):
            id = self.do(self._id_of(entry))
            self.read.append((worker, entry, id))
            for message in self.tame(Place.QUEUED):
                message.healed = True

    async def _id_of(self, entry: str) -> str:
        ((_, fields),) = await self.client.xrange(self.queue.keys.streams[entry[0]], entry[1:], entry[1:])
        return str(fields.get("id", ""))

    @precondition(lambda self: self.read)
    @rule(room=st.integers(0, 3))
    def adopt(self, room: int) -> None:
        """What reads brought is taken, the last first."""
        worker, entry, _ = self.read.pop()
        self.works_on(self.do(self.queue.transitions.adopt(worker, [entry], room)), worker, alone=False)

    @rule()
    def heal(self) -> None:
        if self.is_wild:
            self.read.clear()  # whoever read is long dead
        super().heal()

    @precondition(lambda self: self.tame(Place.PROCESSING))
    @rule(data=st.data(), hows=st.lists(st.sampled_from(["complete", "retry", "dead_letter", "release"]), min_size=1))
    def a_busy_worker(self, data: st.DataObject, hows: list[str]) -> None:
        """Several messages end, each in a way of its own."""
        for how in hows[: len(self.tame(Place.PROCESSING))]:
            self.act_on_a_lease(data=data, how=how)

    @rule(looked_after=st.booleans())
    def a_hungry_worker(self, looked_after: bool) -> None:
        """It takes whatever may run."""
        self.take_all(looked_after=looked_after)

    def take_all(self, *, looked_after: bool) -> None:
        if looked_after:
            self.do(self._look_after())
            self.sees_the_unseen()
            self.settled = True
        while True:
            promoted = self.do(self.queue.transitions.promote())
            assert promoted.promoted == 0 or self.is_wild
            claimed = self.do(self.queue.transitions.claim("w1", 4, alone=True))
            note(f"{[delivery.lease.id for delivery in claimed.deliveries]}")
            self.works_on(claimed, "w1", alone=True)
            if not claimed.looked_at:
                break
        if self.settled and not self.is_wild:
            line = self.do(self.main())
            forgotten = [message for message in self.tame(Place.QUEUED) if self.may_run(message, line)]
            assert not forgotten, f"{forgotten} might run, and nobody is given them"

    async def _look_after(self) -> None:
        while (await self.queue.upkeep("w1")).more_due:
            pass
        await self.queue.full_pass()

    # ---- where one stands

    @precondition(lambda self: self.tame(Place.QUEUED) and self.is_plain())
    @rule()
    def one_after_the_other(self) -> None:
        """`ahead` says how many are taken before, to one message."""
        waiting = [id for id in self.do(self.main()) if self.known[id].place is Place.QUEUED]
        told = dict(zip(waiting, self.do(self.queue.transitions.positions(waiting)), strict=True))
        taken = 0
        while (claimed := self.do(self.queue.transitions.claim("w1", 1))).deliveries:
            (delivery,) = claimed.deliveries
            _, ahead = told[delivery.lease.id]
            assert ahead is not None and abs(ahead - taken) <= 1, f"{delivery.lease.id}: {ahead} was said, {taken} came"
            self.works_on(claimed, "w1", alone=True)
            taken += 1

    def is_plain(self) -> bool:
        """Nothing waits but for those before it: nothing was handed back, came with an odd score, or waits alone."""
        waiting = self.tame(Place.QUEUED)
        return self.knows_the_order() and all(
            message.turn is not None and not message.suspect and message.id not in self.of_old for message in waiting
        )

    # ---- what always holds

    async def _compare(self) -> None:
        await super()._compare()
        if self.is_wild:
            return
        keys = self.queue.keys
        parked = await self.client.zrange(keys.parked, 0, -1)
        waiting = {m.id for m in self.tame(Place.QUEUED) if not m.unseen}
        assert set(parked) <= waiting, f"{set(parked) - waiting} are parked and do not wait"
        for letter, priority in (("h", "high"), ("l", "low")):
            line = set(await self.client.zrange(keys.lines[letter], 0, -1))
            known = {m.id for m in self.tame(Place.QUEUED, Place.PROCESSING) if m.priority == priority}
            assert line == known, f"the line of {priority} holds {line}, not {known}"

    # ---- the end

    def teardown(self) -> None:
        Machine.enqueued += len(self.known)
        try:
            self.heal()
            self.pause(paused=False)
            while self.read:
                self.adopt(room=1)
            for message in self.tame(Place.RETRY, Place.SCHEDULED):
                self.do(self.queue.make_due(message.id))
                self.queue_up(message)
            self.do(self.queue.transitions.promote())
            self._work_until_nothing_is_left()
            self.do(self._nothing_stays())
        finally:
            self.do(self._close())
            self.runner.close()

    def _work_until_nothing_is_left(self) -> None:
        for _ in range(len(self.known) + 2):
            self.take_all(looked_after=not self.settled)
            for message in self.tame(Place.PROCESSING):
                assert message.lease is not None
                assert self.do(self.queue.complete(message.lease, message.holder)) == "completed"
                message.leaves_its_worker(Place.GONE)
            self.time_passes(PERIOD + 1)
        assert not self.tame(Place.QUEUED), f"{self.tame(Place.QUEUED)} were never handed out"

    async def _nothing_stays(self) -> None:
        keys = self.queue.keys
        strays = len([m for m in self.known.values() if m.destroyed]) if self.unlisted else 0
        for stream in keys.streams.values():
            assert await self.client.xlen(stream) <= strays, f"{stream} is not empty"
            assert (await self.client.xpending(stream, GROUP))["pending"] == 0
        for key in (keys.main, *keys.lines.values(), keys.parked, keys.wake):
            assert not await self.client.zrange(key, 0, -1), f"{key} is not empty"
        for field, value in KEYS:
            hash = hash_of_key(field, value.encode())
            for key in (keys.turns(hash), keys.parked_of(hash), keys.pause(hash), keys.rate_of(hash)):
                assert await self.client.pttl(key) != -1, f"{key} has no end"
