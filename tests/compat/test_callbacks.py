"""Callbacks: in order, from wherever the work is done, and no longer than a message lives."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest

from helpers import until

WORKER = """
import asyncio, logging
from bot_logic.services.chat_api_queue import start_queue_processor, QueuedRequest

failures = {"fails once": 1, "fails": 9}

async def answer(request: QueuedRequest) -> str:
    if failures.get(request.message, 0) > 0:
        failures[request.message] -= 1
        raise ValueError("not now")
    return f"the answer to {request.message}"

async def main():
    from streams_queue_compat.chat_api_queue import _chat
    _chat.queue.retry_delay_base = 0.05
    _chat.queue.lock_expiry = 2
    await start_queue_processor()
    print("started", flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""

Call = tuple[str, Any, str | None]


class Callback:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.calls: list[Call] = []

    @property
    def statuses(self) -> list[str]:
        return [status for status, _, _ in self.calls]

    async def __call__(self, message: Any, status: str, response: Any, error: str | None) -> None:
        self.messages.append(dict(message) if isinstance(message, dict) else message.to_dict())
        self.calls.append((status, response, error))


def heard_no_more(manager: Any) -> bool:
    (engine,) = manager._engines.values()
    listener = engine.queue.listener
    return not listener._hearers and not listener._tails and not engine._tasks and not listener._seen


async def test_completed(manager):
    callback = Callback()

    async def process(id: str) -> Any:
        return {"answer": [42]}

    await manager.start_processor(process)
    id = await manager.enqueue({"a": "b", "user_id": "u"}, callback)
    await until(lambda: "completed" in callback.statuses)
    assert callback.calls == [
        ("queued", None, None),
        ("processing", None, None),
        ("completed", {"answer": [42]}, None),
    ]
    for message, (status, _, _) in zip(callback.messages, callback.calls, strict=True):
        assert (message["request_id"], message["status"], message["a"]) == (id, status, "b")
        assert message["retry_count"] == 0 and message["timestamp"] > 1e9
    await until(lambda: heard_no_more(manager))


async def test_a_retry(manager):
    callback = Callback()
    runs: list[str] = []

    async def process(id: str) -> None:
        runs.append(id)
        if len(runs) == 1:
            raise ValueError("broken")

    await manager.start_processor(process)
    await manager.enqueue({"a": "b"}, callback)
    await until(lambda: "completed" in callback.statuses)
    assert callback.statuses == ["queued", "processing", "retry", "processing", "completed"]
    assert "broken" in (callback.calls[2][2] or "")
    assert [message["retry_count"] for message in callback.messages] == [0, 0, 1, 1, 1]


async def test_an_error(manager):
    callback = Callback()

    async def process(id: str) -> None:
        raise ValueError("broken")

    manager.max_retries = 1
    await manager.start_processor(process)
    await manager.enqueue({"a": "b"}, callback)
    await until(lambda: "error" in callback.statuses)
    assert callback.statuses == ["queued", "processing", "retry", "processing", "error"]
    assert callback.calls[-1][1] is None and "broken" in (callback.calls[-1][2] or "")
    await until(lambda: heard_no_more(manager))


async def test_old_style_endings(manager):
    callbacks: dict[str, Callback] = {name: Callback() for name in ("remove_message", "move_to_dlq", "retry_message")}
    answers: list[bool] = []

    async def process(id: str) -> None:
        if id == "move_to_dlq":
            answers.append(await manager.move_to_dlq(id, "hopeless"))
        else:
            answers.append(await getattr(manager, id)(id))

    manager.max_retries = 0
    await manager.start_processor(process)
    for name, callback in callbacks.items():
        await manager.enqueue({"request_id": name}, callback)
    await until(lambda: all(len(callback.calls) == 3 for callback in callbacks.values()))
    assert answers == [True] * 3
    assert callbacks["remove_message"].calls[-1] == ("completed", None, None)
    assert callbacks["move_to_dlq"].calls[-1] == ("error", None, "hopeless")
    assert callbacks["retry_message"].statuses == ["queued", "processing", "error"]


async def test_driven_by_hand(manager):
    callback = Callback()
    id = await manager.enqueue({"a": "b"}, callback)
    assert await manager.get_next_message() == id
    await until(lambda: callback.statuses == ["queued", "processing"])
    await manager.retry_message(id)
    assert await until(manager.get_next_message) == id
    await manager.remove_message(id)
    await until(lambda: callback.statuses == ["queued", "processing", "retry", "processing", "completed"])


async def test_a_callback_that_raises(manager, caplog):
    statuses: list[str] = []

    async def callback(message: Any, status: str, response: Any, error: str | None) -> None:
        statuses.append(status)
        raise RuntimeError("the callback's own fault")

    async def process(id: str) -> None: ...

    await manager.start_processor(process)
    await manager.enqueue({"a": "b"}, callback)
    await until(lambda: statuses == ["queued", "processing", "completed"])
    await until(lambda: heard_no_more(manager))
    assert caplog.text.count("RuntimeError: the callback's own fault") == 3
    assert await manager.get_queue_length(True, True) == 0


async def test_a_slow_callback_holds_up_neither_the_caller_nor_the_others(manager):
    gate = asyncio.Event()
    slow: list[str] = []

    async def wait(message: Any, status: str, response: Any, error: str | None) -> None:
        await gate.wait()
        slow.append(status)

    async def process(id: str) -> None: ...

    await manager.start_processor(process)
    callback = Callback()
    async with asyncio.timeout(2):
        await manager.enqueue({"a": "b"}, wait)
        await manager.enqueue({"a": "c"}, callback)
    await until(lambda: "completed" in callback.statuses)
    assert slow == []
    gate.set()
    await until(lambda: slow == ["queued", "processing", "completed"])


async def test_nothing_grows(manager):
    async def callback(message: Any, status: str, response: Any, error: str | None) -> None: ...

    async def process(id: str) -> None: ...

    await manager.start_processor(process)
    await manager.enqueue({}, callback)
    await until(lambda: heard_no_more(manager))
    for n in range(50):
        await manager.enqueue({"n": n}, callback)
        await manager.enqueue({"request_id": "a b"}, callback)  # refused
    duplicate = [await manager.enqueue({"user_id": "u", "message": "hi"}, callback) for _ in range(2)]
    assert len(set(duplicate)) <= 2
    removed = await manager.enqueue({"n": "removed"}, callback)
    await manager.remove_message(removed)
    await until(lambda: heard_no_more(manager))
    gc.collect()
    assert not [task for task in asyncio.all_tasks() if "accepted" in repr(task)]


async def test_the_callback_of_a_duplicate_is_not_told(manager):
    first, second = Callback(), Callback()
    message = {"user_id": "u", "message": "hi"}
    id = await manager.enqueue(message, first)
    assert await manager.enqueue(message, second) == id
    await manager.get_next_message()
    await manager.remove_message(id)
    await until(lambda: first.statuses == ["queued", "processing", "completed"])
    assert second.calls == []
    await until(lambda: heard_no_more(manager))


@pytest.mark.parametrize("text", ["works", "fails once", "fails"])
async def test_another_process_does_the_work(chat, programs, text, caplog):
    callback = Callback()
    worker = programs(WORKER, CHAT_API_HANDLER="program0:answer")
    assert (await asyncio.to_thread(worker.stdout.readline)) == "started\n"
    id = await chat.enqueue_chat_request("u", text, "s", "i", "t", "c", "p", "m", status_callback=callback)
    final = "error" if text == "fails" else "completed"
    await until(lambda: final in callback.statuses)
    again = {"works": 0, "fails once": 1, "fails": 3}[text]
    assert callback.statuses == ["queued", "processing", *["retry", "processing"] * again, final]
    assert all(message["request_id"] == id and message["message"] == text for message in callback.messages)
    assert [message["status"] for message in callback.messages] == callback.statuses
    response, error = callback.calls[-1][1:]
    assert (response, error and "not now" in error) == (
        (None, True) if text == "fails" else (f"the answer to {text}", None)
    )
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_worker_is_killed(managers, programs, prefix, redis):
    """The callback hears of the second delivery too, and of the end."""
    killed = """
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
    manager = managers(lock_expiry=1)
    callback = Callback()
    await manager.enqueue({"a": "b"}, callback)
    worker = programs(killed, prefix)
    await asyncio.to_thread(worker.wait, 10)

    async def process(id: str) -> None: ...

    await manager.start_processor(process)
    await until(lambda: "completed" in callback.statuses)
    assert callback.statuses == ["queued", "processing", "processing", "completed"]
