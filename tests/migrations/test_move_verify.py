"""verify: each check can fail, and a queue at work fails none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import servers
from compat.old_programs import OldProducer
from helpers import running, until, worker_of
from migrations.old_state import OldState, every_damage
from migrations.pictures import exact
from migrations.steps import failed_checks, failures, move_clean, silent
from streams_queue import Message, Queue
from streams_queue.transitions import GROUP
from streams_queue_migrations import applying, verify, verifying
from streams_queue_migrations.model import Verified

Break = Callable[[Any, Queue[Any]], object]


def _swap(client: Any, queue: Queue[Any]) -> None:
    """The first of main becomes the last, its entry stays the first."""
    client.zadd(queue.keys.main, {"m0": time.time()})


def _second_entry(client: Any, queue: Queue[Any]) -> None:
    """Its entry is one that nobody will be given."""
    stream = queue.keys.streams["n"]
    client.xgroup_createconsumer(stream, GROUP, "dead")
    client.xreadgroup(GROUP, "dead", {stream: ">"}, count=1)
    client.xgroup_delconsumer(stream, GROUP, "dead")


def _died_holding(client: Any, queue: Queue[Any]) -> None:
    stream = queue.keys.streams["n"]
    client.hset(queue.keys.meta, "lease_ms", 1)
    client.xreadgroup(GROUP, "dead", {stream: ">"}, count=1)
    servers.wait_until(lambda: client.xinfo_consumers(stream, GROUP)[0]["idle"] > 3, what="leases running out")


def _orphan(ttl: int | None) -> Break:
    def leave(client: Any, queue: Queue[Any]) -> None:
        client.hset(queue.keys.message("orphan"), "timestamp", "1")
        if ttl:
            client.expire(queue.keys.message("orphan"), ttl)

    return leave


BREAKS: dict[str, tuple[Break, dict[str, int], bool]] = {
    "an entry is deleted": (
        lambda client, queue: client.xdel(queue.keys.streams["n"], client.xrange(queue.keys.streams["n"])[0][0]),
        {"entries": 1}, False,
    ),
    "a stream is deleted": (lambda client, queue: client.delete(queue.keys.streams["n"]), {"entries": 5}, False),
    "a consumer is deleted with what it held": (_second_entry, {"entries": 1}, False),
    "an id is added without an entry": (
        lambda client, queue: (
            client.hset(queue.keys.message("x"), mapping={"timestamp": "1", "status": "queued"}),
            client.zadd(queue.keys.main, {"x": time.time()}),
        ),
        {"entries": 1}, False,
    ),
    "a place is changed": (_swap, {"order": 1}, True),
    "a body is deleted": (lambda client, queue: client.delete(queue.keys.message("m1")), {"bodies": 1}, False),
    "a body is damaged": (
        lambda client, queue: client.hdel(queue.keys.message("m1"), "timestamp"), {"bodies": 1}, False,
    ),
    "a dead letter's body is deleted": (
        lambda client, queue: client.zadd(queue.keys.dlq, {"d": time.time()}), {"bodies": 1}, False,
    ),
    "an id stands in two sets": (
        lambda client, queue: client.zadd(queue.keys.retry, {"m1": time.time()}), {"places": 1}, False,
    ),
    "a body has neither place nor end": (_orphan(None), {"strays": 1}, False),
    "a body has no place": (_orphan(100), {"passing": 1}, True),
    "a score is no time": (lambda client, queue: client.zadd(queue.keys.main, {"m0": 5}), {"times": 1}, True),
    "a lock is taken by hand": (
        lambda client, queue: client.set(queue.keys.lock("m1"), "operator", ex=100), {"locks": 1}, True,
    ),
    "a body is about to run out": (
        lambda client, queue: client.expire(queue.keys.message("m1"), 100), {"lives": 1}, True,
    ),
    "a worker died": (_died_holding, {"holders": 1}, True),
}  # fmt: skip


@pytest.mark.leaks("a body without an end is one of the faults")
@pytest.mark.parametrize("fault", BREAKS)
async def test_each_check_can_fail(queue: Queue[Any], client: Any, state: OldState, fault: str):
    for n in range(5):
        state.queued(f"m{n}", time.time() - 50 + n)
    state.flush()
    await move_clean(queue)
    assert await failed_checks(queue) == {}
    breaks, expected, harmless = BREAKS[fault]
    breaks(client, queue)
    before = exact(client)
    verified = await verify(queue, silent, patience=0.05)
    assert {check.name: check.violations for check in verified.checks if not check.holds} == expected
    (failed,) = [check for check in verified.checks if not check.holds]
    assert failed.remedy and failed.examples
    assert verified.clean is harmless
    assert exact(client) == before, "it reads only"
    if "order" in expected:
        applied = await move_clean(queue)
        assert applied.ordered, "migrate puts it in order"


async def test_an_old_queue_is_not_clean_before_it_is_moved(queue: Queue[Any], state: OldState):
    every_damage(state, 200)
    state.flush()
    before = await failed_checks(queue)
    assert before["entries"] == len(state.main) and before["bodies"] == len(state.lost)
    await move_clean(queue)
    after = await failed_checks(queue)
    assert set(after) <= {"times", "locks", "passing"}


async def test_counts_that_do_not_add_up_are_found(queue: Queue[Any], client: Any, state: OldState, monkeypatch):
    for n in range(5):
        state.queued(f"m{n}")
    state.flush()
    look = verifying.look_twice

    async def robbed(*args: Any, **options: Any) -> Verified:
        verified = await look(*args, **options)
        client.zrem(queue.keys.main, "m3")
        client.expire(queue.keys.message("m3"), 100)
        return verified

    monkeypatch.setattr(applying, "look_twice", robbed)
    applied = await applying.apply(queue, silent, silent, watch=0)
    assert failures(applied.verified.checks) == [("sums", 1, [])] and not applied.verified.clean
    assert client.hget(queue.keys.meta, "migration") == b"under way", "not done: run it again"
    monkeypatch.undo()
    await move_clean(queue)
    assert client.hget(queue.keys.meta, "migration") == b"done"


async def test_what_was_found_stands_in_the_meta_hash(queue: Queue[Any], client: Any, state: OldState):
    every_damage(state, 200)
    state.flush()
    applied = await move_clean(queue)
    report = json.loads(client.hget(queue.keys.meta, "migration_report") or b"")
    assert report["main_before"] == len(state.sets["main"]) and report["main_after"] == len(state.main)
    assert report["dlq_after"] == len(state.dlq) and report["retry_after"] == len(state.retry)
    assert report["set_aside"] == applied.set_aside and report["entered"] == len(state.main)
    assert report["clean"] is True
    assert float(client.hget(queue.keys.meta, "migrated_at") or 0) == pytest.approx(time.time(), abs=60)


@contextlib.asynccontextmanager
async def busy(queue: Queue[Any], redis: Any) -> AsyncIterator[set[str]]:
    """Two workers at work, an old and a new producer, some failures, retries and removals."""
    done: set[str] = set()
    chosen, old, go_on = random.Random(1), OldProducer(redis, queue.keys.prefix), True

    async def handle(message: Message[Any]) -> None:
        await asyncio.sleep(chosen.random() * 0.02)
        if message.attempts == 1 and chosen.random() < 0.2:
            raise ValueError("once more")
        done.add(message.id)

    async def produce(enqueue: Callable[[int], Awaitable[object]]) -> None:
        for n in itertools.count():
            if not go_on:  # redis-py's client may forget that it was cancelled
                return
            await enqueue(n)
            await asyncio.sleep(0.004)

    async def remove(n: int) -> None:
        if n % 50 == 49:
            await queue.remove((await queue.enqueue({"n": n}, delay=0.05)).id)

    producers = (
        produce(lambda n: queue.enqueue({"n": n}, priority="high" if n % 9 == 0 else "normal")),
        produce(lambda n: old.enqueue({"n": n, "user_id": "u", "message": str(n)})),
        produce(remove),
    )
    workers = [worker_of(queue, handle, concurrency=8, retry_delay=0.1) for _ in range(2)]
    async with running(workers[0]), running(workers[1]):
        working = asyncio.gather(*producers)
        try:
            await until(lambda: len(done) > 10)
            yield done
        finally:
            go_on = False
            await working


@pytest.mark.leaks("messages that the workers had no time for")
async def test_a_busy_queue_fails_no_check(queue: Queue[Any], redis: Any):
    async with busy(queue, redis) as done:
        for _ in range(5):
            before = len(done)
            verified = await verify(queue, silent)
            assert verified.clean, failures(verified.checks)
            assert not [check for check in verified.checks if not check.holds and check.name != "passing"]
            await until(lambda: len(done) > before + 10, what="work going on")  # noqa: B023


@pytest.mark.leaks("messages that the workers had no time for")
async def test_a_busy_queue_is_migrated_again(queue: Queue[Any], redis: Any):
    async with busy(queue, redis) as done:
        for _ in range(2):
            before = len(done)
            await move_clean(queue)
            await until(lambda: len(done) > before + 10, what="work going on")  # noqa: B023
