"""`P:lock:global_lock`: all workers of ours hold it together; old workers wait for them, and they for an old worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers import until
from streams_queue.settings import Settings

WORKER = """
import asyncio
from bot_logic.services.chat_api_queue import start_queue_processor

async def answer(request):
    return "yes"

async def main():
    await start_queue_processor()
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


def chat_prefix() -> str:
    return Settings.resolve().prefix("chat_api")


def lock() -> str:
    return f"{chat_prefix()}:lock:global_lock"


@pytest.fixture
def answered(chat) -> list[str]:
    texts: list[str] = []

    async def answer(request: Any) -> str:
        texts.append(request.message)
        return "yes"

    chat.configure(answer)
    return texts


async def old_worker_gets_it(redis: Any) -> bool:
    """As the old code asked."""
    return bool(await redis.set(lock(), "processor", nx=True, ex=300))


async def ask(chat: Any, text: str) -> None:
    assert await chat.enqueue_chat_request("u1", text, "s", "i", "t", "c", "p", "m")


async def is_held(redis: Any, owner: str = "streams-queue") -> bool:
    return bool(await redis.get(lock()) == owner)


async def test_workers_of_ours_hold_it_together(chat, answered, redis, programs, monkeypatch):
    monkeypatch.setattr(chat, "_GLOBAL_LOCK_TTL", 1.0)
    chat._chat.queue.lock_expiry = 300  # as the other process has it
    await chat.start_queue_processor()
    await until(lambda: is_held(redis))
    programs(WORKER, CHAT_API_HANDLER="program0:answer")
    await until(lambda: two_workers(redis))
    assert await is_held(redis)
    await ask(chat, "hi")
    await asyncio.sleep(1.5)  # longer than it lasts, were it not renewed
    assert await is_held(redis) and await redis.pttl(lock()) > 0
    assert await old_worker_gets_it(redis) is False
    assert await chat.try_acquire_chat_api_lock() is False
    assert await chat.release_chat_api_lock() is False
    assert await is_held(redis)


async def two_workers(redis: Any) -> bool:
    consumers = await redis.xinfo_consumers(f"{chat_prefix()}:stream", "workers")
    return len([row for row in consumers if row["name"] not in ("returned", "locked")]) == 2


async def test_an_old_worker_gets_it_when_none_of_ours_lives(chat, answered, redis, monkeypatch):
    monkeypatch.setattr(chat, "_GLOBAL_LOCK_TTL", 0.5)
    await chat.start_queue_processor()
    await until(lambda: is_held(redis))
    await chat.stop_queue_processor()
    await until(lambda: old_worker_gets_it(redis), 2)


@pytest.mark.parametrize("freed", ["DEL", "expiry"])
async def test_a_worker_of_ours_waits_while_an_old_one_works(chat, answered, redis, caplog, freed):
    assert await old_worker_gets_it(redis)
    await chat.start_queue_processor()
    await ask(chat, "hi")
    await until(lambda: "waiting until it lets go" in caplog.text)
    await asyncio.sleep(0.2)
    assert answered == [] and await is_held(redis, "processor")
    await (redis.delete(lock()) if freed == "DEL" else redis.pexpire(lock(), 100))
    await until(lambda: answered == ["hi"], 3)
    assert await is_held(redis)
    assert caplog.text.count("waiting until it lets go") == 1
    await chat.stop_queue_processor()


async def test_a_worker_that_waits_can_be_stopped(chat, answered, redis):
    assert await old_worker_gets_it(redis)
    await chat.start_queue_processor()
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await chat.stop_queue_processor()
    assert await is_held(redis, "processor")


async def test_a_worker_that_lost_it_stops_until_it_has_it_again(chat, answered, redis, monkeypatch):
    """An operator freed it, and an old worker was quicker."""
    monkeypatch.setattr(chat, "_GLOBAL_LOCK_TTL", 0.3)
    await chat.start_queue_processor()
    await until(lambda: is_held(redis))
    await redis.set(lock(), "processor", ex=300)
    await until(lambda: chat._chat.processor._worker is None)
    await ask(chat, "hi")
    await asyncio.sleep(0.3)
    assert answered == []
    await redis.delete(lock())
    await until(lambda: answered == ["hi"], 3)
    await chat.stop_queue_processor()


async def test_taking_it_by_hand(chat, redis):
    assert await chat.try_acquire_chat_api_lock() is True
    assert await redis.get(lock()) == "processor"
    assert 0 < await redis.pttl(lock()) <= 2000  # lock_expiry
    assert await chat.try_acquire_chat_api_lock(timeout=0.1) is False
    assert await chat.release_chat_api_lock() is True
    assert not await redis.exists(lock())
    assert await chat.release_chat_api_lock() is True


async def test_a_queue_of_another_name_has_none(manager, redis, prefix):
    """Only the chat queue let one worker run at a time."""

    async def process(id: str) -> None: ...

    await redis.set(f"{prefix}:lock:global_lock", "processor", ex=300)
    await manager.start_processor(process)
    id = await manager.enqueue({})
    await until(lambda: gone(manager, id))
    assert await redis.get(f"{prefix}:lock:global_lock") == "processor"
    await manager.stop_processor()


async def gone(manager: Any, id: str) -> bool:
    return bool(await manager.get_position(id) == -1)
