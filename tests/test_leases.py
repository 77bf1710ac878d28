"""One worker at a time a message, as long as its lease holds, and nobody longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from helpers import LEASE, Handler, Held, queue_at, running, until, work, worker_of
from streams_queue import Queue, leases, maintenance
from streams_queue.transitions import Transitions


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


async def test_the_lease_is_visible(queue, redis, prefix):
    held = Held()
    id = (await queue.enqueue({})).id
    worker = worker_of(queue, held.handle, lease=5.0)
    async with running(worker):
        await held.holds()
        assert await redis.get(f"{prefix}:lock:{id}") == worker.consumer
        assert 4000 < await redis.pttl(f"{prefix}:lock:{id}") <= 5000
        assert await redis.hget(f"{prefix}:msg:{id}", "status") == "processing"
        assert await redis.hget(f"{prefix}:meta", "lease_ms") == "5000"
        held.go.set()


async def test_a_handler_may_run_many_leases(queue):
    """Beside a second worker, which would take over what is not renewed."""
    held, others = Held(), Held()
    id = (await queue.enqueue({})).id
    lease = 0.6
    async with running(worker_of(queue, held.handle, lease=lease)):
        await held.holds()
        async with running(worker_of(queue, others.handle, lease=lease)):
            await asyncio.sleep(5.5 * lease)
            held.go.set()
            assert await queue.result(id, timeout=5) == "let go"
    assert (len(held.started), len(others.started)) == (1, 0)


async def test_a_blocked_event_loop_keeps_its_messages(server, queue, prefix, caplog):
    """The handler blocks the loop for two leases; a rival in another thread finds nothing to take.

    Where it is blocked is said while it is, and for how long when it is over.
    """
    ran, lease = [], 0.6

    async def block(message):
        ran.append("first")
        time.sleep(2.5 * lease)  # noqa: ASYNC251  (the fault under test)
        return "done"

    async def rival() -> None:
        async with queue_at(server, prefix) as same:

            async def handle(message):
                ran.append("rival")

            async with running(worker_of(same, handle, lease=lease)):
                await asyncio.sleep(3 * lease)

    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, block, lease=lease)):
        await until(lambda: ran or None)
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, rival()))
        assert await queue.result(id, timeout=10) == "done"
    await other
    assert ran == ["first"]
    said = [record.getMessage() for record in caplog.records if "event loop" in record.getMessage()]
    assert len(said) == 2, said
    assert f"so far by message {id}, in" in said[0] and "block (" in said[0] and __file__ in said[0]
    assert "was blocked for 1." in said[1]


async def test_an_unexpected_error_does_not_end_the_renewals(queue, caplog, monkeypatch):
    """What else would see that nothing is renewed any more?"""
    renew, failures = Transitions.renew, 2

    async def fails(self, *arguments, **options):
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("a fault of the client")
        return await renew(self, *arguments, **options)

    monkeypatch.setattr(Transitions, "renew", fails)
    held, others = Held(), Held()
    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        async with running(worker_of(queue, others.handle)):
            await asyncio.sleep(3 * LEASE)
            held.go.set()
            assert await queue.result(id, timeout=5) == "let go"
    assert (len(held.started), len(others.started)) == (1, 0)
    (said,) = [record for record in caplog.records if "cannot be renewed" in record.getMessage()]
    assert "a fault of the client" in said.getMessage()
    assert said.exc_info, "where it comes from is not known: with its traceback"


async def test_an_event_loop_that_was_blocked_for_too_long_keeps_its_later_messages(queue, monkeypatch):
    monkeypatch.setattr(leases, "PATIENCE", 1)
    lease = 0.6
    held, others = Held(), Held()
    async with running(worker_of(queue, held.handle, lease=lease)):
        time.sleep(2.5 * lease)  # noqa: ASYNC251  (the fault under test)
        id = (await queue.enqueue({})).id
        await held.holds()
        async with running(worker_of(queue, others.handle, lease=lease)):
            await asyncio.sleep(3 * lease)
            held.go.set()
            assert await queue.result(id, timeout=5) == "let go"
    assert (len(held.started), len(others.started)) == (1, 0)


async def test_a_lock_deleted_by_hand_frees_the_message(queue, redis, prefix, caplog):
    """The holder is cancelled and writes nothing; the message runs again, uncharged."""
    held, other = Held(), Held()
    other.go.set()
    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        assert await redis.delete(f"{prefix}:lock:{id}") == 1
        async with running(worker_of(queue, other.handle)):
            await until(lambda: held.cancelled or other.started or len(held.started) > 1)
            held.go.set()
            assert await queue.result(id, timeout=10) == "let go"
    assert held.cancelled == [id]
    assert len(held.started) + len(other.started) == 2
    stats = await queue.stats()
    assert (stats.counters["completed_messages"], stats.counters["lost_leases"]) == (1, 1)
    assert caplog.text.count("lost message") == 1


async def test_what_was_lost_to_nobody_is_not_counted(queue, redis, prefix, caplog):
    """Taken out of the line by hand: it was nobody else's."""

    async def handle(message):
        await redis.zrem(f"{prefix}:queue:main", message.id)
        raise ValueError("it would be tried again")

    await queue.enqueue({}, ttl=60)
    await work(queue, handle, lease=30.0)
    assert caplog.text.count("lost message") == 1
    assert "lost_leases" not in (await queue.stats()).counters


async def test_a_loss_that_cannot_be_counted_stops_nobody(queue, redis, prefix, caplog):
    """The statistics are of another type: that is said, and the worker goes on."""
    await redis.set(f"{prefix}:stats", "text", ex=60)
    held = Held()
    await queue.enqueue({})
    async with running(worker_of(queue, held.handle)) as run:
        await held.holds()
        await redis.delete(f"{prefix}:lock:{held.started[0].id}")
        await until(lambda: "not in the statistics" in caplog.text)
        held.go.set()
        assert await queue.result((await queue.enqueue({})).id, timeout=10) == "let go"
        assert not run.done()
    assert caplog.text.count("not in the statistics") == 1


async def test_what_was_lost_is_not_written(queue, redis, prefix):
    """The handler does not heed its cancellation, and returns: too late."""
    started, go = asyncio.Event(), asyncio.Event()

    async def stubborn(message):
        started.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "too late"

    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, stubborn, concurrency=1)):
        await started.wait()
        await redis.set(f"{prefix}:lock:{id}", "somebody", px=600_000)
        await redis.hset(f"{prefix}:msg:{id}", "_sq_owner", "somebody")
        go.set()
    counters = (await queue.stats()).counters
    assert (counters.get("completed_messages", 0), counters["lost_leases"]) == (0, 1)
    assert await redis.hget(f"{prefix}:msg:{id}", "status") == "processing"
    assert await redis.get(f"{prefix}:lock:{id}") == "somebody"


async def test_a_message_removed_and_enqueued_again_under_the_handler(queue, prefix, redis):
    """The first run's outcome is not the second message's."""
    held = Held()
    await queue.enqueue({"n": 1}, id="m")
    async with running(worker_of(queue, held.handle, concurrency=2, lease=30.0)):
        await held.holds()
        assert await queue.remove("m")
        await redis.delete(f"{prefix}:done:m")
        await queue.enqueue({"n": 2}, id="m")
        await held.holds(2)
        assert [message.data["n"] for message in held.started] == [1, 2]
        held.go.set()
        assert await queue.result("m", timeout=5) == "let go"
        await until(lambda: len(held.finished) == 2)
    assert (await queue.stats()).counters["completed_messages"] == 1


async def test_a_lock_taken_by_hand_holds_a_waiting_message_back(queue, redis, prefix):
    handler = Handler()
    id = (await queue.enqueue({})).id
    await redis.set(f"{prefix}:lock:{id}", "operator", px=1500)
    other = (await queue.enqueue({})).id
    async with running(worker_of(queue, handler.handle)):
        await queue.result(other, timeout=5)
        assert handler.ids == [other]
        await queue.result(id, timeout=10)
    assert handler.ids == [other, id]
    assert handler.messages[1].attempts == 1


async def test_a_dead_worker_is_found_by_others(queue, redis, prefix):
    """As a killed worker leaves it: a lock, a pending entry, nobody who renews."""
    await queue.transitions.join("dead", LEASE)
    ids = [receipt.id for receipt in await queue.enqueue_many([{}, {}])]
    claimed = await queue.transitions.claim("dead", 2)
    assert [delivery.lease.id for delivery in claimed.deliveries] == ids
    began = time.monotonic()
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        await asyncio.gather(*(queue.result(id, timeout=10) for id in ids))
    assert time.monotonic() - began < LEASE + maintenance.INTERVAL + 1
    assert handler.ids == ids
    assert {(message.attempts, message.deliveries) for message in handler.messages} == {(2, 2)}
    assert (await queue.stats()).counters["recovered_messages"] == 2
    # What the dead one reports after all is not written.
    stale = await queue.transitions.complete(
        "dead", [(delivery.lease, b"") for delivery in claimed.deliveries], result_ttl=60
    )
    assert stale == ["stale", "stale"]


async def test_a_message_that_kills_its_workers_is_a_dead_letter(queue):
    id = (await queue.enqueue({"a": 1})).id
    for n in range(3):
        await queue.transitions.join(f"dead{n}", LEASE)
        assert (await queue.transitions.claim(f"dead{n}", 1)).deliveries
        await asyncio.sleep(LEASE + 0.1)
        swept = await queue.transitions.sweep(max_deliveries=3, dead_letter_ttl=60)
        assert (swept.recovered, swept.dead) == ((1, 0) if n < 2 else (0, 1))
    (letter,) = await queue.dead_letters.list()
    assert (letter.id, letter.reason, letter.attempts, letter.retries, letter.deliveries) == (id, "crash", 3, 0, 3)
    assert letter.error is not None
    assert "3 times" in letter.error
    assert await queue.dead_letters.requeue(id)
    handler = Handler()
    await work(queue, handler.handle)
    assert [(message.attempts, message.data) for message in handler.messages] == [(1, {"a": 1})]


async def test_a_dead_consumer_is_forgotten_once_it_holds_nothing(queue, redis, prefix):
    await queue.transitions.join("dead", LEASE)
    await queue.enqueue({})
    await queue.transitions.claim("dead", 1)
    await queue.transitions.prune("", idle=0.0)
    assert "dead" in await names(redis, prefix)
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        await until(lambda: handler.ids)
    await queue.transitions.prune("", idle=0.0)
    assert "dead" not in await names(redis, prefix)


async def names(redis: Any, prefix: str) -> set[str]:
    return {info["name"] for info in await redis.xinfo_consumers(f"{prefix}:stream", "workers")}


async def test_the_body_lives_as_long_as_it_is_worked_on(queue, redis, prefix):
    """A ttl of one second, a handler of three: the renewals keep the body."""
    held = Held()
    id = (await queue.enqueue({}, ttl=1)).id
    async with running(worker_of(queue, held.handle, lease=0.6)):
        await held.holds()
        await asyncio.sleep(2.5)
        assert await redis.exists(f"{prefix}:msg:{id}")
        held.go.set()
        assert await queue.result(id, timeout=5) == "let go"
    assert len(held.started) == 1
