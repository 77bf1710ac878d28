"""One manager at the top of a module, several event loops one after the other, or side by side."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from helpers import until
from streams_queue_compat.redis_queue_manager import RedisQueueManager

SCRIPT = """
import asyncio, gc, logging, sys, warnings
from bot_logic.services.chat_api_queue import enqueue_chat_request, get_queue_position
from bot_logic.services.redis_queue_manager import RedisQueueManager

logging.basicConfig(level=logging.WARNING)
manager = RedisQueueManager(sys.argv[1])
manager.lock_expiry = 30
told = []

async def callback(message, status, response, error):
    told.append(status)

async def once():
    id = await manager.enqueue({"a": "b"}, callback)
    assert id and await manager.get_position(id) == 1
    chat = await enqueue_chat_request("u", "hi", "s", "i", "t", "c", "p", "m")
    assert await get_queue_position(chat) == 1
    assert await manager.get_next_message() == id
    while "processing" not in told:
        await asyncio.sleep(0.01)
    told.clear()
    assert await manager.remove_message(id)

async def take():
    return await manager.get_next_message()

async def finish(id):
    assert await manager.get_next_message() == id, "held by hand, in the loop before"
    return await manager.remove_message(id)

async def process(id): ...

async def processor():
    await manager.start_processor(process)
    id = await manager.enqueue({"a": "b"})
    while await manager.get_position(id) != -1:
        await asyncio.sleep(0.01)
    if sys.argv[2] == "stops":
        await manager.stop_processor()

for _ in range(3):
    asyncio.run(once())
asyncio.run(manager.enqueue({"a": "b"}))
assert asyncio.run(finish(asyncio.run(take())))
for _ in range(3):
    asyncio.run(processor())
gc.collect()
assert len(manager._engines) == 1, manager._engines
print("done")
"""


def test_a_program_of_several_loops_makes_no_noise(programs, prefix):
    for ending in ("stops", "just ends"):
        program = programs(SCRIPT, f"{prefix}-{ending.replace(' ', '-')}", ending)
        out, noise = program.communicate(timeout=30)
        assert (out, [line for line in noise.splitlines() if "Remedy:" not in line]) == ("done\n", [])


def test_loops_side_by_side_never_get_the_same_message(at_server, prefix):
    manager = RedisQueueManager(prefix)
    got: list[str | None] = []
    together = threading.Barrier(2)

    async def take() -> None:
        await manager.enqueue({"a": "b"})
        together.wait()
        got.append(await manager.get_next_message())
        together.wait()
        await manager.close()

    threads = [threading.Thread(target=lambda: asyncio.run(take())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert None not in got and len(set(got)) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "becomes"),
    [
        ("remove_message", (), "completed"),
        ("retry_message", (), "retry"),
        ("move_to_dlq", ("hopeless",), "error"),
        ("try_acquire_lock", ("me",), "completed"),
        ("release_lock", ("me",), "completed"),
    ],
)
async def test_a_process_function_with_a_loop_of_its_own(managers, caplog, name, arguments, becomes):
    """In a thread, as where it calls code that blocks; the calls on its own message are still its outcome."""
    manager = managers(retry_delay_base=3600)
    answers: list[Any] = []
    statuses: list[str] = []

    async def process(id: str) -> None:
        async def call() -> None:
            answers.append(await getattr(manager, name)(id, *arguments))

        await asyncio.to_thread(lambda: asyncio.run(call()))

    async def callback(message: Any, status: str, response: Any, error: str | None) -> None:
        statuses.append(status)

    await manager.start_processor(process)
    await manager.enqueue({"a": "b"}, callback)
    await until(lambda: answers and becomes in statuses)  # the callback may hear of it first
    assert answers == [True]
    await manager.stop_processor()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
