"""The faults of the old code that we do not keep: one test for each row of the contract's last table."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from typing import Any

import pytest

import servers
from helpers import until
from streams_queue import Queue, QueueUnavailable
from streams_queue_compat.redis_queue_manager import RedisQueueManager

CRASHING = """
import asyncio, os, sys
from bot_logic.services.redis_queue_manager import RedisQueueManager

manager = RedisQueueManager(sys.argv[1])
manager.lock_expiry = 1

async def process(id):
    os.kill(os.getpid(), 9)

async def main():
    await manager.start_processor(process)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_two_workers_never_take_the_same_message(managers):
    runs: Counter[str] = Counter()
    at_work: set[str] = set()

    async def process(id: str) -> None:
        assert id not in at_work
        at_work.add(id)
        await asyncio.sleep(0)
        runs[id] += 1
        at_work.discard(id)

    workers = [managers() for _ in range(4)]
    ids = [await workers[0].enqueue({"n": n}) for n in range(200)]
    for worker in workers:
        await worker.start_processor(process)
    await until(lambda: len(runs) == 200)
    for worker in workers:
        await worker.stop_processor()
    assert runs == Counter(ids)


async def test_a_wrong_clock_moves_nobody(manager, redis):
    ids = [await manager.enqueue({"timestamp": stamp}) for stamp in (time.time() + 3600, None, 0.0, time.time() - 3600)]
    assert await redis.zrange(manager.queue_main_key, 0, -1) == ids
    assert [(await manager.get_message(ids[n]))["timestamp"] for n in (2,)] == [0.0]
    handed_out = []
    for _ in ids:
        handed_out.append(await manager.get_next_message())
        await manager.remove_message(handed_out[-1])
    assert handed_out == ids


async def test_a_crash_leaves_nothing_stuck_and_is_counted(managers, programs, prefix, redis):
    manager = managers(lock_expiry=1)
    head, other = await manager.enqueue({"n": 1}), await manager.enqueue({"n": 2})
    victim = programs(CRASHING, prefix)
    await asyncio.to_thread(victim.wait, 10)
    crashes: dict[str, Any] = {}

    async def process(id: str) -> None:
        crashes[id] = await redis.hget(f"{prefix}:msg:{id}", "_sq_crashes")

    await manager.start_processor(process)
    await until(lambda: len(crashes) == 2, 4)
    assert crashes == {head: "1", other: None}
    await manager.stop_processor()


async def test_a_process_function_that_returns_has_finished(manager, redis, prefix):
    runs: list[str] = []

    async def process(id: str) -> None:
        runs.append(id)

    await manager.start_processor(process)
    ids = [await manager.enqueue({}), await manager.enqueue({})]
    await until(lambda: len(runs) == 2)
    await until(lambda: length_is(manager, 0))
    await manager.stop_processor()
    assert runs == ids
    assert not await redis.keys(f"{prefix}:msg:*")


async def length_is(manager: RedisQueueManager, length: int) -> bool:
    return await manager.get_queue_length(True, True) == length


async def test_retries_are_promoted_when_due_though_main_is_full(manager, redis, prefix):
    async def process(id: str) -> None:
        if id == "fails":
            raise ValueError("broken")
        await asyncio.sleep(0.05)

    await manager.enqueue({"request_id": "fails"})
    for n in range(300):
        await manager.enqueue({"n": n})
    await manager.start_processor(process)
    await until(lambda: redis.zscore(f"{prefix}:queue:retry", "fails"))
    await until(lambda: redis.zscore(f"{prefix}:queue:main", "fails"), 3)
    assert await manager.get_queue_length() > 200, "it had to wait until main was empty"
    await manager.stop_processor()


async def test_of_concurrent_duplicates_one_gets_in(managers, redis):
    crowd = [managers() for _ in range(5)]
    calls = [crowd[n % 5].enqueue({"user_id": "u", "message": f"text {n // 20}"}) for n in range(100)]
    answers = await asyncio.gather(*calls)
    winners = [{answers[n] for n in range(100) if n // 20 == text} for text in range(5)]
    assert [len(ids) for ids in winners] == [1] * 5 and None not in set.union(*winners)
    assert await redis.zcard(crowd[0].queue_main_key) == 5
    assert int(await redis.hget(crowd[0].stats_key, "total_messages")) == 5


async def test_a_late_listener_can_tell_done_from_lost(manager, redis, prefix, at_server):
    async def process(id: str) -> str:
        return "the answer"

    await manager.start_processor(process)
    id = await manager.enqueue({"response_token": "secret"})
    await until(lambda: length_is(manager, 0))
    await manager.stop_processor()
    async with Queue[Any](prefix, url=at_server.url) as native:
        assert await native.result(id, timeout=1) == "the answer"
    assert not await redis.exists(f"{prefix}:msg:{id}")
    assert 0 < await redis.ttl(f"{prefix}:done:{id}") <= 300
    assert "secret" not in await redis.get(f"{prefix}:done:{id}")


async def test_a_dead_letter_keeps_its_body(manager, redis, prefix):
    manager.default_ttl = 1
    id = await manager.enqueue({"a": "b"})
    await manager.move_to_dlq(id, "broken")
    assert await manager.update_message(id, {"seen": True})
    assert await redis.ttl(f"{prefix}:msg:{id}") > 29 * 86400
    assert (await manager.get_message(id))["a"] == "b"


@pytest.mark.parametrize("value", ["123", "true", "True", "None", "null", "[1]", '{"a": 1}', "1e5", '"x"', "", " 5"])
async def test_text_comes_back_as_text(manager, value):
    id = await manager.enqueue({"value": value})
    assert (await manager.get_message(id))["value"] == value
    await manager.update_message(id, {"value": 0})
    await manager.update_message(id, {"value": value})
    assert (await manager.get_message(id))["value"] == value


@pytest.mark.parametrize("value", [None, True, 0, 1.0, [], {}])
async def test_what_is_no_text_comes_back_as_it_was(manager, value):
    id = await manager.enqueue({"value": "text"})
    await manager.update_message(id, {"value": value})
    back = (await manager.get_message(id))["value"]
    assert back == value and type(back) is type(value)


async def test_callbacks_cross_processes_and_are_forgotten(managers):
    """Two managers are to each other what two processes are; `test_callbacks` has real ones."""
    producer, worker = managers(), managers()
    statuses: list[str] = []

    async def callback(message: Any, status: str, response: Any, error: str | None) -> None:
        statuses.append(status)

    async def process(id: str) -> None: ...

    await worker.start_processor(process)
    await producer.enqueue({}, callback)
    await until(lambda: statuses == ["queued", "processing", "completed"])
    await worker.stop_processor()
    (engine,) = producer._engines.values()
    assert not engine.queue.listener._hearers


async def test_redis_down_is_logged_with_its_cause_and_raised_natively(monkeypatch, caplog, prefix):
    url = f"redis://127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("STREAMS_QUEUE_URL", url)
    manager = RedisQueueManager(prefix)
    assert await manager.get_message("x") is None
    assert "get_message" in caplog.text and "ConnectionError" in caplog.text
    assert f"Error {errno.ECONNREFUSED} connecting to" in caplog.text
    with pytest.raises(QueueUnavailable):
        async with Queue[Any](prefix, url=url):
            pass
    await manager.close()


async def test_get_user_request_does_not_read_the_queue(chat, redis):
    """`test_chat_queue` counts its commands."""
    first = await chat.enqueue_chat_request("u1", "hi", "s", "i", "t", "c", "p", "m")
    for n in range(50):
        await chat.enqueue_chat_request(f"other{n}", "hi", "s", "i", "t", "c", "p", "m")
    last = await chat.enqueue_chat_request("u2", "hi", "s", "i", "t", "c", "p", "m")
    await redis.config_resetstat()
    found = [(await chat.get_user_request(user)).request_id for user in ("u1", "u2")]
    stats = await redis.info("commandstats")
    assert found == [first, last]
    assert stats["cmdstat_hgetall"]["calls"] == 2


async def test_releasing_a_lock_is_one_step(managers, redis, prefix):
    """One lets go of a lock that runs out at that moment, another takes it: it never lets go of the other's."""
    one, two = managers(), managers()
    await asyncio.gather(one.get_queue_length(), two.get_queue_length())
    taken = 0
    for _ in range(200):
        await redis.set(f"{prefix}:lock:m", "one", px=1)
        _, got = await asyncio.gather(one.release_lock("m", "one"), two.try_acquire_lock("m", "two"))
        if got:
            taken += 1
            assert await redis.get(f"{prefix}:lock:m") == "two"
        await redis.delete(f"{prefix}:lock:m")
    assert taken
