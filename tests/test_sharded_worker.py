"""One worker over all shards of a queue: each message once, slots shared fairly, no server that holds up another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from helpers import LEASE, Handler, Held, queue_at, running, until, work, worker_of
from streams_queue import ConfigurationError, Limits, Queue, ShardedQueue, Worker
from streams_queue.metrics import WorkerCollector
from streams_queue.monitor import Monitor

SHARDS = 4


def sharded(prefix: str, *urls: str, shards: int = SHARDS) -> ShardedQueue[Any]:
    return ShardedQueue(prefix, shards=shards, key="user", url=urls)


@pytest.fixture
def prefix(sharded_prefix: str) -> str:
    return sharded_prefix


@pytest.fixture
def redis(everywhere: Any) -> Any:
    return everywhere


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[ShardedQueue[Any]]:
    async with sharded(prefix, server.url) as queue:
        yield queue


async def fill(queue: ShardedQueue[Any], shard: int, count: int, **payload: Any) -> list[str]:
    """So many messages in this shard."""
    user = next(n for n in range(1000) if queue._home("x", [b"user", str(n).encode()]) is queue.shards[shard])
    return [receipt.id for receipt in await queue.enqueue_many([{"user": user, **payload} for _ in range(count)])]


async def is_at_rest(queue: ShardedQueue[Any], redis: Any) -> None:
    """Nothing left in any shard, nothing pending, no consumer of a worker that is gone."""
    stats = await queue.stats()
    assert (stats.main, stats.processing, stats.retry, stats.scheduled, stats.workers) == (0, 0, 0, 0, 0)
    for shard in queue.shards:
        assert not [key async for key in redis.scan_iter(f"{shard.keys.prefix}:lock:*")]


async def test_each_message_of_every_shard_is_done_once(queue, redis):
    handler = Handler()
    ids = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(500)])]
    workers = [worker_of(queue, handler.handle, concurrency=7) for _ in range(2)]
    async with running(workers[0]), running(workers[1]):
        await asyncio.gather(*(queue.result(id, timeout=20) for id in ids))
        assert (await queue.stats()).workers == 2
    assert Counter(handler.ids) == Counter(ids)
    assert {(message.attempts, message.deliveries) for message in handler.messages} == {(1, 1)}
    await is_at_rest(queue, redis)


async def test_one_at_a_time_goes_by_what_messages_go_by(queue):
    at_work: Counter[int] = Counter()
    seen: dict[int, list[int]] = {}

    async def handle(message):
        user = message.data["user"]
        at_work[user] += 1
        assert at_work[user] == 1
        await asyncio.sleep(0.002)
        at_work[user] -= 1
        seen.setdefault(user, []).append(message.data["n"])

    await queue.enqueue_many([{"user": n % 8, "n": n} for n in range(80)])
    await work(queue, handle, one_at_a_time_per="user")
    assert seen == {user: list(range(user, 80, 8)) for user in range(8)}
    assert await queue.limits() == Limits(key="user", concurrency_per_key=1)


async def test_one_at_a_time_by_another_field_than_the_shards_is_refused(queue):
    with pytest.raises(ConfigurationError, match="cannot go by key='chat': the queue's shards go by 'user'"):
        await work(queue, Handler().handle, one_at_a_time_per="chat")
    assert await queue.limits() == Limits()


async def test_slots_count_over_all_shards(queue):
    now = most = 0

    async def handle(message):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    ids = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(100)])]
    worker = worker_of(queue, handle, concurrency=3)
    async with running(worker):
        await asyncio.gather(*(queue.result(id, timeout=20) for id in ids))
        for shard in range(SHARDS):  # for the idle reads of all shards at once
            await fill(queue, shard, 1)
        await until(lambda: not worker.busy)
    assert most == 3


async def test_a_busy_shard_starves_no_other(queue):
    order: list[Any] = []

    async def handle(message):
        order.append(message.data["n"])
        await asyncio.sleep(0.002)

    await fill(queue, 0, 400, n="busy")
    async with running(worker_of(queue, handle, concurrency=2, poll_interval=1.0)):
        await until(lambda: len(order) > 50)
        for shard in (1, 2, 3):
            await fill(queue, shard, 5, n="other")
        seen = len(order)
        await until(lambda: order.count("other") == 15)
    assert len(order) - seen < 150, "each shard gets its turn"


async def test_burst_ends_when_nothing_is_left_in_any_shard(queue, redis):
    done = []

    async def handle(message):
        done.append(message.id)
        if message.data["left"]:
            await queue.enqueue({"user": message.data["user"] + 1, "left": message.data["left"] - 1})

    await queue.enqueue({"user": 1, "left": 20})
    await asyncio.wait_for(work(queue, handle, concurrency=2), 20)
    assert len(done) == 21
    await is_at_rest(queue, redis)


async def test_batches_are_of_one_shard_each(queue):
    lists: list[set[int]] = []
    worker = Worker(queue, concurrency=2, lease=LEASE)

    @worker.batch(size=10, wait=0.05)
    async def handle(messages):
        lists.append({message.data["of"] for message in messages})

    for shard in range(SHARDS):
        await fill(queue, shard, 25, of=shard)
    await asyncio.wait_for(worker.run(burst=True), 20)
    assert all(len(shards) == 1 for shards in lists)
    assert SHARDS * 3 <= len(lists) < SHARDS * 6


async def test_burst_with_a_handler_that_waits_for_another_shard(queue):
    async def handle(message):
        if message.data["n"] == 0:
            other = next(n for n in range(100) if queue._home("x", [b"user", b"%d" % n]) is queue.shards[1])
            return await queue.result((await queue.enqueue({"user": other, "n": 1})).id, timeout=10)
        return "from the other"

    (first,) = await fill(queue, 0, 1, n=0)
    await asyncio.wait_for(work(queue, handle), 20)
    assert await queue.result(first) == "from the other"


async def test_stopped_it_hands_back_what_is_not_done_in_any_shard(queue, redis):
    held = Held()
    for shard in range(SHARDS):
        await fill(queue, shard, 2)
    worker = worker_of(queue, held.handle, grace=0.1)
    async with running(worker):
        await held.holds(2 * SHARDS)
        assert (worker.busy, worker.ready, worker.live) == (8, True, True)
    assert len(held.cancelled) == 8
    assert (worker.busy, worker.ready) == (0, False)
    handler = Handler()
    await work(queue, handler.handle)
    assert {(message.attempts, message.deliveries) for message in handler.messages} == {(1, 2)}
    await is_at_rest(queue, redis)


async def test_cancelled_it_hands_back_at_once(queue, redis):
    held = Held()
    for shard in range(SHARDS):
        await fill(queue, shard, 1)
    task = asyncio.create_task(worker_of(queue, held.handle).run())
    await held.holds(SHARDS)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert len(held.cancelled) == SHARDS
    assert (await queue.stats()).processing == 0


async def test_it_runs_again_after_it_has_ended(queue):
    handler = Handler()
    worker = worker_of(queue, handler.handle)
    for n in range(2):
        await fill(queue, n, 1)
        await asyncio.wait_for(worker.run(burst=True), 10)
    assert len(handler.ids) == 2


async def test_another_lease_in_one_shard_is_refused_and_nothing_goes_on(queue, server):
    async with queue_at(server, queue.shards[2].keys.prefix) as shard:
        await shard.transitions.join("another", 10.0)
        with pytest.raises(ConfigurationError, match="live with a lease of 10 s"):
            await asyncio.wait_for(worker_of(queue, Handler().handle).run(), 10)
    assert (await queue.stats()).workers == 1


async def test_a_suspect_runs_with_nothing_beside_it_in_any_shard(queue, redis):
    beside: list[int] = []
    now = 0

    async def handle(message):
        nonlocal now
        now += 1
        if message.data.get("suspect"):
            beside.append(now - 1)
        await asyncio.sleep(0.02)
        if message.data.get("suspect"):
            beside.append(now - 1)
        now -= 1

    (suspect,) = await fill(queue, 1, 1, suspect=True)
    shard = queue.shards[1]
    await shard.transitions.join("dies", LEASE)
    (taken,) = (await shard.transitions.claim("dies", 1)).deliveries
    assert taken.lease.id == suspect
    await redis.hset(shard.keys.message(suspect), mapping={"_sq_crashes": 1})
    await until(lambda: ran_out(redis, shard.keys.lock(suspect)))
    await until(lambda: swept(shard))
    (keeper,) = await redis.xpending_range(shard.keys.streams["n"], "workers", "-", "+", 1)
    assert keeper["consumer"] == "suspects"
    await fill(queue, 0, 300)
    await fill(queue, 3, 300)
    async with running(worker_of(queue, handle, concurrency=8)):
        await until(lambda: len(beside) == 2)
    assert beside == [0, 0]


async def ran_out(redis: Any, lock: str) -> bool:
    return not await redis.exists(lock)


async def swept(shard: Queue[Any]) -> int:
    return (await shard.transitions.sweep(max_deliveries=3, dead_letter_ttl=60)).recovered


async def test_a_server_that_is_away_holds_up_only_its_own_shards(private, prefix):
    servers = [private(), private()]
    handler = Handler()
    async with sharded(prefix, *(server.url for server in servers)) as queue:
        worker = worker_of(queue, handler.handle, concurrency=2)
        async with running(worker):
            await fill(queue, 0, 5)
            await fill(queue, 1, 5)
            await until(lambda: len(handler.ids) == 10)
            servers[1].kill()
            for _ in range(20):
                ids = await fill(queue, 0, 10) + await fill(queue, 2, 10)
                await asyncio.gather(*(queue.result(id, timeout=5) for id in ids))
            assert worker.ready
            servers[1].start()
            await until(lambda: taken(queue, 1), what="the shards of the other server taken from again")


async def taken(queue: ShardedQueue[Any], shard: int) -> bool:
    try:
        (id,) = await fill(queue, shard, 1)
        return await queue.result(id, timeout=2) is None
    except Exception:  # noqa: BLE001  (it is not there yet)
        return False


async def test_the_load_is_that_of_all_shards(queue):
    held = Held()
    for shard in range(SHARDS):
        await fill(queue, shard, 3)
    worker = worker_of(queue, held.handle, concurrency=6)
    with Monitor(worker) as monitor:
        async with running(worker):
            await held.holds(6)
            load = await asyncio.to_thread(read, f"http://{monitor.address}/load")
            held.go.set()
    assert (load["slots"], load["busy"], load["waiting"] + load["processing"]) == (6, 6, 12)


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


async def test_metrics_and_observers_know_one_queue(queue, prefix):
    registry = CollectorRegistry()
    held = Held()
    for shard in range(SHARDS):
        await fill(queue, shard, 2)
    worker = worker_of(queue, held.handle, concurrency=6)
    registry.register(WorkerCollector(worker))

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"streams_queue_worker_{name}", {"queue": prefix})

    async with running(worker):
        await held.holds(6)
        assert [value(name) for name in ("slots", "slots_busy", "ready")] == [6, 6, 1]
        held.go.set()
        await until(lambda: value("messages_completed_total") == 8)
    assert value("ready") == 0


async def test_warnings_name_the_shard_and_its_server(private, prefix, caplog):
    caplog.set_level(logging.INFO)
    pair = private("--requirepass", "hidden-word"), private("--requirepass", "hidden-word")
    async with ShardedQueue(prefix, shards=2, url=[server.url for server in pair]) as queue:
        worker = Worker(queue)

        @worker.handler
        async def handle(message):
            return None

        async with running(worker):
            await until(lambda: caplog.text.count("persistence (warning)") == 2)
            pair[1].stop()
            await until(lambda: "the server is unavailable, worker" in caplog.text)
    for server in pair:
        assert f"queue {prefix} at redis://:***@127.0.0.1:{server.port}/0, persistence (warning)" in caplog.text
    waits = next(line for line in caplog.text.splitlines() if "the server is unavailable, worker" in line)
    assert f"of queue {{{prefix}:1}} at redis://:***@127.0.0.1:{pair[1].port}" in waits
    assert "hidden-word" not in caplog.text
