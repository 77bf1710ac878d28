"""At each step of a message's life the documented keys, read by other programs, say what the API says."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from typing import Any

import pytest

from compat.old_programs import requeue_dead_letter
from helpers import until
from streams_queue_compat.redis_queue_manager import RedisQueueManager

MESSAGE = {"user_id": "u1", "message": "hi", "flag": True, "nothing": None, "items": [1, "a"], "pair": (1, 2), "n": 5}
STORED = {
    "user_id": "u1", "message": "hi", "flag": "True", "nothing": "None", "items": '[1,"a"]', "pair": "[1,2]", "n": "5",
}  # fmt: skip
DIGEST = hashlib.md5(b"u1:hi").hexdigest()


class Keys:
    """What an operator sees of one message with plain commands."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.prefix = prefix

    async def places(self, id: str) -> dict[str, float]:
        found = {name: await self.client.zscore(f"{self.prefix}:queue:{name}", id) for name in ("main", "retry", "dlq")}
        return {name: score for name, score in found.items() if score is not None}

    async def fields(self, id: str) -> dict[str, str]:
        fields = await self.client.hgetall(f"{self.prefix}:msg:{id}")
        return {name: value for name, value in fields.items() if not name.startswith("_sq_")}

    async def slot(self) -> Any:
        return await self.client.get(f"{self.prefix}:dedup:{DIGEST}")

    async def ttl(self, key: str) -> Any:
        return await self.client.ttl(f"{self.prefix}:{key}")

    async def count(self, name: str) -> int:
        return int(await self.client.hget(f"{self.prefix}:stats", name) or 0)

    async def position(self, id: str) -> int:
        """As old programs work it out."""
        rank = await self.client.zrank(f"{self.prefix}:queue:main", id)
        if rank is not None:
            return int(rank) + 1
        rank = await self.client.zrank(f"{self.prefix}:queue:retry", id)
        return -1 if rank is None else int(await self.client.zcard(f"{self.prefix}:queue:main")) + int(rank) + 1

    async def agree(self, manager: RedisQueueManager, id: str) -> None:
        """The API says the same."""
        assert await manager.get_position(id) == await self.position(id)
        sizes = [await self.client.zcard(f"{self.prefix}:queue:{name}") for name in ("main", "retry", "dlq")]
        stats = await manager.get_stats()
        assert [stats[name] for name in ("main_queue_length", "retry_queue_length", "dlq_length")] == sizes
        assert await manager.get_queue_length(False) == sizes[0]
        assert await manager.get_queue_length(True, True) == sum(sizes)
        message, fields = await manager.get_message(id), await self.fields(id)
        for name in ("status", "retry_count"):
            assert str(message[name] if message else None) == fields.get(name, "None")

    async def look_queued(self, id: str) -> None:
        fields, places = await self.fields(id), await self.places(id)
        assert fields == {
            **STORED, "request_id": id, "status": "queued", "retry_count": "0", "timestamp": fields["timestamp"],
            "dedup_key": f"{self.prefix}:dedup:{DIGEST}", "_has_callback": "False",
        }  # fmt: skip
        assert places == {"main": pytest.approx(float(fields["timestamp"]), abs=0.001)}
        assert abs(places["main"] - time.time()) < 60
        assert await self.slot() == id and not await self.exists(f"lock:{id}")
        assert 3590 < await self.ttl(f"msg:{id}") <= 3600 and 3590 < await self.ttl(f"dedup:{DIGEST}") <= 3600
        types = [await self.type(key) for key in ("queue:main", f"msg:{id}", f"dedup:{DIGEST}", "stats")]
        assert types == ["zset", "hash", "string", "hash"]

    async def look_processing(self, id: str, place: dict[str, float]) -> None:
        assert (await self.fields(id))["status"] == "processing"
        assert await self.places(id) == place, "in flight is in main, at its place"
        assert await self.client.get(f"{self.prefix}:lock:{id}")
        assert 0 < await self.client.pttl(f"{self.prefix}:lock:{id}") <= 2000
        assert await self.slot() == id

    async def look_retry(self, id: str) -> None:
        fields, due = await self.fields(id), (await self.places(id))["retry"]
        assert (fields["status"], fields["retry_count"]) == ("retry", "1") and "broken" in fields["last_error"]
        assert float(fields["next_retry"]) == pytest.approx(due, abs=0.001)
        assert due - float(fields["last_error_time"]) == pytest.approx(0.5, abs=0.01)
        assert await self.slot() == id and not await self.exists(f"lock:{id}")
        assert 3590 < await self.ttl(f"msg:{id}") <= 3601
        assert await self.count("retry_count") == 1

    async def look_dead(self, id: str) -> None:
        fields, died = await self.fields(id), (await self.places(id))["dlq"]
        assert fields["status"] == "error" and "broken" in fields["error"] and "broken" in fields["last_error"]
        assert float(fields["moved_to_dlq_at"]) == pytest.approx(died, abs=0.001)
        assert {name: fields[name] for name in STORED} == STORED
        assert await self.slot() is None and not await self.exists(f"lock:{id}")
        assert await self.ttl(f"msg:{id}") > 29 * 86400
        assert await self.count("dlq_messages") == 1 and await self.position(id) == -1

    async def look_requeued(self, id: str) -> None:
        fields = await self.fields(id)
        assert (fields["status"], fields["retry_count"]) == ("processing", "0") and "error" not in fields
        assert await self.slot() == id, "a requeue takes the slot back"

    async def look_done(self, id: str) -> None:
        assert await self.slot() is None and not await self.exists(f"msg:{id}", f"lock:{id}")
        assert await self.client.zcard(f"{self.prefix}:queue:main") == 0
        assert await self.client.xlen(f"{self.prefix}:stream") == 0

    async def exists(self, *keys: str) -> bool:
        return bool(await self.client.exists(*(f"{self.prefix}:{key}" for key in keys)))

    async def type(self, key: str) -> Any:
        return await self.client.type(f"{self.prefix}:{key}")


@pytest.fixture
def keys(redis, prefix) -> Keys:
    return Keys(redis, prefix)


class Failing:
    """A process function that fails the first three times, and each time only when it is told to go on."""

    def __init__(self) -> None:
        self.runs = 0
        self._gate = asyncio.Event()

    async def process(self, id: str) -> None:
        self.runs += 1
        await self._gate.wait()
        self._gate.clear()
        if self.runs < 4:
            raise ValueError("broken")

    def go_on(self) -> None:
        self._gate.set()

    async def is_in_run(self, number: int) -> None:
        await until(lambda: self.runs == number, 4, f"run {number}")


async def test_a_message_from_cradle_to_grave(manager, keys, redis, prefix):
    failing = Failing()
    manager.retry_delay_base, manager.max_retries = 0.5, 1
    id = await manager.enqueue(MESSAGE)
    await keys.look_queued(id)
    assert await keys.position(id) == 1 and await keys.count("total_messages") == 1
    await keys.agree(manager, id)
    place = await keys.places(id)

    await manager.start_processor(failing.process, poll_interval=0.1)
    await failing.is_in_run(1)
    await keys.look_processing(id, place)
    await keys.agree(manager, id)

    failing.go_on()
    await until(lambda: is_at(keys, id, "retry"))
    await keys.look_retry(id)
    await keys.agree(manager, id)

    await failing.is_in_run(2)
    assert await is_at(keys, id, "main")
    failing.go_on()
    await until(lambda: is_at(keys, id, "dlq"))
    await keys.look_dead(id)
    await keys.agree(manager, id)

    await requeue_dead_letter(redis, prefix, id)
    assert await keys.position(id) == 1
    await keys.agree(manager, id)
    await failing.is_in_run(3)
    await keys.look_requeued(id)
    failing.go_on()
    await failing.is_in_run(4)
    failing.go_on()

    await until(lambda: is_gone(keys, id))
    await keys.look_done(id)
    await keys.agree(manager, id)
    await manager.stop_processor()


async def is_at(keys: Keys, id: str, place: str) -> bool:
    return set(await keys.places(id)) == {place}


async def is_gone(keys: Keys, id: str) -> bool:
    return not await keys.places(id)


async def test_positions_of_many(manager, keys, redis, prefix):
    ids = [await manager.enqueue({"n": n}) for n in range(30)]
    manager.retry_delay_base = 60
    for id in ids[::7]:
        await manager.retry_message(id)
    await manager.move_to_dlq(ids[1], "x")
    await redis.zrem(f"{prefix}:queue:main", ids[2])
    await manager.get_next_message()
    for id in [*ids, "nonesuch"]:
        await keys.agree(manager, id)


@pytest.mark.parametrize("by_hand", [False, True])
async def test_the_dead_letter_script_verbatim(manager, redis, prefix, by_hand):
    """As it stands in the operators' runbook, in one EVAL; the counts start anew and the handler sees the old body."""
    script = """
        redis.call('HSET', KEYS[1] .. ':msg:' .. ARGV[1], 'retry_count', 0, 'status', 'queued')
        redis.call('ZREM', KEYS[1] .. ':queue:dlq', ARGV[1])
        redis.call('ZADD', KEYS[1] .. ':queue:main', ARGV[2], ARGV[1])
    """
    id = await manager.enqueue(MESSAGE)
    await manager.move_to_dlq(id, "broken")
    await redis.eval(script, 1, prefix, id, time.time())
    begun = time.monotonic()
    if by_hand:
        assert await until(manager.get_next_message, 3) == id
        message = await manager.get_message(id)
        assert await manager.remove_message(id)
    else:
        seen: list[Any] = []

        async def process(which: str) -> None:
            seen.append(await manager.get_message(which))

        await manager.start_processor(process)
        await until(lambda: seen, 3)
        (message,) = seen
        await manager.stop_processor()
    assert time.monotonic() - begun < 3
    assert {name: message[name] for name in MESSAGE} == MESSAGE
    assert message["retry_count"] == 0 and "error" not in message
    assert await redis.zcard(f"{prefix}:queue:dlq") == await redis.zcard(f"{prefix}:queue:main") == 0


async def test_a_lock_deleted_by_an_operator_frees_a_stuck_message(managers, redis, prefix):
    stuck, other = managers(lock_expiry=6), managers(lock_expiry=6)
    started, done = asyncio.Event(), asyncio.Event()

    async def hang(id: str) -> None:
        if started.is_set():
            done.set()
            return
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    async def process(id: str) -> None:
        done.set()

    id = await stuck.enqueue({"a": "b"})
    await stuck.start_processor(hang)
    await started.wait()
    await other.start_processor(process)
    await redis.delete(f"{prefix}:lock:{id}")
    await asyncio.wait_for(done.wait(), 15)  # a maintainer whose turn has just begun lets a lease pass before it sweeps
    await other.stop_processor()
    await stuck.stop_processor(0)
    assert not await redis.exists(f"{prefix}:msg:{id}")
