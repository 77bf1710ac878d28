"""`start_processor` and `stop_processor`, with handlers as the old documentation has them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import servers
from bot_logic.services.redis_queue_manager import RedisQueueManager
from helpers import until


@contextlib.asynccontextmanager
async def processing(manager: RedisQueueManager, function: Callable[[str], Awaitable[Any]]) -> AsyncIterator[None]:
    await manager.start_processor(function, poll_interval=0.1)
    try:
        yield
    finally:
        await manager.stop_processor(1.0)


async def gone(redis: Any, prefix: str, id: str) -> bool:
    places = [await redis.zscore(f"{prefix}:queue:{queue}", id) for queue in ("main", "retry", "dlq")]
    return places == [None] * 3 and not await redis.exists(f"{prefix}:msg:{id}", f"{prefix}:lock:{id}")


async def ends(redis: Any, prefix: str, id: str) -> None:
    await until(lambda: gone(redis, prefix, id), what=f"the end of {id}")


async def is_dead(redis: Any, prefix: str, id: str) -> bool:
    return await redis.zscore(f"{prefix}:queue:dlq", id) is not None


@pytest.mark.parametrize("style", ["documented", "returns"])
async def test_a_message_ends_once(manager, redis, prefix, style):
    runs: list[str] = []

    async def process(id: str) -> None:
        runs.append(id)
        assert (await manager.get_message(id))["status"] == "processing"
        if style == "documented":
            assert await manager.update_message(id, {"status": "completed"}) is True
            assert await manager.remove_message(id) is True

    ids = [await manager.enqueue({"n": n}) for n in range(5)]
    async with processing(manager, process):
        for id in ids:
            await ends(redis, prefix, id)
        last = await manager.enqueue({})
        await ends(redis, prefix, last)
    assert runs == [*ids, last]
    assert int(await redis.hget(f"{prefix}:stats", "completed_messages")) == 6


async def test_one_message_at_a_time(manager):
    at_work, most, done = 0, 0, 0

    async def process(id: str) -> None:
        nonlocal at_work, most, done
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        done += 1

    for _ in range(5):
        await manager.enqueue({})
    async with processing(manager, process):
        await until(lambda: done == 5)
    assert most == 1


async def test_an_exception_is_stored_and_has_the_message_tried_again(manager, redis, prefix):
    seen: list[dict[str, Any]] = []
    begun = time.time()

    async def process(id: str) -> None:
        seen.append(await manager.get_message(id))
        raise ValueError(f"broken {len(seen)}")

    id = await manager.enqueue({"a": "b"})
    async with processing(manager, process):
        await until(lambda: is_dead(redis, prefix, id))
    assert [message["retry_count"] for message in seen] == [0, 1, 2, 3]
    assert all("broken" in message["last_error"] for message in seen[1:])
    assert all(begun - 1 < message["last_error_time"] < time.time() + 1 for message in seen[1:])
    message = await manager.get_message(id)
    assert message["status"] == "error"
    assert "broken 4" in message["error"] and "broken 4" in message["last_error"]
    assert (await manager.get_stats())["retry_count"] == 3


async def test_attributes_set_while_it_runs_count(manager, redis, prefix):
    runs: list[str] = []

    async def process(id: str) -> None:
        runs.append(id)
        raise ValueError

    async with processing(manager, process):
        manager.max_retries = 0
        id = await manager.enqueue({})
        await until(lambda: is_dead(redis, prefix, id))
        assert runs == [id]
        manager.max_retries, manager.retry_delay_base = 1, 60
        id = await manager.enqueue({})
        await until(lambda: redis.zscore(f"{prefix}:queue:retry", id))
        assert await redis.zscore(f"{prefix}:queue:retry", id) == pytest.approx(time.time() + 60, abs=5)


async def test_the_locks_of_a_handlers_own_message(manager, redis, prefix):
    answers: list[Any] = []

    async def process(id: str) -> None:
        owner = await redis.get(f"{prefix}:lock:{id}")
        answers.append(await manager.try_acquire_lock(id, "me"))
        answers.append(await manager.release_lock(id, "me"))
        answers.append(await redis.get(f"{prefix}:lock:{id}") == owner)
        answers.append(await manager.try_acquire_lock("another", "me"))
        answers.append(await redis.get(f"{prefix}:lock:another"))

    id = await manager.enqueue({})
    async with processing(manager, process):
        await ends(redis, prefix, id)
    assert answers == [True, True, True, True, "me"]


async def test_a_handler_that_asks_for_a_retry_itself(manager, redis, prefix):
    answers: list[bool] = []
    again: list[bool] = []

    async def process(id: str) -> None:
        await manager.update_message(id, {"last_error": "not yet"})
        answers.append(await manager.retry_message(id))
        again.append(await manager.retry_message(id))
        again.append(await manager.remove_message(id))
        again.append(await manager.move_to_dlq(id, "x"))

    id = await manager.enqueue({})
    async with processing(manager, process):
        await until(lambda: is_dead(redis, prefix, id))
    assert answers == [True] * 4
    assert again == [False] * 12
    message = await manager.get_message(id)
    assert (message["retry_count"], message["error"]) == (3, "not yet")


async def test_a_handler_that_raises_after_it_asked_for_a_retry_is_charged_once(manager, redis, prefix):
    async def process(id: str) -> None:
        await manager.retry_message(id)
        raise ValueError("and now?")

    manager.retry_delay_base = 60
    id = await manager.enqueue({})
    async with processing(manager, process):
        await until(lambda: redis.zscore(f"{prefix}:queue:retry", id))
    assert (await manager.get_message(id))["retry_count"] == 1


async def test_a_handler_that_gives_up(manager, redis, prefix):
    runs: list[str] = []

    async def process(id: str) -> None:
        runs.append(id)
        assert await manager.move_to_dlq(id, "hopeless") is True

    id = await manager.enqueue({})
    async with processing(manager, process):
        await until(lambda: is_dead(redis, prefix, id))
        await until(lambda: gone_from_line(redis, prefix))
    assert runs == [id]
    assert (await manager.get_message(id))["error"] == "hopeless"


async def gone_from_line(redis: Any, prefix: str) -> bool:
    return not await redis.xlen(f"{prefix}:stream") and not await redis.zcard(f"{prefix}:queue:main")


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_a_handler_that_lost_its_lease_writes_nothing(managers, redis, prefix, caplog, ending):
    manager, thief = managers(lock_expiry=20), managers(lock_expiry=20)
    answers: list[Any] = []
    ended = asyncio.Event()

    async def process(id: str) -> None:
        await redis.delete(f"{prefix}:lock:{id}")  # as operators do
        assert await thief.get_next_message() == id
        before = await picture(redis, prefix, id)
        answers.append(await manager.remove_message(id))
        answers.append(await manager.retry_message(id))
        answers.append(await manager.move_to_dlq(id, "x"))
        assert await picture(redis, prefix, id) == before
        ended.set()
        if ending == "raises":
            raise ValueError("too late")

    id = await manager.enqueue({"a": "b"})
    async with processing(manager, process):
        await ended.wait()
        await until(lambda: "lost message" in caplog.text)
        assert await redis.zscore(f"{prefix}:queue:main", id)
        assert (await manager.get_message(id))["retry_count"] == 0
    assert answers == [False, False, False]
    assert await thief.remove_message(id) is True


async def picture(redis: Any, prefix: str, id: str) -> Any:
    queues = [await redis.zrange(f"{prefix}:queue:{queue}", 0, -1) for queue in ("main", "retry", "dlq")]
    return queues, await redis.hgetall(f"{prefix}:msg:{id}"), await redis.get(f"{prefix}:lock:{id}")


async def test_a_message_of_another_queue_with_the_same_id(managers, redis, prefix):
    manager, other = managers(), managers(f"{prefix}-other")
    done = asyncio.Event()

    async def process(id: str) -> None:
        await other.enqueue({"request_id": id})
        assert await other.remove_message(id) is True
        assert await redis.exists(f"{prefix}:msg:{id}"), "it took the message that it works on for the other one"
        done.set()

    async with processing(manager, process):
        await manager.enqueue({"request_id": "same"})
        await done.wait()
        await ends(redis, prefix, "same")


async def test_calls_from_tasks_of_a_handler_are_its_own(manager, redis, prefix):
    answers: list[bool] = []

    async def process(id: str) -> None:
        answers.append(await asyncio.create_task(manager.try_acquire_lock(id, "me")))
        answers.extend(await asyncio.gather(manager.remove_message(id)))

    id = await manager.enqueue({})
    async with processing(manager, process):
        await ends(redis, prefix, id)
    assert answers == [True, True]


async def test_starting_twice_and_stopping_twice_are_logged(manager, caplog):
    async def process(id: str) -> None: ...

    await manager.stop_processor()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    await manager.start_processor(process)
    caplog.clear()
    await manager.start_processor(process)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    await manager.stop_processor()
    caplog.clear()
    await manager.stop_processor()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_stopped_and_started_again(manager, redis, prefix):
    async def process(id: str) -> None: ...

    for _ in range(2):
        id = await manager.enqueue({})
        async with processing(manager, process):
            await ends(redis, prefix, id)


async def test_stop_waits_for_the_handler(manager, redis, prefix):
    started = asyncio.Event()

    async def process(id: str) -> None:
        started.set()
        await asyncio.sleep(0.2)

    ids = [await manager.enqueue({}) for _ in range(2)]
    await manager.start_processor(process)
    await started.wait()
    await manager.stop_processor(timeout=5)
    assert await gone(redis, prefix, ids[0])
    assert await manager.get_position(ids[1]) == 1


async def test_stop_hands_back_what_takes_too_long(managers, redis, prefix):
    manager, other = managers(), managers()
    started, done = asyncio.Event(), asyncio.Event()

    async def hang(id: str) -> None:
        started.set()
        await asyncio.sleep(60)

    async def process(id: str) -> None:
        done.set()

    id = await manager.enqueue({"a": "b"})
    await manager.start_processor(hang)
    await started.wait()
    begun = time.monotonic()
    await manager.stop_processor(timeout=0.2)
    assert time.monotonic() - begun < 1.5
    message = await manager.get_message(id)
    assert (message["status"], message["retry_count"]) == ("queued", 0)
    assert not await redis.exists(f"{prefix}:lock:{id}")
    async with processing(other, process):
        await asyncio.wait_for(done.wait(), 1.5)


async def test_redis_away_at_the_start(managers, monkeypatch, tmp_path: Path, caplog):
    server = servers.start("embedded", tmp_path)
    server.stop()
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    manager = managers()
    done = asyncio.Event()

    async def process(id: str) -> None:
        done.set()

    try:
        async with processing(manager, process):
            await until(lambda: "cannot work at present" in caplog.text)
            caplog.clear()
            await asyncio.to_thread(server.start)
            await until(lambda: manager.enqueue({}))
            await asyncio.wait_for(done.wait(), 5)
        server.stop()
        await manager.start_processor(process)
        begun = time.monotonic()
        await manager.stop_processor()
        assert time.monotonic() - begun < 3
    finally:
        await manager.close()
        server.stop()


async def test_a_handler_may_take_as_long_as_it_likes(manager):
    async def process(id: str) -> None: ...

    worker = await manager._worker(process, 0)
    assert worker.policy.timeout >= 86400
