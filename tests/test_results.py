"""Waiting for a message's end: every end is heard, and none is missed for good."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import setups
from helpers import Held, queue_at, running, until, work, worker_of
from streams_queue import (
    ConfigurationError,
    Expired,
    HandlerFailed,
    NotFound,
    Queue,
    Reject,
    Removed,
    listener,
    results,
)


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


@pytest.fixture
def everywhere(server) -> Iterator[list[Any]]:
    """A raw client of each server that may have listeners."""
    with setups.every_client(server) as clients:
        yield clients


@pytest.fixture
def reread_often(monkeypatch) -> None:
    """States are read again every half second instead of every five."""
    monkeypatch.setattr(listener, "REREAD", 0.5)
    monkeypatch.setattr(results, "REREAD", 0.5)


async def done(queue: Queue[Any], handle: Any, **options: Any) -> str:
    receipt = await queue.enqueue({})
    await work(queue, handle, **options)
    return receipt.id


async def waits(redis: Any, prefix: str, id: str) -> bool:
    """Whether somebody is told of this message."""
    return bool(await redis.hget(f"{prefix}:msg:{id}", "_sq_listener"))


VALUES: list[Any] = [
    None, 0, "", [], {}, False, "text", "123", 2**70, 1.5, {"a": [1, None, {"é": "\x00"}]}, "x" * 65_000,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
async def test_the_value_that_the_handler_returned(queue, value):
    async def handle(message):
        return value

    id = await done(queue, handle)
    assert await queue.result(id) == value
    assert await queue.result(id) == value, "not only once"


async def test_the_value_while_waiting(queue):
    held = Held()
    id = (await queue.enqueue({})).id
    waiting = [asyncio.create_task(queue.result(id)) for _ in range(2)]
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        assert not any(task.done() for task in waiting)
        held.go.set()
        assert await asyncio.gather(*waiting) == ["let go", "let go"]
        assert await queue.result(id, timeout=1) == "let go"


@pytest.mark.parametrize("value", ["x" * (64 << 10), b"\xff" * 50_000, 1j, object(), {1j: 2}, [[["deep"]]]])
async def test_what_cannot_be_kept_is_none_and_the_work_is_done(queue, caplog, value):
    if value == [[["deep"]]]:
        for _ in range(100_000):
            value = [value]

    async def handle(message):
        return value

    id = await done(queue, handle)
    assert await queue.result(id) is None
    assert "is not kept" in caplog.text
    assert (await queue.stats()).counters["completed_messages"] == 1


async def test_a_result_ends_with_its_time_to_live(server, prefix, redis):
    async def handle(message):
        return message.data.get("answer")

    async with queue_at(server, prefix, result_ttl=100) as queue:
        with_result, without = await queue.enqueue({"answer": 42}), await queue.enqueue({})
        await work(queue, handle)
        assert 90 < await redis.ttl(f"{prefix}:done:{with_result.id}") <= 100
        assert 50 < await redis.ttl(f"{prefix}:done:{without.id}") <= 60
        assert await queue.result(with_result.id) == 42
        await redis.delete(f"{prefix}:done:{with_result.id}")
        with pytest.raises(NotFound):
            await queue.result(with_result.id)


async def test_a_dead_letter(queue):
    async def reject(message):
        raise Reject("no such user")

    id = (await queue.enqueue({})).id
    waiting = asyncio.create_task(queue.result(id))
    await asyncio.sleep(0)
    await work(queue, reject)
    for waiter in (waiting, queue.result(id)):
        with pytest.raises(HandlerFailed) as failure:
            await waiter
        assert failure.value.error == "no such user"
        assert failure.value.reason == "rejected"
        assert str(failure.value) == "rejected: no such user"


async def test_a_dead_letter_requeued_and_done(queue):
    async def handle(message):
        return "done"

    async def reject(message):
        raise Reject("not now")

    id = await done(queue, reject)
    await queue.dead_letters.requeue(id)
    waiting = asyncio.create_task(queue.result(id))
    await work(queue, handle)
    assert await waiting == "done"


async def test_retries_on_the_way(queue):
    async def handle(message):
        if message.attempts < 3:
            raise ValueError
        return message.attempts

    id = (await queue.enqueue({})).id
    waiting = asyncio.create_task(queue.result(id))
    await work(queue, handle)
    assert await waiting == 3


async def test_removed_while_waiting(queue, redis, prefix):
    id = (await queue.enqueue({})).id
    waiting = asyncio.create_task(queue.result(id))
    await until(lambda: waits(redis, prefix, id))
    await queue.remove(id)
    with pytest.raises(Removed):
        await asyncio.wait_for(waiting, 1)


async def test_expired_while_waiting(queue, reread_often, redis, prefix):
    id = (await queue.enqueue({}, ttl=0.5)).id
    waiting = asyncio.create_task(queue.result(id))
    await until(lambda: waits(redis, prefix, id))
    with pytest.raises(Expired):
        await asyncio.wait_for(waiting, 5)


async def test_not_finished_in_time(queue):
    id = (await queue.enqueue({})).id
    with pytest.raises(TimeoutError):
        await queue.result(id, timeout=0.1)
    assert not queue.listener._hearers
    with pytest.raises(TimeoutError):
        await queue.result(id, timeout=0)


async def test_a_message_that_vanishes_is_not_waited_for_for_ever(queue, reread_often, redis, prefix):
    id = (await queue.enqueue({})).id
    waiting = asyncio.create_task(queue.result(id))
    await until(lambda: waits(redis, prefix, id))
    await redis.flushall()
    await redis.config_resetstat()
    with pytest.raises((NotFound, Expired)):
        await asyncio.wait_for(waiting, 5)
    calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert calls < 20, "it asked over and over again"


async def test_a_missed_event_is_made_up_for(queue, redis, everywhere, prefix, caplog):
    """The subscription is cut before the end, so that nobody hears of it."""
    held = Held()
    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, held.handle)):
        waiting = asyncio.create_task(queue.result(id))
        await held.holds()
        await until(lambda: waits(redis, prefix, id))
        assert sum(client.client_kill_filter(_type="pubsub") for client in everywhere) >= 1  # Sentinels listen too
        held.go.set()
        assert await asyncio.wait_for(waiting, 4) == "let go"


async def test_events_are_heard_after_a_cut(queue, redis, everywhere, prefix):
    ids = [receipt.id for receipt in await queue.enqueue_many([{}, {}])]
    held = Held()
    async with running(worker_of(queue, held.handle)):
        first = asyncio.create_task(queue.result(ids[0]))
        await held.holds(2)
        await until(lambda: waits(redis, prefix, ids[0]))
        for client in everywhere:
            client.client_kill_filter(_type="pubsub")
        await until(lambda: listening(everywhere, prefix), what="subscribed again")
        second = asyncio.create_task(queue.result(ids[1]))
        held.go.set()
        assert [await first, await second] == ["let go", "let go"]


def listening(clients: list[Any], prefix: str) -> list[str]:
    """The channels; on a Cluster they are at any node."""
    return [channel for client in clients for channel in client.pubsub_channels(f"{prefix}:events:*")]


async def test_nobody_listens_for_nothing(queue, everywhere, prefix):
    async def handle(message):
        return 1

    id = await done(queue, handle)
    assert listening(everywhere, prefix) == []
    await queue.result(id)
    assert len(listening(everywhere, prefix)) == 1


async def test_one_channel_a_process_and_none_after_close(server, redis, everywhere, prefix):
    async with queue_at(server, prefix) as queue:
        id = (await queue.enqueue({})).id
        waiting = [asyncio.create_task(queue.result(id)) for _ in range(5)]
        await until(lambda: waits(redis, prefix, id))
        assert len(listening(everywhere, prefix)) == 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    await until(lambda: not listening(everywhere, prefix))


async def test_who_hears_says_nothing_of_other_messages(queue):
    """A result that is heard goes to those who wait for that message."""

    async def handle(message):
        return message.data["n"]

    receipts = await queue.enqueue_many([{"n": n} for n in range(50)])
    waiting = [asyncio.create_task(queue.result(receipt.id)) for receipt in receipts]
    async with running(worker_of(queue, handle)):
        assert await asyncio.gather(*waiting) == list(range(50))


WAIT = """
import asyncio, json, sys
from streams_queue import Queue

async def main():
    async with Queue(sys.argv[2], url=sys.argv[1]) as queue:
        print("ready", flush=True)
        print(json.dumps(await queue.result(sys.argv[3], timeout=20)), flush=True)

asyncio.run(main())
"""


async def test_a_waiter_in_another_process(server, queue, prefix, redis):
    held = Held()
    id = (await queue.enqueue({})).id
    command = [sys.executable, "-c", WAIT, server.url, prefix, id]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        await until(lambda: waits(redis, prefix, id))
        held.go.set()
        assert await process.stdout.readline() == b"ready\n"
        assert json.loads(await process.stdout.readline()) == "let go"
    assert await process.wait() == 0


async def test_a_listener_that_cannot_listen_leaves_nobody_waiting(queue, reread_often, monkeypatch):
    """Without the right to subscribe the state is read."""

    async def denied(reader):
        raise ConfigurationError("no channels for you")

    monkeypatch.setattr(queue.listener, "_hear_events", denied)
    held = Held()
    id = (await queue.enqueue({})).id
    waiting = asyncio.create_task(queue.result(id))
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        held.go.set()
        assert await asyncio.wait_for(waiting, 5) == "let go"


async def test_a_queue_that_is_not_open(server, prefix):
    with pytest.raises(RuntimeError, match="open"):
        await asyncio.wait_for(queue_at(server, prefix).result("m"), 3)
