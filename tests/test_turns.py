"""Whose turn it is to look after the queue, and when the one whose turn begins may sweep."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from helpers import LEASE, queue_at, until
from streams_queue import Queue, Worker, maintenance
from streams_queue.maintenance import Maintenance


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        for name in ("a", "b"):
            await queue.transitions.join(name, LEASE)
        yield queue


@pytest.fixture
def maintainer(queue) -> Callable[[str], Maintenance]:
    return lambda name: Maintenance(queue.transitions, name, LEASE, Worker(queue).policy)


def sweeps_now(maintainer: Maintenance) -> bool:
    return maintainer.in_turn and maintainer._sweep_at <= asyncio.get_running_loop().time()


async def test_who_has_just_come_lets_holders_renew_first(maintainer):
    first = maintainer("a")
    await first._take_turn()
    assert first.in_turn and not sweeps_now(first)


async def test_who_saw_the_server_answer_all_along_sweeps_at_once(maintainer):
    first, second = maintainer("a"), maintainer("b")
    await first._take_turn()
    await second._take_turn()
    assert not second.in_turn
    await first.resign()
    await second._take_turn()
    assert sweeps_now(second)


async def test_who_did_not_lets_holders_renew_first(maintainer):
    first, second = maintainer("a"), maintainer("b")
    await first._take_turn()
    await second._take_turn()
    await first.resign()
    await asyncio.sleep(0.6 * LEASE)
    await second._take_turn()
    assert second.in_turn and not sweeps_now(second)


async def test_a_turn_that_began_by_a_call_whose_answer_was_lost_lets_holders_renew_first(maintainer, queue):
    """As after a server that was frozen, and then carries out what it was sent meanwhile."""
    first = maintainer("a")
    await first._take_turn()
    first._sweep_at = 0.0
    await asyncio.sleep(0.6 * LEASE)
    await queue.transitions.upkeep("a", LEASE / 2, adopted_ttl=60, dedup_expiry=60)
    await first._take_turn()
    assert first.in_turn and not sweeps_now(first)


async def test_who_hands_a_dead_worker_s_message_back_knows_at_once_that_it_waits(maintainer, queue):
    await queue.enqueue({})
    assert (await queue.transitions.claim("b", 1)).deliveries
    first = maintainer("a")
    await first._take_turn()
    assert not first.messages_wait
    await asyncio.sleep(1.1 * LEASE)
    await first.sweep()
    assert first.messages_wait


async def test_outside_edits_are_said_once_a_minute(queue, maintainer, redis, prefix, caplog):
    """One line, where some were counted since the last look: not for those of before, nor for none."""
    upkeep = maintainer("a")
    await redis.hset(f"{prefix}:stats", mapping={"outside_added": 5, "outside_locked": 2})
    await upkeep.round()
    assert "outside edits" not in caplog.text

    async def a_minute_passes() -> list[str]:
        caplog.clear()
        upkeep._prune_at -= maintenance.PRUNE_EVERY
        upkeep._edits_seen_at -= maintenance.PRUNE_EVERY
        await upkeep.round()
        return [record.getMessage() for record in caplog.records]

    assert await a_minute_passes() == []
    ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(3)])]
    assert (await queue.transitions.claim("b", 3)).deliveries
    assert await redis.delete(*(f"{prefix}:lock:{id}" for id in ids)) == 3
    await upkeep.sweep()
    await redis.hset(f"{prefix}:msg:{ids[0]}", "status", "processing")
    assert (await queue.transitions.claim("b", 3)).deliveries
    caplog.clear()
    (line,) = await a_minute_passes()
    said, _, kinds = line.partition(" s: ")
    assert said == f"outside edits of queue {prefix} in the last 60"
    assert kinds == "3 unlocked, 1 claimed_elsewhere (an old worker runs beside the new ones?)"
    assert await a_minute_passes() == []


async def test_statistics_set_back_by_hand_are_no_edits(maintainer, redis, prefix, caplog):
    upkeep = maintainer("a")
    await redis.hset(f"{prefix}:stats", "outside_added", 5)
    await upkeep.round()
    await redis.delete(f"{prefix}:stats")
    upkeep._prune_at = 0.0
    await upkeep.round()
    assert "outside edits" not in caplog.text


async def test_a_fleet_does_not_march_in_step(maintainer, redis, prefix, monkeypatch):
    """The waits of those that are not in turn differ, by up to a third."""
    await redis.set(f"{prefix}:maintainer", "another", ex=60)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    async with looking_after(maintainer("a")):
        await until(lambda: len(waits) > 50)
    interval = min(maintenance.INTERVAL, LEASE / 6)
    rounds = [wait / interval for wait in waits if wait > interval / 2]  # the others are rests of a pass
    assert 1.0 <= min(rounds) < 1.1 and 1.3 < max(rounds) <= 1.4, rounds


@pytest.mark.leaks("what is taken out by hand is bounded when a claim meets its entry, and nobody claims here")
async def test_what_outsiders_do_to_a_long_queue(queue, maintainer, redis, prefix):
    """With 100,000 waiting an id that somebody adds with an old score has its entry in 2 s, and nothing is read all the
    time. Not even where ids are taken out by hand again and again: a dead worker's message goes on, what is due comes
    into line, and ids added meanwhile are found.
    """
    ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(100_000)])]
    upkeep = maintainer("a")
    upkeep.lease = 3.0  # two rounds a second
    began = time.monotonic()
    await upkeep.round(full=True)
    one_pass = time.monotonic() - began  # about 0.6 s on a quiet machine of two cores
    async with looking_after(upkeep):
        await asyncio.sleep(3)  # the first pass
        await adopted(redis, prefix, "first", 0.6 + 2.5 * one_pass)
        await until(lambda: reads_little(redis), 30, "all passes done")

        storm = asyncio.create_task(take_out(redis, queue.keys.main, ids))
        (delivery,) = (await queue.transitions.claim("b", 1)).deliveries
        await queue.enqueue({}, id="due", delay=0.5)
        try:
            await adopted(redis, prefix, "second", 1 + 15 * one_pass)
            await until(lambda: recovered(queue), 15)
            assert await queue.position("due") is not None
        finally:
            storm.cancel()
    assert delivery.lease.id not in ids[-100:]


@contextlib.asynccontextmanager
async def looking_after(maintainer: Maintenance) -> AsyncIterator[None]:
    task = asyncio.create_task(maintainer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def take_out(redis: Any, key: str, ids: list[str]) -> None:
    while True:
        await redis.zrem(key, ids.pop())
        await asyncio.sleep(0.2)


async def adopted(redis: Any, prefix: str, id: str, within: float) -> None:
    await redis.hset(f"{prefix}:msg:{id}", mapping={"timestamp": "1", "status": "queued", "retry_count": "0"})
    await redis.zadd(f"{prefix}:queue:main", {id: 1.0})
    await until(lambda: redis.hexists(f"{prefix}:msg:{id}", "_sq_entry"), within, f"an entry for the {id}")


async def recovered(queue: Queue[Any]) -> bool:
    return (await queue.stats()).counters.get("recovered_messages") == 1


async def reads_little(redis: Any) -> bool:
    """Within two seconds, less than a fifth of the queue."""
    read = await commands(redis, "hmget")
    await asyncio.sleep(2)
    return await commands(redis, "hmget") - read < 20_000


async def commands(redis: Any, name: str) -> int:
    return int((await redis.info("commandstats")).get(f"cmdstat_{name}", {}).get("calls", 0))
