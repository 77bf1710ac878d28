"""Servers that go away, forget, or stutter, under workers that go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import servers
import setups
from helpers import LEASE, Handler, Held, queue_at, running, until, worker_of
from streams_queue import Queue, QueueUnavailable
from streams_queue.claiming import HAND_BACK_WITHIN


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


@pytest.fixture
def durable(request, tmp_path) -> Iterator[servers.Server]:
    """A server of the test's own that writes everything down before it answers, to be killed."""
    name = setups.kind_asked_for(request.config)
    if name == "testcontainers":
        pytest.skip("a container's process is not ours to kill")
    server = servers.start(name, tmp_path / "data", "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.kill()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- what outsiders do to the keys (fault 10)


async def destroy_group(redis: Any, prefix: str) -> None:
    for stream in ("stream:high", "stream", "stream:low"):
        await redis.xgroup_destroy(f"{prefix}:{stream}", "workers")


async def delete_stream(redis: Any, prefix: str) -> None:
    await redis.delete(f"{prefix}:stream:high", f"{prefix}:stream", f"{prefix}:stream:low")


async def delete_consumers(redis: Any, prefix: str) -> None:
    for info in await redis.xinfo_consumers(f"{prefix}:stream", "workers"):
        await redis.xgroup_delconsumer(f"{prefix}:stream", "workers", info["name"])


async def trim(redis: Any, prefix: str) -> None:
    await redis.xtrim(f"{prefix}:stream", maxlen=0, approximate=False)


async def delete_meta(redis: Any, prefix: str) -> None:
    await redis.delete(f"{prefix}:meta")


FAULTS = [destroy_group, delete_stream, delete_consumers, trim, delete_meta]


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_idle_worker_resumes(queue, redis, prefix, fault):
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        await queue.result((await queue.enqueue({})).id, timeout=5)
        await fault(redis, prefix)
        began = time.monotonic()
        await queue.result((await queue.enqueue({})).id, timeout=10)
        assert time.monotonic() - began < 2.5
    assert len(handler.ids) == 2


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_main_holds_is_worked_on_once(queue, redis, prefix, fault):
    """One message in flight, others waiting: the streams are rebuilt from main, and what is held runs on."""
    held = Held()
    ids = [receipt.id for receipt in await queue.enqueue_many([{"n": n} for n in range(20)])]
    async with running(worker_of(queue, held.handle, concurrency=2)):
        await held.holds(2)
        await fault(redis, prefix)
        await asyncio.sleep(0.3)
        later = (await queue.enqueue({})).id
        await asyncio.sleep(1.5)  # a round of upkeep, while the first two are still held
        held.go.set()
        began = time.monotonic()
        assert set(await asyncio.gather(*(queue.result(id, timeout=10) for id in [*ids, later]))) == {"let go"}
        assert time.monotonic() - began < 3
    assert Counter(message.id for message in held.started) == Counter([*ids, later])
    assert held.cancelled == []
    assert (await queue.stats()).counters["completed_messages"] == 21


@pytest.mark.parametrize("fault", FAULTS)
async def test_with_slots_free_a_worker_is_not_given_again_what_it_holds(queue, redis, prefix, fault):
    """A group made anew delivers from the beginning: the holder is the first to read its own messages in it."""
    held = Held()
    ids = [receipt.id for receipt in await queue.enqueue_many([{"n": n} for n in range(3)])]
    async with running(worker_of(queue, held.handle, concurrency=8)):
        await held.holds(3)
        for _ in range(3):
            await fault(redis, prefix)
            ids.append((await queue.enqueue({})).id)
            await held.holds(len(ids))
            await asyncio.sleep(0.5)  # a round of upkeep, and a renewal
        held.go.set()
        assert set(await asyncio.gather(*(queue.result(id, timeout=10) for id in ids))) == {"let go"}
    assert Counter(message.id for message in held.started) == Counter(ids)
    assert held.cancelled == []
    assert (await queue.stats()).counters["completed_messages"] == len(ids)


async def test_flushall(queue, redis, prefix):
    """Everything is gone; what comes then is worked on."""
    held = Held()
    await queue.enqueue_many([{} for _ in range(5)])
    async with running(worker_of(queue, held.handle, concurrency=2)) as run:
        await held.holds(2)
        await redis.flushall()
        await until(lambda: len(held.cancelled) == 2, what="handlers without a message are cancelled")
        held.go.set()
        began = time.monotonic()
        assert await queue.result((await queue.enqueue({})).id, timeout=10) == "let go"
        assert time.monotonic() - began < 2.5
        assert not run.done()
    assert len(held.started) == 3


async def test_after_a_flush_each_user_still_has_one_at_a_time(queue, redis):
    held = Held()
    await queue.enqueue({"user": "u1"})
    async with running(worker_of(queue, held.handle, concurrency=8, one_at_a_time_per="user")):
        await held.holds(1)
        await redis.flushall()
        await until(lambda: held.cancelled, what="the handler without a message is cancelled")
        await queue.enqueue_many([{"user": "u1"}, {"user": "u1"}, {"user": "u2"}])
        await held.holds(3)
        await until(lambda: _parked(queue, 1), what="the second of u1 waits")
        assert [message.data["user"] for message in held.started] == ["u1", "u1", "u2"]
        held.go.set()
        await until(lambda: len(held.finished) == 3)


async def _parked(queue, count):
    return (await queue.stats()).parked == count


# ---- stuttering


@contextlib.asynccontextmanager
async def again_and_again(fault: Any, pause: float) -> AsyncIterator[None]:
    over = asyncio.Event()

    async def loop() -> None:
        while not over.is_set():
            with contextlib.suppress(Exception):
                await fault()
            await asyncio.sleep(pause)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        over.set()  # not by a cancellation: redis-py's own connections may swallow it
        await task


async def test_the_script_cache_emptied_again_and_again(queue, redis):
    handler = Handler()
    async with running(worker_of(queue, handler.handle, concurrency=8)), again_and_again(redis.script_flush, 0.01):
        ids = [(await queue.enqueue({"n": n})).id for n in range(200)]
        await asyncio.gather(*(queue.result(id, timeout=10) for id in ids))
    assert Counter(handler.ids) == Counter(ids)


async def test_connections_killed_again_and_again(queue, server, caplog):
    """Each message is done; an enqueue whose reply was lost is sent again under its id."""
    handler = Handler()
    ids = [f"m{n}" for n in range(150)]

    async def enqueue(id: str) -> None:
        while True:
            try:
                await queue.enqueue({}, id=id)
            except QueueUnavailable:
                await asyncio.sleep(0.02)
            else:
                return

    async def kill() -> None:
        async with server.client() as client:
            await client.client_kill_filter(_type="normal", skipme=True)
            await client.client_kill_filter(_type="pubsub", skipme=True)

    async with running(worker_of(queue, handler.handle, concurrency=8)) as run:
        async with again_and_again(kill, 0.15):
            for id in ids:
                await enqueue(id)
                await asyncio.sleep(0.01)
        await until(lambda: all_done(queue), 20)
        assert not run.done()
    assert set(handler.ids) == set(ids)
    assert (await queue.stats()).counters["completed_messages"] == len(ids)
    assert {message.attempts for message in handler.messages} == {1}, "a lost reply is nobody's crash"


async def all_done(queue: Queue[Any]) -> bool:
    with contextlib.suppress(QueueUnavailable):
        return await queue.length() == 0
    return False


async def test_a_server_frozen_for_longer_than_the_lease(durable, prefix):
    held = Held()
    async with queue_at(durable, prefix) as queue:
        id = (await queue.enqueue({})).id
        async with running(worker_of(queue, held.handle)):
            await held.holds()
            durable.suspend()
            await asyncio.sleep(2 * LEASE)
            durable.resume()
            await asyncio.sleep(2 * LEASE)
            held.go.set()
            assert await queue.result(id, timeout=10) == "let go"
        assert len(held.started) == 1


# ---- gone, and back


async def test_a_server_killed_and_restarted_under_a_worker(durable, prefix, caplog):
    handler = Handler()
    async with queue_at(durable, prefix) as queue, running(worker_of(queue, handler.handle)) as run:
        await queue.result((await queue.enqueue({})).id, timeout=5)
        waiting = [receipt.id for receipt in await queue.enqueue_many([{"n": n} for n in range(50)], delay=1.0)]
        durable.kill()
        with pytest.raises(QueueUnavailable):
            await queue.enqueue({})
        await asyncio.sleep(1.5)
        durable.start()
        began = time.monotonic()
        receipts = await queue.enqueue_many([{}])
        await asyncio.gather(*(queue.result(id, timeout=15) for id in [*waiting, receipts[0].id]))
        assert time.monotonic() - began < 5
        assert not run.done()
        said = Counter(text.split(":")[0] for text in warnings(caplog))
        assert said, "an outage is said"
        assert max(said.values()) <= 2, f"once, not a thousand times: {said}"
    assert Counter(handler.ids).most_common(1)[0][1] == 1


async def test_holders_keep_what_nobody_claimed_over_a_long_outage(durable, prefix):
    """Down for two leases with work in flight: it looks abandoned, and is not."""
    held, other = Held(), Held()
    async with queue_at(durable, prefix) as queue, queue_at(durable, prefix) as second:
        ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(4)])]
        async with running(worker_of(queue, held.handle)), contextlib.AsyncExitStack() as stack:
            await held.holds(4)
            await stack.enter_async_context(running(worker_of(second, other.handle)))
            await asyncio.sleep(0.5)
            durable.kill()
            await asyncio.sleep(2.2 * LEASE)
            durable.start()
            await asyncio.sleep(2 * LEASE)
            held.go.set()
            other.go.set()
            assert await asyncio.gather(*(queue.result(id, timeout=10) for id in ids)) == ["let go"] * 4
        assert (len(held.started), len(other.started), held.cancelled) == (4, 0, [])


async def test_outcomes_are_written_when_the_server_is_back(durable, prefix):
    """Handlers that end while it is away: each outcome once."""
    held = Held()
    async with queue_at(durable, prefix) as queue:
        ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(4)])]
        async with running(worker_of(queue, held.handle)):
            await held.holds(4)
            durable.kill()
            held.go.set()
            await until(lambda: len(held.finished) == 4)
            await asyncio.sleep(0.5)
            durable.start()
            assert await asyncio.gather(*(queue.result(id, timeout=10) for id in ids)) == ["let go"] * 4
        assert len(held.started) == 4
        assert (await queue.stats()).counters["completed_messages"] == 4


@pytest.mark.parametrize("slots", ["free", "taken"])
async def test_ready_follows_the_server(durable, prefix, slots):
    held = Held()
    async with queue_at(durable, prefix) as queue:
        worker = worker_of(queue, held.handle, concurrency=1)
        async with running(worker):
            if slots == "taken":
                await queue.enqueue({})
                await held.holds()
            await until(lambda: worker.ready)
            durable.kill()
            killed = time.monotonic()
            await until(lambda: not worker.ready, what="not ready")
            assert time.monotonic() - killed < LEASE / 2 + 0.2 + 0.2
            durable.start()
            await until(lambda: worker.ready, what="ready again")
            held.go.set()


async def test_stop_while_the_server_is_away(durable, prefix):
    held = Held()
    async with queue_at(durable, prefix) as queue:
        await queue.enqueue({})
        worker = worker_of(queue, held.handle, grace=0.5)
        run = asyncio.create_task(worker.run())
        await held.holds()
        durable.kill()
        began = time.monotonic()
        worker.stop()
        await asyncio.wait_for(run, 10)
        assert time.monotonic() - began < 0.5 + 2 * HAND_BACK_WITHIN + 0.5
        assert len(held.cancelled) == 1


@pytest.mark.parametrize("slots", [1, 4], ids=["full", "claiming"])
async def test_stop_while_the_server_does_not_answer(durable, prefix, slots, caplog):
    """No claim, hand-back or leave-taking waits for the client's timeout, and no handler is blamed for it."""
    held = Held()
    async with queue_at(durable, prefix) as queue:
        await queue.enqueue({})
        worker = worker_of(queue, held.handle, grace=0.5, concurrency=slots)
        run = asyncio.create_task(worker.run())
        await held.holds()
        durable.suspend()
        await asyncio.sleep(0.5)  # the idle read is over, and a claim under way
        began = time.monotonic()
        worker.stop()
        try:
            await asyncio.wait_for(run, 10)
        finally:
            durable.resume()
        assert time.monotonic() - began < 0.5 + 3 * HAND_BACK_WITHIN + 0.5
        assert len(held.cancelled) == 1
        assert "do not heed" not in caplog.text
