"""One manager at the top of a module, several event loops one after the other, or side by side."""

from __future__ import annotations

import asyncio
import threading

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
        assert (out, noise) == ("done\n", "")


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
