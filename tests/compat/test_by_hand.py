"""A queue without a processor: get_next_message, and what the caller does with its answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from helpers import until

DRIVER = """
import asyncio, sys
from bot_logic.services.redis_queue_manager import RedisQueueManager

manager = RedisQueueManager(sys.argv[1])
manager.lock_expiry = float(sys.argv[2])

async def drive():
    while True:
        id = await manager.get_next_message()
        if id is None:
            await asyncio.sleep(0.02)
            continue
        print(id, flush=True)
        await manager.update_message(id, {"status": "processing"})
        if sys.argv[3] == "holds":
            await asyncio.sleep(60)
        await manager.remove_message(id)

asyncio.run(drive())
"""


async def test_the_same_id_until_it_is_finished(manager):
    ids = [await manager.enqueue({"n": n}) for n in range(3)]
    for id in ids:
        assert [await manager.get_next_message() for _ in range(3)] == [id] * 3
        assert (await manager.get_message(id))["status"] == "processing"
        assert await manager.remove_message(id) is True
    assert await manager.get_next_message() is None
    assert await manager.get_queue_length(True, True) == 0


async def test_the_old_way_around_a_message(manager, redis, prefix):
    id = await manager.enqueue({"a": "b"})
    assert await manager.get_next_message() == id
    assert await manager.try_acquire_lock(id, "me") is True
    assert await manager.update_message(id, {"status": "processing", "progress": 50}) is True
    assert (await manager.get_message(id))["progress"] == 50
    assert await manager.release_lock(id, "me") is True
    assert await redis.exists(f"{prefix}:lock:{id}"), "the lease lasts until the message is finished"
    assert await manager.remove_message(id) is True
    assert await manager.release_lock(id, "me") is True
    assert not await redis.exists(f"{prefix}:lock:{id}")


async def test_a_retry_comes_when_it_is_due(manager):
    manager.retry_delay_base = 0.2
    id = await manager.enqueue({"a": "b"})
    other = await manager.enqueue({})
    assert await manager.get_next_message() == id
    begun = time.monotonic()
    assert await manager.retry_message(id) is True
    assert await manager.get_next_message() == other
    assert await manager.remove_message(other) is True
    assert await manager.get_next_message() is None
    assert await until(manager.get_next_message) == id
    assert time.monotonic() - begun >= 0.2
    assert (await manager.get_message(id))["retry_count"] == 1


async def test_the_last_retry_is_a_dead_letter(manager, redis, prefix):
    manager.retry_delay_base = 0.01
    id = await manager.enqueue({"a": "b"})
    for _ in range(4):
        assert await until(manager.get_next_message) == id
        assert await manager.retry_message(id) is True
    assert await manager.get_next_message() is None
    assert await redis.zscore(f"{prefix}:queue:dlq", id)


async def test_two_managers_get_two_messages(managers):
    one, two = managers(), managers()
    first, second = await one.enqueue({}), await one.enqueue({})
    assert await one.get_next_message() == first
    assert await two.get_next_message() == second
    assert await one.get_next_message() == first
    assert await two.try_acquire_lock(first, "two") is False


async def test_update_message_renews_the_lease(managers, redis, prefix):
    one, two = managers(lock_expiry=1), managers(lock_expiry=1)
    id = await one.enqueue({"a": "b"})
    assert await one.get_next_message() == id
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:
        assert await one.update_message(id, {"a": "c"})
        assert await two.get_next_message() is None
        await asyncio.sleep(0.1)
    assert 0 < await redis.pttl(f"{prefix}:lock:{id}") <= 1000
    assert await one.remove_message(id) is True


async def test_a_lease_that_ran_out_goes_to_another(managers):
    one, two = managers(lock_expiry=0.5), managers(lock_expiry=0.5)
    id = await one.enqueue({"a": "b"})
    assert await one.get_next_message() == id
    assert await until(two.get_next_message, 4) == id
    assert await one.try_acquire_lock(id, "one") is False
    assert await two.get_next_message() == id
    for _ in range(2):
        assert await one.update_message(id, {"status": "error"}) is False
        assert await one.remove_message(id) is False
        assert await one.retry_message(id) is False
        assert await one.move_to_dlq(id, "x") is False
    assert (await two.get_message(id))["status"] == "processing"
    assert await one.get_next_message() is None
    assert await two.remove_message(id) is True


async def test_a_lease_that_ran_out_stays_while_nobody_wants_the_message(manager):
    manager.lock_expiry = 0.2
    id = await manager.enqueue({"a": "b"})
    assert await manager.get_next_message() == id
    await asyncio.sleep(0.5)
    assert await manager.get_next_message() == id
    assert (await manager.get_message(id))["retry_count"] == 0
    assert await manager.remove_message(id) is True


async def test_what_an_outsider_took_out_is_not_handed_out(manager, redis, prefix):
    held, waiting, last = [await manager.enqueue({"n": n}) for n in range(3)]
    assert await manager.get_next_message() == held
    await redis.zrem(f"{prefix}:queue:main", held, waiting)
    assert await manager.get_next_message() == last
    assert await manager.remove_message(last) is True
    assert await manager.get_next_message() is None
    assert await redis.xlen(f"{prefix}:stream") == 0


async def test_an_operator_frees_a_message_by_its_lock(managers, redis, prefix):
    one, two = managers(lock_expiry=60), managers(lock_expiry=60)
    id = await one.enqueue({"a": "b"})
    assert await one.get_next_message() == id
    await redis.delete(f"{prefix}:lock:{id}")
    assert await two.get_next_message() == id
    assert await one.remove_message(id) is False


async def test_old_producers_messages(manager, old):
    ids = [await old.enqueue({"n": n}) for n in range(3)]
    for n, id in enumerate(ids):
        assert await manager.get_next_message() == id
        assert (await manager.get_message(id))["n"] == n
        assert await manager.remove_message(id) is True


async def test_a_lock_taken_by_hand_keeps_the_message_back(manager, redis, prefix):
    first, second = await manager.enqueue({}), await manager.enqueue({})
    assert await manager.try_acquire_lock(first, "operator")
    assert await manager.get_next_message() == second
    await manager.remove_message(second)
    assert await manager.get_next_message() is None


async def test_beside_workers_with_another_lease(managers, caplog):
    worker, driver = managers(lock_expiry=3), managers(lock_expiry=60)

    async def process(id: str) -> None: ...

    await worker.start_processor(process)
    await until(lambda: worker._processor is not None and worker._processor._worker is not None)
    await driver.enqueue({})
    await until(lambda: finished(driver))
    assert await driver.get_next_message() is None
    assert "lease=30" in caplog.text and "3 s" in caplog.text
    await worker.stop_processor()


async def test_beside_a_processor(managers, redis, prefix):
    """What is held by hand is locked for longer than the lease that it shares with processors."""
    worker, driver = managers(lock_expiry=300), managers(lock_expiry=300)
    ran: list[str] = []

    async def process(id: str) -> None:
        ran.append(id)

    id = await driver.enqueue({"a": "b"})
    assert await driver.get_next_message() == id
    await worker.start_processor(process)
    await driver.enqueue({"c": "d"})
    await until(lambda: len(ran) == 1)
    assert ran != [id] and await redis.pttl(f"{prefix}:lock:{id}") > 290_000
    assert await driver.remove_message(id) is True
    await worker.stop_processor()


async def finished(manager: Any) -> bool:
    return bool(await manager.get_queue_length() == 0)


async def test_a_killed_driver(manager, redis, prefix, programs):
    manager.lock_expiry = 1
    id = await manager.enqueue({"a": "b"})
    driver = programs(DRIVER, prefix, "1", "holds")
    assert (await asyncio.to_thread(driver.stdout.readline)).strip() == id
    assert await manager.get_next_message() is None
    driver.kill()
    begun = time.monotonic()
    assert await until(manager.get_next_message) == id
    assert time.monotonic() - begun < 1 + 2
    message = await manager.get_message(id)
    assert message["retry_count"] == 0
    assert await redis.hget(f"{prefix}:msg:{id}", "_sq_crashes") == "1"
    assert await manager.get_next_message() == id
    assert await redis.hget(f"{prefix}:msg:{id}", "_sq_crashes") == "1"
    assert await manager.remove_message(id) is True
    assert await redis.xlen(f"{prefix}:stream") == 0


async def test_a_message_that_kills_its_drivers(managers, redis, prefix):
    id = await managers().enqueue({"a": "b"})
    for _ in range(3):
        victim = managers(lock_expiry=0.3)
        assert await until(victim.get_next_message) == id  # and it is never heard of again
    survivor = managers(lock_expiry=0.3)
    await until(lambda: died(survivor, redis, prefix, id))
    assert (await survivor.get_message(id))["retry_count"] == 0


async def died(manager: Any, redis: Any, prefix: str, id: str) -> bool:
    assert await manager.get_next_message() is None
    return bool(await redis.zscore(f"{prefix}:queue:dlq", id))


async def test_two_processes_never_get_the_same_message(manager, redis, prefix, programs):
    drivers = [programs(DRIVER, prefix, "5", "finishes") for _ in range(2)]
    await until(lambda: joined(redis, prefix, 2), 20)
    ids = [await manager.enqueue({"n": n}) for n in range(200)]
    await until(lambda: finished(manager), 20)
    for driver in drivers:
        driver.kill()
    got = [driver.communicate()[0].split() for driver in drivers]
    assert sorted(got[0] + got[1]) == sorted(ids)
    assert all(got), "one of them got nothing"


async def joined(redis: Any, prefix: str, number: int) -> bool:
    if not await redis.exists(f"{prefix}:stream"):
        return False
    consumers = await redis.xinfo_consumers(f"{prefix}:stream", "workers")
    return len([row for row in consumers if row["name"] not in ("returned", "locked")]) == number


@pytest.mark.parametrize("size", [0, 1])
async def test_nothing_is_left_when_a_queue_was_driven_by_hand(manager, redis, prefix, size):
    for n in range(size):
        await manager.enqueue({"user_id": "u", "message": str(n)})
        assert await manager.remove_message(await manager.get_next_message()) is True
    left = {key for key in await redis.keys(f"{prefix}:*") if await redis.ttl(key) == -1}
    assert left <= {f"{prefix}:{name}" for name in ("stats", "meta", "stream", "stream:high", "stream:low")}
