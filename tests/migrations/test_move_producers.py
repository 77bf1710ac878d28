"""Old and new producers that go on while a queue is moved: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from compat.old_programs import OldProducer
from helpers import Handler, running, until, worker_of
from migrations.old_state import OldState, every_damage
from migrations.steps import failed_checks, failures, ids_of, move, work_off
from streams_queue import Queue


class Producers:
    """Enqueue until they are told to stop, old ones and new ones; `accepted` are the ids that they were given."""

    def __init__(self, queue: Queue[Any], redis: Any) -> None:
        self.accepted: list[str] = []
        self._queue = queue
        self._old = OldProducer(redis, queue.keys.prefix)
        self._go_on = True

    async def __aenter__(self) -> None:
        self._working = asyncio.gather(
            *(self._produce(f"new{n}", self._new) for n in range(2)),
            *(self._produce(f"old{n}", self._old_one) for n in range(2)),
        )
        await until(lambda: len(self.accepted) > 8, what="all being at it")

    async def __aexit__(self, *_: object) -> None:
        self._go_on = False
        await self._working

    async def _produce(self, name: str, enqueue: Callable[[str, int], Awaitable[str]]) -> None:
        for n in itertools.count():
            if not self._go_on:
                return
            self.accepted.append(await enqueue(f"{name}-{n}", n))

    async def _new(self, id: str, n: int) -> str:
        return (await self._queue.enqueue({"n": n}, id=id, unique_key=id)).id

    async def _old_one(self, id: str, n: int) -> str:
        return await self._old.enqueue({"request_id": id, "user_id": id, "message": str(n)})


async def test_what_arrives_meanwhile_is_neither_lost_nor_doubled(
    queue: Queue[Any], redis: Any, client: Any, state: OldState
):
    every_damage(state, 3000)
    state.flush()
    producers = Producers(queue, redis)
    async with producers:
        applied = await move(queue)
        during = len(producers.accepted)
        again = await move(queue)
    assert applied.verified.clean, failures(applied.verified.checks)
    assert again.verified.clean, failures(again.verified.checks)
    assert during > 100, "they were at it"

    last = await move(queue)
    assert last.verified.clean, failures(last.verified.checks)
    assert set(await failed_checks(queue)) <= {"times", "locks", "passing"}
    expected = Counter([*ids_of(state, "main"), *producers.accepted])
    assert set(expected.values()) == {1}
    entries = [fields[b"id"] for _, fields in client.xrange(queue.keys.streams["n"])]
    assert entries == client.zrange(queue.keys.main, 0, -1), "in main's order, whoever came in between"
    assert len(entries) == len(expected)

    for key in client.scan_iter(state.key("lock", "*")):
        client.delete(key)
    client.delete(queue.keys.retry)
    assert Counter(message.id for message in await work_off(queue, concurrency=32)) == expected
    assert client.zcard(queue.keys.main) == client.xlen(queue.keys.streams["n"]) == 0


async def test_many_producers_that_never_rest_leave_the_sums_right(queue: Queue[Any], server, state: OldState):
    """At any moment some of them have added a message and not counted it yet."""
    for n in range(1000):
        state.queued(f"m{n}", 1e9 + n)
    state.flush()
    go_on = True

    async def produce(name: int) -> None:
        async with server.client() as client:
            producer = OldProducer(client, queue.keys.prefix)
            for n in itertools.count():
                if not go_on:
                    return
                await producer.enqueue({"request_id": f"{name}-{n}"})

    working = asyncio.gather(*(produce(name) for name in range(40)))
    await until(lambda: queue.position("39-0"), what="all being at it")
    results = [await move(queue) for _ in range(3)]
    go_on = False
    await working
    assert [failures(applied.verified.checks) for applied in results] == [[], [], []]


@pytest.mark.parametrize("stays", [False, True])
async def test_a_difference_that_passes_is_none(queue: Queue[Any], state: OldState, monkeypatch, stays: bool):
    """At first producers happen to have counted less than before; what is lost stays lost."""
    state.queued("m", 1e9)
    state.flush()
    looks = itertools.chain([(5, 7), (2, 3)], itertools.repeat((2, 3) if stays else (2, 6)))

    async def unaccounted(_: Any) -> tuple[int, int]:
        return next(looks)

    monkeypatch.setattr("streams_queue_migrations.applying._Move._unaccounted", unaccounted)
    applied = await move(queue)
    assert failures(applied.verified.checks) == ([("sums", 2, [])] if stays else [])


async def test_workers_that_start_meanwhile_take_each_message_once(
    queue: Queue[Any], redis: Any, client, state: OldState
):
    for n in range(4000):
        state.queued(f"m{n}", 1e9 + n)
    state.flush()
    producers, handler = Producers(queue, redis), Handler()
    async with running(worker_of(queue, handler.handle, concurrency=8)), producers:
        applied = await move(queue)
    assert applied.verified.clean, failures(applied.verified.checks)
    await worker_of(queue, handler.handle, concurrency=32).run(burst=True)
    assert Counter(handler.ids) == Counter([*ids_of(state, "main"), *producers.accepted])
