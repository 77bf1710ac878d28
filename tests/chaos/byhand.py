"""Old programs: the documented calls, by hand and inside handlers, old producers and tools (faults 20b, 20c, 22)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

from chaos.lab import Lab, Lane
from chaos.scenario import fault
from chaos.verdict import SECRET
from compat.old_programs import OldProducer
from helpers import until
from streams_queue_compat.redis_queue_manager import RedisQueueManager


@contextlib.asynccontextmanager
async def _managers(lane: Lane, count: int) -> AsyncIterator[list[RedisQueueManager]]:
    """Instances of the documented API, each as another process would have it."""
    with mock.patch.dict(os.environ, STREAMS_QUEUE_URL=lane.lab.url):
        managers = [RedisQueueManager(lane.queue.keys.prefix) for _ in range(count)]
        for manager in managers:
            manager.lock_expiry = lane.lab.lease
            manager.retry_delay_base = 0.05
        try:
            yield managers
        finally:
            for manager in managers:
                if manager._processor is not None:
                    await manager.stop_processor(1)
                await manager.close()


class _Handler:
    """Loses its first lease of each message, and calls the old methods on it all the same; the second run does well."""

    def __init__(self, lane: Lane, admin: Any) -> None:
        self._lane = lane
        self._admin = admin
        self.runs: dict[str, int] = {}
        self.late: dict[str, list[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, manager: RedisQueueManager, id: str) -> None:
        run = self.runs[id] = self.runs.get(id, 0) + 1
        if run > 1:
            assert await manager.remove_message(id)
            return
        await self._admin.delete(self._lane.queue.keys.lock(id))
        task = asyncio.create_task(self._speak_late(manager, id))  # it outlives the cancelled handler
        self._tasks.add(task)
        await asyncio.shield(task)

    async def _speak_late(self, manager: RedisQueueManager, id: str) -> None:
        await until(lambda: self.runs[id] > 1, what="another's run")
        self.late[id] = [
            await manager.retry_message(id),
            await manager.move_to_dlq(id, "too late"),
            await manager.remove_message(id),
        ]


@fault("20b", "a handler calls the old methods on its own message after it has lost it")
async def old_calls_after_the_lease(lab: Lab) -> None:
    """All answer False and change nothing: two runs, one end, no failure counted."""
    async with lab.lane() as lane, lab.server.client() as admin, _managers(lane, 2) as managers:
        handler = _Handler(lane, admin)
        for manager in managers:
            await manager.start_processor(_bound(handler, manager), 0.2)
        for _ in range(lab.size(2, 25)):
            (id,) = await lane.enqueue()
            await until(lambda: id in handler.late, 15, f"{id} spoken of late")  # noqa: B023
            assert handler.late[id] == [False] * 3, handler.late[id]
            await lane.idle()
            lane.ledger.write("end", [id])
            lab.tally.runs += 1
        assert set(handler.runs.values()) == {2}, handler.runs
        counters = (await lane.queue.stats()).counters
        assert counters["completed_messages"] == len(handler.runs), counters
        assert not counters.get("retry_count") and not counters.get("dlq_messages"), counters
        await asyncio.gather(*(manager.stop_processor(1) for manager in managers))
        await lane.judge(edited=True)


def _bound(handler: _Handler, manager: RedisQueueManager) -> Any:
    async def process(id: str) -> None:
        await handler(manager, id)

    return process


@fault("20b", "a handler calls the old methods on its own message")
async def old_calls_within_the_lease(lab: Lab) -> None:
    """They are its outcome, once: a retry is a retry though the handler returns, and so is a dead letter."""
    async with lab.lane() as lane, _managers(lane, 1) as (manager,):
        runs: dict[str, int] = {}

        async def process(id: str) -> None:
            run = runs[id] = runs.get(id, 0) + 1
            assert await manager.try_acquire_lock(id, "me")
            assert await (manager.retry_message(id) if run == 1 else manager.move_to_dlq(id, "no"))
            assert not await manager.remove_message(id)

        await manager.start_processor(process, 0.2)
        ids = await lane.enqueue(lab.size(5, 500))
        await lane.idle(120)
        dead = {message.id: message for message in await lane.queue.dead_letters.list(limit=1000)}
        assert set(dead) == set(ids) and set(runs.values()) == {2}, runs
        assert {(message.retries, message.error) for message in dead.values()} == {(1, "no")}
        lab.tally.runs += len(ids)
        await manager.stop_processor(1)
        await lane.judge()


@fault("20c", "a queue driven by hand only, its process killed in between")
async def driven_by_hand(lab: Lab) -> None:
    """Nothing is stuck, nothing is charged twice: one recovery for each message that a killed process held."""
    kills = lab.size(3, 50)
    async with lab.lane() as lane:
        await lane.start(2, by_hand=True)
        await lane.enqueue(lab.size(100, 2_000))
        for _ in range(kills):
            await lane.started(lane.ledger.count("start") + 3)
            lane.alive[0].kill()
            await lane.start(by_hand=True)
        await lane.idle(120)
        unfinished = sum(run.how is None for run in lane.ledger.runs())
        recovered = (await lane.queue.stats()).counters.get("recovered_messages", 0)
        dead = (await lane.queue.stats()).dead
        assert recovered + dead <= kills, f"{recovered} recovered, {dead} given up after {kills} kills"
        assert recovered >= unfinished - dead - kills, f"{recovered} recovered of {unfinished}"
        lab.tally.runs += kills
        await lane.judge(duplicates=kills)


@fault("22", "old producers and new ones, half and half, old tools reading")
async def old_and_new(lab: Lab) -> None:
    """0 lost; whatever an old tool reads while the queue works is as documented."""
    count, producers = lab.size(200, 20_000), 10
    async with lab.lane() as lane, lab.server.client() as old_client:
        await lane.start(2, concurrency=8)
        old = OldProducer(old_client, lane.queue.keys.prefix)

        async def produce_old(number: int) -> None:
            for n in range(count // 2 // producers):
                id = f"{lane.name}-old-{number}-{n}"
                lane.ledger.write("attempted", [id])
                payload = {"token": SECRET, "n": n, "user_id": f"u{number}", "message": f"m{n}", "request_id": id}
                assert await old.enqueue(payload) == id
                lane.ledger.write("accepted", [id])

        async def produce_new() -> None:
            for _ in range(count // 2 // producers):
                await lane.enqueue()

        done = asyncio.Event()
        reading = asyncio.create_task(_read_as_old_tools_do(lane, done))
        began = time.monotonic()
        await asyncio.gather(*(produce_old(n) for n in range(producers)), *(produce_new() for _ in range(producers)))
        await lane.idle(120)
        done.set()  # a client of the old tools can swallow a cancellation
        await reading
        lab.tally.runs += count
        assert time.monotonic() - began < 300
        assert not await old_client.keys(f"{lane.queue.keys.prefix}:dedup:*"), "slots are left"
        await lane.judge()


async def _read_as_old_tools_do(lane: Lane, done: asyncio.Event) -> None:
    """Read messages in one transaction each, until `done`; AssertionError where a key does not say what it must."""
    keys = lane.queue.keys
    async with lane.lab.server.client() as client:
        while not done.is_set():
            recent = [entry.id for entry in lane.ledger.entries()[-400:] if entry.word == "accepted"]
            for id in random.sample(recent, min(20, len(recent))):
                async with client.pipeline(transaction=True) as at_once:
                    for queue in (keys.main, keys.retry, keys.dlq):
                        at_once.zscore(queue, id)
                    at_once.zrank(keys.main, id)
                    at_once.hgetall(keys.message(id))
                    at_once.hgetall(keys.stats)
                    main, retry, dead, rank, body, stats = await at_once.execute()
                _check(id, [place for place in (main, retry, dead) if place is not None], rank, body, stats)
            await asyncio.sleep(0.01)


def _check(id: str, places: list[float], rank: int | None, body: dict[str, str], stats: dict[str, str]) -> None:
    assert len(places) <= 1, f"{id} stands in {len(places)} queues"
    assert all(value.lstrip("-").isdigit() for value in stats.values()), stats
    if not places:
        assert not body, f"{id} has a body and no place: {body}"
        return
    assert body.get("status") in {"queued", "processing"}, body
    assert body["retry_count"].isdigit() and float(body["timestamp"]) > 0, body
    assert rank is not None and rank >= 0
    assert body["token"] == SECRET, body
