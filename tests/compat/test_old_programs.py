"""Programs of the old code beside ours: producers, workers, and tools that change the queue by hand."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from compat.old_programs import OldProducer, OldWorker
from helpers import until
from streams_queue import maintenance

PAYLOAD = {
    "n": 5, "fraction": 1.5, "digits": "123", "word": "true", "items": [1, "a"], "table": {"a": 1}, "flag": True,
    "nothing": None, "text": "hi there", "set": {1},
}  # fmt: skip
OLD_RULES = {
    "n": 5, "fraction": 1.5, "digits": 123, "word": True, "items": [1, "a"], "table": {"a": 1}, "flag": "True",
    "nothing": "None", "text": "hi there", "set": [1],
}  # fmt: skip
CHAT = {
    "user_id": "123", "message": "true", "source_type": "telegram", "source_id": "-100", "response_token": "1:a",
    "chat_id": "5", "chat_type": "private", "message_id": "[1]",
}  # fmt: skip


async def test_an_old_producers_message_is_picked_up_within_two_seconds(manager, old, redis, prefix):
    seen: list[Any] = []
    at: list[float] = []

    async def process(id: str) -> None:
        at.append(time.monotonic())
        seen.append(await manager.get_message(id))

    await manager.start_processor(process)
    await until(lambda: worker_runs(manager))
    for n in range(3):
        begun = time.monotonic()
        id = await old.enqueue({**PAYLOAD, **CHAT, "message": f"{n}"})
        await until(lambda: len(at) == len(seen) > 0 and seen[-1]["request_id"] == id)  # noqa: B023
        assert at[n] - begun < 2
        assert {name: seen[n][name] for name in OLD_RULES} == OLD_RULES
        assert {name: seen[n][name] for name in CHAT} == {**CHAT, "message": f"{n}"}, "chat fields stay text"
        assert (seen[n]["request_id"], seen[n]["status"], seen[n]["retry_count"]) == (id, "processing", 0)
        await ends(redis, prefix, id)
    assert not await redis.keys(f"{prefix}:dedup:*")
    await manager.stop_processor()


async def test_an_old_worker_beside_new_ones_is_noticed_and_said(manager, old, redis, prefix, caplog, monkeypatch):
    """It begins a message before a new worker finds it: both work on it, and a person has to know."""
    monkeypatch.setattr(maintenance, "PRUNE_EVERY", 0.5)
    done = asyncio.Event()

    async def process(id: str) -> None:
        done.set()

    await manager.start_processor(process)
    await until(lambda: worker_runs(manager))
    await asyncio.sleep(1)  # the first look has nothing to compare with
    await redis.hset(f"{prefix}:meta", "paused", "1")
    id = await old.enqueue({"script": "x"})
    await until(lambda: redis.xlen(f"{prefix}:stream"), what="found")
    await redis.hset(f"{prefix}:msg:{id}", "status", "processing")  # as the old worker begins
    await redis.hdel(f"{prefix}:meta", "paused")
    await asyncio.wait_for(done.wait(), 5)
    words = "1 claimed_elsewhere (an old worker runs beside the new ones?)"
    await until(lambda: words in caplog.text, what="said")
    assert (await manager.get_stats())["outside_claimed_elsewhere"] == 1
    await manager.stop_processor()


async def ends(redis: Any, prefix: str, id: str) -> None:
    await until(lambda: not_there(redis, prefix, id), what=f"the end of {id}")


def worker_runs(manager: Any) -> bool:
    return manager._processor._worker is not None


async def not_there(redis: Any, prefix: str, id: str) -> bool:
    return not await redis.exists(f"{prefix}:msg:{id}") and await redis.zscore(f"{prefix}:queue:main", id) is None


async def test_what_waited_before_the_first_worker_came(manager, old):
    ids = [await old.enqueue({"n": n}) for n in range(5)]
    seen: list[str] = []

    async def process(id: str) -> None:
        seen.append(id)

    await manager.start_processor(process)
    await until(lambda: len(seen) == 5)
    assert seen == ids
    await manager.stop_processor()


async def test_an_old_producers_message_that_fails(manager, old, redis, prefix):
    manager.max_retries = 1

    async def process(id: str) -> None:
        raise ValueError("broken")

    await manager.start_processor(process)
    id = await old.enqueue({**PAYLOAD, "user_id": "u", "message": "hi"})
    await until(lambda: redis.zscore(f"{prefix}:queue:dlq", id))
    message = await manager.get_message(id)
    assert (message["status"], message["retry_count"]) == ("error", 1) and "broken" in message["last_error"]
    assert {name: message[name] for name in OLD_RULES} == OLD_RULES
    assert not await redis.keys(f"{prefix}:dedup:*")
    await manager.stop_processor()


async def test_the_api_on_an_old_producers_message(manager, old, redis, prefix):
    """No worker of ours has ever seen it."""
    id = await old.enqueue({**PAYLOAD, "user_id": "u", "message": "hi"})
    assert await manager.get_position(id) == 1
    assert await manager.enqueue({"user_id": "u", "message": "hi"}) == id
    assert await old.enqueue({"user_id": "u", "message": "hi"}) == id
    assert await manager.update_message(id, {"n": 6, "items": [2]}) is True
    message = await manager.get_message(id)
    assert (message["n"], message["items"]) == (6, [2])
    assert await manager.clear_deduplication_key_by_id(id) is True
    assert await manager.retry_message(id) is True
    assert await manager.move_to_dlq(id, "x") is True
    assert await manager.remove_message(id) is True
    assert not await redis.keys(f"{prefix}:queue:*") and not await redis.exists(f"{prefix}:msg:{id}")


async def test_an_old_producers_slot_is_respected_and_the_other_way_round(manager, old):
    first = await manager.enqueue({"user_id": "u", "message": "new first"})
    assert await old.enqueue({"user_id": "u", "message": "new first"}) == first
    second = await old.enqueue({"user_id": 5, "message": "old first"})
    assert await manager.enqueue({"user_id": "5", "message": "old first"}) == second


async def test_an_old_producers_clock_is_its_own_affair(manager, old, redis, prefix):
    """An hour ahead, an hour behind, in milliseconds: all are worked on, and nobody waits for them."""
    ids = [await old.enqueue({"timestamp": time.time() + off}) for off in (3600, -3600, 1.6e12)]
    mine = await manager.enqueue({})
    seen: list[str] = []

    async def process(id: str) -> None:
        seen.append(id)

    await manager.start_processor(process)
    await until(lambda: len(seen) == 4, 5)
    assert set(seen) == {*ids, mine}
    later = await manager.enqueue({})
    assert (await redis.zscore(f"{prefix}:queue:main", later) or 0) < time.time() + 60
    await manager.stop_processor()


@pytest.mark.parametrize("processors", [1, 3])
async def test_old_and_new_producers_half_and_half(managers, redis, prefix, processors):
    attempted: set[str] = set()
    runs: Counter[str] = Counter()
    manager, old = managers(), OldProducer(redis, prefix)

    async def process(id: str) -> None:
        runs[id] += 1

    async def produce(enqueue: Any, name: str) -> None:
        for n in range(200 // processors // 2):
            id = await enqueue({"request_id": f"{name}-{n}", "user_id": name, "message": str(n)})
            attempted.add(id)

    workers = [managers() for _ in range(processors)]
    for worker in workers:
        await worker.start_processor(process)
    tasks = [produce(enqueue, f"{name}{k}") for k in range(2 * processors)
             for name, enqueue in (("old", old.enqueue), ("new", manager.enqueue))]  # fmt: skip
    await asyncio.gather(*tasks)
    await until(lambda: len(runs) == len(attempted), 15)
    assert set(runs) == attempted and len(attempted) >= 396
    assert set(runs.values()) == {1}
    await until(lambda: empty(redis, prefix))
    for worker in workers:
        await worker.stop_processor()
    assert int(await redis.hget(f"{prefix}:stats", "total_messages")) == len(attempted)
    assert not await redis.keys(f"{prefix}:msg:*") and not await redis.keys(f"{prefix}:dedup:*")
    assert await redis.xlen(f"{prefix}:stream") == 0


async def empty(redis: Any, prefix: str) -> bool:
    return not await redis.zcard(f"{prefix}:queue:main")


async def test_an_old_worker_did_some_of_the_work(manager, old, redis, prefix):
    """During a rollout it worked on messages of old and new producers; what it failed or left is ours."""
    worker = OldWorker(redis, prefix)
    ids = [await (manager.enqueue, old.enqueue)[n % 2]({"user_id": "u", "message": str(n)}) for n in range(20)]
    done = [await worker.work() for _ in range(6)]
    failed = [await worker.work(fails=True) for _ in range(6)]
    assert done + failed == ids[:12]
    retries: dict[str, int] = {}

    async def process(id: str) -> None:
        assert id not in retries
        retries[id] = (await manager.get_message(id))["retry_count"]

    await manager.start_processor(process)
    await until(lambda: len(retries) == 14)
    await until(lambda: empty(redis, prefix))
    await manager.stop_processor()
    assert retries == {id: int(id in failed) for id in ids[6:]}
    assert await redis.xlen(f"{prefix}:stream") == 0
    assert not await redis.keys(f"{prefix}:msg:*") and not await redis.keys(f"{prefix}:dedup:*")


async def test_what_outsiders_took_out_is_never_handed_out(manager, old, redis, prefix):
    ids = [await (manager.enqueue, old.enqueue)[n % 2]({"n": n}) for n in range(40)]
    out = set(random.Random(5).sample(ids, 20))
    await redis.zrem(f"{prefix}:queue:main", *out)
    seen: list[str] = []

    async def process(id: str) -> None:
        seen.append(id)

    await manager.start_processor(process)
    await until(lambda: len(seen) >= 20)
    last = await manager.enqueue({})
    await until(lambda: last in seen)
    assert set(seen) == {*ids, last} - out
    for id in out:
        assert 0 < await redis.ttl(f"{prefix}:msg:{id}") <= 3600
    await manager.stop_processor()


async def test_an_outsider_takes_out_what_is_being_worked_on(manager, redis, prefix):
    started, gate = asyncio.Event(), asyncio.Event()

    async def process(id: str) -> None:
        started.set()
        await gate.wait()
        raise ValueError("broken")

    id = await manager.enqueue({})
    await manager.start_processor(process)
    await started.wait()
    await redis.zrem(f"{prefix}:queue:main", id)
    gate.set()
    await until(lambda: not_locked(redis, prefix, id))
    assert await manager.get_queue_length(True, True) == 0, "it failed, but it must not come back"
    await manager.stop_processor()


async def not_locked(redis: Any, prefix: str, id: str) -> bool:
    return not await redis.exists(f"{prefix}:lock:{id}")


async def test_old_requests_in_the_chat_queue(chat, redis, chat_prefix):
    old = OldProducer(redis, chat_prefix)
    requests: list[Any] = []

    async def answer(request: Any) -> str:
        requests.append(request)
        return "yes"

    chat.configure(answer)
    await chat.start_queue_processor()
    id = await old.enqueue(CHAT)
    await until(lambda: requests)
    (request,) = requests
    assert request.request_id == id
    assert {name: getattr(request, name) for name in CHAT} == CHAT
    assert (request.retry_count, type(request.timestamp)) == (0, float)
    await chat.stop_queue_processor()


async def test_the_first_request_of_an_old_producers_user(chat, redis, chat_prefix):
    async def wait(request: Any) -> str:
        await asyncio.sleep(60)
        return "never"

    chat.configure(wait)
    await chat.start_queue_processor()
    id = await OldProducer(redis, chat_prefix).enqueue(CHAT)
    await until(lambda: chat.get_user_request("123"), 3)
    assert (await chat.get_user_request("123")).request_id == id
    await chat._chat.processor.stop(0)
