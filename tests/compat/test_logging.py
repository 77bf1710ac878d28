"""What the log says, switched on as the old documentation has it: each operation, and nobody's secrets."""

from __future__ import annotations

import logging

import pytest

from bot_logic.services.chat_api_queue import QueuedRequest
from helpers import until

TOKEN = "12345:the-secret-of-the-bot"
TEXT = "a-text-that-is-nobody-elses-business"
ARGUMENTS = ("u1", TEXT, "telegram", "s1", TOKEN, "c1", "private", "m1")


@pytest.fixture(autouse=True)
def _switched_on(caplog):
    logging.getLogger("bot_logic").setLevel(logging.DEBUG)
    logging.getLogger("streams_queue").setLevel(logging.DEBUG)
    yield
    logging.getLogger("bot_logic").setLevel(logging.NOTSET)
    logging.getLogger("streams_queue").setLevel(logging.NOTSET)


def said(caplog, name: str) -> str:
    """What was logged last of this operation."""
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("bot_logic.") and record.getMessage().startswith(f"{name}(")
    ]
    assert lines, f"nothing was logged of {name}"
    return str(lines[-1])


async def test_each_operation_of_the_manager(manager, caplog):
    id = await manager.enqueue({"message": TEXT, "response_token": TOKEN})
    assert id in said(caplog, "enqueue")
    await manager.get_position(id)
    assert said(caplog, "get_position") == f"get_position({id}) -> 1"
    await manager.get_message(id)
    await manager.update_message(id, {"message": TEXT + "!", "response_token": TOKEN})
    await manager.try_acquire_lock(id, "me")
    await manager.release_lock(id, "me")
    await manager.get_next_message()
    assert id in said(caplog, "get_next_message")
    await manager.retry_message(id)
    assert said(caplog, "retry_message") == f"retry_message({id}) -> True"
    await manager.move_to_dlq(id, TEXT)
    await manager.get_queue_length()
    await manager.get_stats()
    await manager.clear_deduplication_key("u", TEXT)
    await manager.clear_deduplication_key(message=TEXT, user_id="u")
    await manager.clear_deduplication_key_by_id(id)
    await manager.remove_message(id)
    await manager.remove_message(message_id=id)
    for name in (
        "get_message", "update_message", "try_acquire_lock", "release_lock", "move_to_dlq", "remove_message",
        "get_queue_length", "get_stats", "clear_deduplication_key", "clear_deduplication_key_by_id",
    ):  # fmt: skip
        assert said(caplog, name)
    assert TEXT not in caplog.text and TOKEN not in caplog.text


async def test_a_callback_that_raises_with_a_secret(chat, manager, caplog):
    async def callback(*_: object) -> None:
        raise ConnectionError(f"https://api/bot{TOKEN}/send: refused")

    await manager.enqueue({"message": TEXT, "response_token": TOKEN}, callback)
    await chat.enqueue_chat_request(*ARGUMENTS, callback)
    await until(lambda: caplog.text.count("ConnectionError: https://api/bot***/send: refused") == 2)
    assert TOKEN not in caplog.text


async def test_each_operation_of_the_chat_queue(chat, caplog):
    async def answer(request: QueuedRequest) -> str:
        return TEXT

    async def callback(*_: object) -> None: ...

    chat.configure(answer)
    id = await chat.enqueue_chat_request(*ARGUMENTS, callback)
    await chat.get_queue_position(id)
    await chat.get_user_request("u1")
    await chat.get_queue_length()
    request = await chat.get_next_request()
    await chat.update_request_status(id, "working")
    await chat.process_chat_request(request)
    await chat.remove_request(id)
    await chat.try_acquire_chat_api_lock()
    await chat.release_chat_api_lock()
    for name in ("enqueue", "get_position", "get_user_request", "get_queue_length", "get_next_message",
                 "update_message", "remove_message", "try_acquire_lock", "release_lock"):  # fmt: skip
        assert said(caplog, name)
    await chat.start_queue_processor()
    await chat.enqueue_chat_request(*ARGUMENTS, callback)
    await until(lambda: empty(chat))
    await chat.stop_queue_processor()
    assert "the chat processor started" in caplog.text and "the chat processor stopped" in caplog.text
    assert TEXT not in caplog.text and TOKEN not in caplog.text


async def empty(chat) -> bool:
    return bool(await chat.get_queue_length() == 0)


async def test_each_failed_attempt_under_the_documented_name(chat, manager, caplog):
    async def fail(*_: object) -> None:
        raise ValueError(f"https://api/bot{TOKEN}/send:\nrefused")

    for queue in (chat._chat.queue, manager):
        queue.max_retries = 1
    chat.configure(fail)
    ids = [
        await chat.enqueue_chat_request(*ARGUMENTS),
        await manager.enqueue({"message": TEXT, "response_token": TOKEN}),
    ]
    await chat.start_queue_processor()
    await manager.start_processor(fail)
    expected = {
        f"message {id} failed in attempt {attempt}: ValueError: https://api/bot***/send: refused"
        for id in ids
        for attempt in (1, 2)
    }
    await until(lambda: expected == {
        record.getMessage() for record in caplog.records
        if record.name.startswith("bot_logic.") and record.levelno == logging.WARNING
    })  # fmt: skip
    await chat.stop_queue_processor()
    assert TEXT not in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize("by_hand", [False, True])
async def test_failures(chat, caplog, by_hand):
    """The words of an application's own error are its own; the token in them is not shown."""

    async def answer(request: QueuedRequest) -> str:
        raise ValueError(f"https://api/bot{request.response_token}/send: refused")

    chat._chat.queue.max_retries = 1
    chat.configure(answer)
    id = await chat.enqueue_chat_request(*ARGUMENTS)
    if by_hand:
        await chat.process_chat_request(await chat.get_next_request())
        await chat.remove_request(id)
    else:
        await chat.start_queue_processor()
        await until(lambda: empty(chat))
        await chat.stop_queue_processor()
    assert "refused" in caplog.text
    assert TEXT not in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize(
    "refused",
    [
        {"request_id": "a b", "message": TEXT, "response_token": TOKEN},
        {"message": TEXT + "\ud800", "response_token": TOKEN},
        {"message": TEXT * 40_000, "response_token": TOKEN},
        {"message": {TEXT: {object()}}, "response_token": TOKEN},
        {"user_id": TEXT + "\ud800", "message": TEXT, "response_token": TOKEN},
        {"message": TEXT, "response_token": TOKEN, "_sq_x": TEXT},
    ],
)
async def test_refusals(manager, caplog, refused):
    assert await manager.enqueue(refused) is None
    assert [record.levelname for record in caplog.records if "enqueue" in record.getMessage()] == ["ERROR"]
    assert TEXT not in caplog.text and TOKEN not in caplog.text


async def test_nothing_is_said_at_the_usual_level(manager, caplog):
    logging.getLogger("bot_logic").setLevel(logging.WARNING)
    logging.getLogger("streams_queue").setLevel(logging.WARNING)
    caplog.clear()
    id = await manager.enqueue({"a": "b"})
    await manager.get_next_message()
    await manager.remove_message(id)
    assert not caplog.records
