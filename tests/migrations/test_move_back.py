"""roll_back: the old code finds everything, and works it off."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from compat.old_programs import OldProducer, OldWorker, requeue_dead_letter
from helpers import Held, running, until, worker_of
from migrations.old_state import OldState, every_damage
from migrations.pictures import differences, exact
from migrations.steps import failed_checks, ids_of, move_back, move_clean, work_off
from streams_queue import Queue, Reject, Worker
from streams_queue.errors import MigrationError
from streams_queue_migrations import roll_back

SHARED = {"main", "retry", "dlq"}


async def promote_due(redis: Any, prefix: str) -> None:
    """What the old ``get_next_message`` did with a due retry where main was empty."""
    for id in await redis.zrangebyscore(f"{prefix}:queue:retry", "-inf", time.time()):
        await redis.zrem(f"{prefix}:queue:retry", id)
        await redis.zadd(f"{prefix}:queue:main", {id: time.time()})


async def old_work_off(redis: Any, prefix: str) -> list[str]:
    """What an old worker did, in order."""
    worker, done = OldWorker(redis, prefix), []
    while id := await worker.work():
        done.append(id)
    return done


async def mixed(queue: Queue[Any]) -> dict[str, list[str]]:
    """A native queue with messages in every state."""
    worker = Worker(queue, concurrency=1, lease=1.0, retry_delay=100.0, max_retries=1, poll_interval=0.2)

    async def fail(message: Any) -> None:
        if message.id.startswith("dead"):
            raise Reject("no")
        raise ValueError("not now")

    worker.handler(fail)
    for id in ("retry-1", "retry-2", "dead-1"):
        await queue.enqueue({"request_id": id, "text": "x"}, id=id)
    await worker.run(burst=True)
    for n in range(3):
        await queue.enqueue({"request_id": f"main-{n}", "text": "x"}, id=f"main-{n}", unique_key=f"k{n}")
    await queue.enqueue({"text": "x"}, id="high", priority="high", ttl=900)
    await queue.enqueue({"text": "x"}, id="later", delay=500)
    await queue.enqueue({"status": "mine"}, id="escaped")
    return {"main": ["main-0", "main-1", "main-2", "high", "escaped"], "retry": ["retry-1", "retry-2", "later"]}


def engine_keys(client: Any, prefix: str) -> list[bytes]:
    documented = (b":queue:main", b":queue:retry", b":queue:dlq", b":stats")
    inside = (f"{prefix}:msg:".encode(), f"{prefix}:dedup:".encode(), f"{prefix}:lock:".encode())
    return [
        key for key in client.scan_iter(f"{prefix}:*") if not key.endswith(documented) and not key.startswith(inside)
    ]


def engine_fields(client: Any, prefix: str) -> list[bytes]:
    return [
        name
        for key in client.scan_iter(f"{prefix}:msg:*")
        if client.type(key) == b"hash"
        for name in client.hkeys(key)
        if name.startswith(b"_sq_")
    ]


@pytest.mark.leaks("the old code's messages, a dead worker's lease")
async def test_the_old_worker_works_everything_off(queue: Queue[Any], client, redis: Any, prefix: str):
    expected = await mixed(queue)
    await queue.transitions.join("dies", 1.0)
    (delivery,) = (await queue.transitions.claim("dies", 1)).deliveries
    assert delivery.lease.id == "high", "neither finished nor handed back"
    client.hset(queue.keys.meta, "lease_ms", 1)
    consumers = partial(client.xinfo_consumers, queue.keys.streams["h"], "workers")
    await until(lambda: all(row["idle"] > 1 for row in consumers()), what="leases running out")
    done = await move_back(queue)
    assert (done.messages, done.prioritised, done.scheduled, done.escaped, done.typed) == (9, 1, 1, 1, 9)
    assert engine_keys(client, prefix) == [] and engine_fields(client, prefix) == []
    assert not client.exists(queue.keys.lock("high"))
    assert await redis.zrange(f"{prefix}:queue:main", 0, -1) == expected["main"]
    assert await redis.zrange(f"{prefix}:queue:retry", 0, -1) == expected["retry"]
    assert {await redis.hget(f"{prefix}:msg:{id}", "status") for id in expected["main"]} == {"queued"}
    assert {await redis.hget(f"{prefix}:msg:{id}", "status") for id in expected["retry"]} == {"retry"}

    assert await old_work_off(redis, prefix) == expected["main"]
    assert not await redis.keys(f"{prefix}:dedup:*")
    for id in expected["retry"]:
        await redis.zadd(f"{prefix}:queue:retry", {id: 1.0})
    await promote_due(redis, prefix)
    assert sorted(await old_work_off(redis, prefix)) == sorted(expected["retry"])
    assert await redis.zrange(f"{prefix}:queue:dlq", 0, -1) == ["dead-1"]
    await requeue_dead_letter(redis, prefix, "dead-1")
    assert await old_work_off(redis, prefix) == ["dead-1"]
    assert set(await redis.keys(f"{prefix}:*")) == {f"{prefix}:stats"}


async def test_refused_beside_living_workers_unless_forced(queue: Queue[Any], client: Any):
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=1, lease=30.0)):
        await queue.enqueue({}, id="a")
        await held.holds(1)
        before = exact(client)
        with pytest.raises(MigrationError, match=r"workers of this engine run \(.+\): stop them"):
            await move_back(queue)
        assert not (changed := differences(before, exact(client))), changed
        held.go.set()
        await queue.result("a", timeout=10)
    await queue.enqueue({}, id="b")
    await move_back(queue)
    assert await _main(client, queue) == [b"b"]


async def _main(client: Any, queue: Queue[Any]) -> list[bytes]:
    return list(client.zrange(queue.keys.main, 0, -1))


async def test_what_a_worker_handed_back_when_it_left_holds_up_nobody(queue: Queue[Any], client: Any):
    """`returned` is a consumer's name, and no worker."""
    await queue.transitions.join("w1", 30.0)
    await queue.enqueue({}, id="a")
    (delivery,) = (await queue.transitions.claim("w1", 1)).deliveries
    assert await queue.transitions.release("w1", [delivery.lease]) == ["queued"]
    await queue.transitions.prune("w1", 60_000)
    await move_back(queue)
    assert await _main(client, queue) == [b"a"] and engine_fields(client, queue.keys.prefix) == []


@pytest.mark.leaks("the old code's messages")
async def test_again_it_changes_nothing(queue: Queue[Any], client: Any):
    await mixed(queue)
    await move_back(queue)
    before = exact(client)
    again = await move_back(queue)
    assert (again.prioritised, again.scheduled) == (0, 0)
    assert exact(client) == before


async def test_there_and_back_and_there_again(queue: Queue[Any], client: Any, state: OldState):
    every_damage(state, 400)
    state.flush()
    await move_clean(queue)
    await move_back(queue)
    assert engine_fields(client, state.prefix) == []
    assert [key for key in engine_keys(client, state.prefix) if b":done:" not in key] == [state.key("lost")]
    for name in sorted(SHARED):
        assert client.zrange(state.key("queue", name), 0, -1) == getattr(state, name)
    applied = await move_clean(queue)
    assert applied.set_aside == {} and applied.entered == len(state.main)
    assert [fields[b"id"] for _, fields in client.xrange(state.key("stream"))] == state.main
    assert client.hget(queue.keys.meta, "migration") == b"done"
    for key in client.scan_iter(state.key("lock", "*")):
        client.delete(key)
    client.delete(state.key("queue", "retry"))
    assert [message.id for message in await work_off(queue)] == ids_of(state, "main")


@pytest.mark.leaks("the old code's messages")
async def test_a_new_producer_that_goes_on_meanwhile_loses_nothing(queue: Queue[Any], redis: Any, prefix: str):
    accepted: list[str] = []

    async def produce(n: int) -> None:
        receipt = await queue.enqueue({"n": n}, id=f"new-{n}")
        accepted.append(receipt.id)

    for n in range(1200):
        await produce(n)
    calls = iter(range(1200, 1300))

    def progress(*_: object) -> None:
        tasks.append(asyncio.ensure_future(produce(next(calls))))

    tasks: list[Any] = []
    await roll_back(queue, progress)
    await asyncio.gather(*tasks)
    assert len(accepted) > 1200
    assert sorted(await old_work_off(redis, prefix)) == sorted(accepted)


@pytest.mark.leaks("the old code's messages")
async def test_old_producers_go_on_with_what_is_rolled_back(queue: Queue[Any], redis: Any, prefix: str):
    await queue.enqueue({"user_id": "u", "message": "hi"}, id="new", unique_key="u:hi")
    await move_back(queue)
    producer = OldProducer(redis, prefix)
    assert await producer.enqueue({"user_id": "u", "message": "hi"}) == "new", "the slot is still its own"
    await producer.enqueue({"request_id": "old"})
    assert await old_work_off(redis, prefix) == ["new", "old"]
    assert await redis.keys(f"{prefix}:dedup:*") == []


async def test_verify_after_going_there_and_back_finds_what_an_old_queue_lacks(queue: Queue[Any]):
    await queue.enqueue({}, id="a")
    await move_back(queue)
    assert await failed_checks(queue) == {"entries": 1}
