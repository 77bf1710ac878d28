"""`chat_api_queue` by the old documentation: requests, users, handlers, and the services of an application."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from bot_logic.services.chat_api_queue import QueuedRequest
from helpers import until
from streams_queue import ConfigurationError, Queue, Reject, Retry

TOKEN = "12345:the-secret-of-the-bot"
ARGUMENTS = ("u1", "hi there", "telegram", "s1", TOKEN, "c1", "private", "m1")
FIELDS = ("user_id", "message", "source_type", "source_id", "response_token", "chat_id", "chat_type", "message_id")

API = """
import asyncio, json, os

failures = {"fails once": 1, "fails": 9, "raises": 9}

async def send_chat_message(text):
    await asyncio.sleep(0.1)
    note("send_chat_message", text)
    if failures.get(text, 0) > 0:
        failures[text] -= 1
        if text == "raises":
            raise ConnectionError("https://api/bot" + os.environ["TOKEN"] + "/send: refused")
        return False, None, "the model is tired"
    return True, f"the answer to {text}", None

def note(*what):
    with open("notes", "a") as notes:
        notes.write(json.dumps(what) + "\\n")
"""
REACTION = """
from bot_logic.services.api_service import note

async def update_to_completed_reaction(source_type, message_id, response_token, chat_id):
    note("update_to_completed_reaction", source_type, message_id, response_token, chat_id)
    if message_id == "no reaction":
        raise ValueError("cannot react")
"""
RESPONSE = """
from bot_logic.services.api_service import note

failures = {"the answer to sent late": 2}

async def send_response(source_type, source_id, text, destination):
    note("send_response", source_type, source_id, text, destination)
    if failures.get(text, 0) > 0:
        failures[text] -= 1
        raise ConnectionError("the platform is away")
"""
MAIN = """
import asyncio, logging, os
from bot_logic.services.chat_api_queue import enqueue_chat_request, start_queue_processor, stop_queue_processor
from bot_logic.services.redis_queue_manager import RedisQueueManager
from bot_logic.services.api_service import note
from streams_queue_compat.chat_api_queue import _chat

logging.basicConfig(level=logging.DEBUG)
_chat.queue.retry_delay_base = 0.05
_chat.queue.max_retries = int(os.environ.get("MAX_RETRIES", "1"))

async def main():
    ended = asyncio.Event()
    async def callback(request, status, response, error):
        note("callback", status, response, error)
        if status in ("completed", "error"):
            ended.set()
    await start_queue_processor()
    id = await enqueue_chat_request("u1", os.environ["TEXT"], "telegram", "s1", os.environ["TOKEN"], "c1", "private",
                                    os.environ["MESSAGE_ID"], callback)
    await ended.wait()
    while await RedisQueueManager("chat_api").get_position(id) != -1:
        await asyncio.sleep(0.01)
    await stop_queue_processor()

asyncio.run(main())
"""


@pytest.fixture
def application(tmp_path: Path, programs):
    """An application with a regular package `bot_logic` of its own, run from its source tree."""
    services = tmp_path / "bot_logic" / "services"
    services.mkdir(parents=True)
    for package in (services.parent, services):
        (package / "__init__.py").write_text("")
    for module in ("chat_api_queue", "redis_queue_manager"):
        (services / f"{module}.py").write_text(f"from streams_queue_compat.{module} import *\n")
    for module, source in {"api_service": API, "reaction_service": REACTION, "response_service": RESPONSE}.items():
        (services / f"{module}.py").write_text(source)

    async def run(text: str, message_id: str = "m1", **environment: str) -> tuple[list[Any], str]:
        program = programs(MAIN, TEXT=text, TOKEN=TOKEN, MESSAGE_ID=message_id, **environment)
        out, noise = await asyncio.to_thread(program.communicate, timeout=20)
        assert program.returncode == 0, noise
        return [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()], out + noise

    return run


# ---- enqueue, look, change


async def test_a_request_from_end_to_end(chat, redis, chat_prefix):
    id = await chat.enqueue_chat_request(*ARGUMENTS)
    other = await chat.enqueue_chat_request("u2", *ARGUMENTS[1:])
    assert await chat.get_queue_position(id) == 1 and await chat.get_queue_position(other) == 2
    assert await chat.get_queue_length() == 2
    request = await chat.get_user_request("u2")
    assert isinstance(request, QueuedRequest) and request.request_id == other
    assert await chat.update_request_status(id, "working") is True
    request = await chat.get_user_request("u1")
    assert (request.request_id, request.status, request.retry_count) == (id, "working", 0)
    assert tuple(getattr(request, name) for name in FIELDS) == ARGUMENTS
    assert request.timestamp == pytest.approx(time.time(), abs=60)
    assert request.dedup_key == (await redis.hget(f"{chat_prefix}:msg:{id}", "dedup_key"))
    taken = await chat.get_next_request()
    assert taken.request_id == id and (await chat.get_next_request()).request_id == id
    assert await chat.remove_request(id) is True
    assert (await chat.get_next_request()).request_id == other
    assert await chat.get_user_request("u1") is None
    assert await chat.get_queue_position(id) == -1
    assert await chat.remove_request(id) is False
    assert await chat.update_request_status(id, "x") is False


async def test_the_hash_of_a_request(chat, redis, chat_prefix):
    async def callback(*_: Any) -> None: ...

    for given in (None, callback):
        id = await chat.enqueue_chat_request(*ARGUMENTS, status_callback=given)
        fields = {
            name: value
            for name, value in (await redis.hgetall(f"{chat_prefix}:msg:{id}")).items()
            if name[0:3] != "_sq"
        }
        assert fields == {
            "request_id": id,
            **dict(zip(FIELDS, ARGUMENTS, strict=True)),
            "timestamp": fields["timestamp"],
            "status": "queued",
            "retry_count": "0",
            "dedup_key": fields["dedup_key"],
            "_has_callback": str(given is not None),
        }
        await chat.remove_request(id)


async def test_duplicates_until_the_first_has_ended(chat):
    id = await chat.enqueue_chat_request(*ARGUMENTS)
    assert await chat.enqueue_chat_request(*ARGUMENTS[:-1], "m2") == id
    assert await chat.enqueue_chat_request("u1", "something else", *ARGUMENTS[2:]) != id
    await chat.remove_request(id)
    assert await chat.enqueue_chat_request(*ARGUMENTS) != id


async def test_a_user_has_a_first_request(chat, redis, chat_prefix):
    ids = [await chat.enqueue_chat_request("u1", f"text {n}", *ARGUMENTS[2:]) for n in range(3)]
    number = await chat.enqueue_chat_request(42, "text", *ARGUMENTS[2:])
    assert (await chat.get_user_request("u1")).request_id == ids[0]
    assert (await chat.get_user_request(42)).request_id == (await chat.get_user_request("42")).request_id == number
    taken = await chat.get_next_request()
    assert (await chat.get_user_request("u1")).request_id == taken.request_id == ids[0]
    await chat._chat.queue.retry_message(ids[0])
    assert (await chat.get_user_request("u1")).request_id == ids[1], "the first one waits for its retry"
    await chat.remove_request(ids[1])
    await redis.zrem(f"{chat_prefix}:queue:main", ids[2])  # an outsider
    assert await chat.get_user_request("u1") is None
    assert await chat.get_user_request("nobody") is None


async def test_a_users_request_that_came_in_by_another_way(chat, managers, at_server, chat_prefix):
    """Programs enqueue chat requests with a manager of their own, too, and lately with the native API."""
    data = {**dict(zip(FIELDS, ARGUMENTS, strict=True)), "user_id": "u7"}
    await chat.get_queue_length()  # the chat queue is in use somewhere
    id = await managers("chat_api").enqueue(data)
    assert (await chat.get_user_request("u7")).request_id == id
    async with Queue[Any](chat_prefix, url=at_server.url, ttl=3600) as native:
        receipt = await native.enqueue({**data, "user_id": "u8"})
    assert (await chat.get_user_request("u8")).request_id == receipt.id
    requests: list[QueuedRequest] = []

    async def answer(request: QueuedRequest) -> str:
        requests.append(request)
        return "yes"

    chat.configure(answer)
    await chat.start_queue_processor()
    await until(lambda: len(requests) == 2)
    assert [request.request_id for request in requests] == [id, receipt.id]
    assert tuple(getattr(requests[1], name) for name in FIELDS) == ("u8", *ARGUMENTS[1:])
    await chat.stop_queue_processor()


async def test_looking_up_a_user_or_a_position_does_not_grow_with_the_queue(chat, redis, chat_prefix):
    costs: list[tuple[int, int]] = []

    async def commands() -> int:
        stats = await redis.info("commandstats")
        return sum(int(row["calls"]) for name, row in stats.items() if "info" not in name and "config" not in name)

    for waiting in (10, 20_000):
        async with redis.pipeline(transaction=False) as pipe:
            for n in range(waiting):
                pipe.hset(f"{chat_prefix}:msg:w{n}", mapping={"timestamp": "5", "user_id": f"u{n}", "message": "hi"})
                pipe.zadd(f"{chat_prefix}:queue:main", {f"w{n}": n})
            await pipe.execute()
        last = await chat.enqueue_chat_request(f"last {waiting}", *ARGUMENTS[1:])
        await chat.get_queue_position((await chat.get_user_request(f"last {waiting}")).request_id)  # scripts are loaded
        await redis.config_resetstat()
        assert (await chat.get_user_request(f"last {waiting}")).request_id == last
        user = await commands()
        await redis.config_resetstat()
        assert await chat.get_queue_position(last) > waiting
        costs.append((user, await commands()))
    await redis.flushall()  # at once, instead of one by one
    assert costs[0] == costs[1], costs
    assert max(costs[0]) < 20


async def test_numbers_and_words_stay_what_they_are(chat):
    id = await chat.enqueue_chat_request("123", "true", "telegram", "-100500", TOKEN, "7", "private", "None")
    request = await chat.get_next_request()
    assert [request.user_id, request.message, request.source_id, request.chat_id, request.message_id] == [
        "123", "true", "-100500", "7", "None",
    ]  # fmt: skip
    await chat.remove_request(id)
    id = await chat.enqueue_chat_request(123, "true", "telegram", -100500, TOKEN, None, "private", 5)
    request = await chat.get_next_request()
    assert [request.user_id, request.source_id, request.chat_id, request.message_id] == [123, -100500, None, 5]


# ---- QueuedRequest


async def test_a_request_to_a_dict_and_back():
    data = {"request_id": "r", **dict(zip(FIELDS, ARGUMENTS, strict=True)), "timestamp": 5.0, "status": "retry"}
    request = QueuedRequest.from_dict({**data, "unknown": 1, "_has_callback": True})
    assert request.to_dict() == {**data, "retry_count": 0, "dedup_key": None}
    assert QueuedRequest.from_dict(request.to_dict()) == request
    assert QueuedRequest.from_dict({}).status == "queued"


async def test_no_token_in_a_repr():
    request = QueuedRequest("r", *ARGUMENTS)
    assert TOKEN not in repr(request) and TOKEN not in str(request) and TOKEN not in f"{request}"


async def test_notify_status(caplog):
    told: list[Any] = []

    async def callback(request: QueuedRequest, status: str, response: Any, error: str | None) -> None:
        told.append((request, status, response, error))
        if status == "error":
            raise RuntimeError("the callback's own fault")

    request = QueuedRequest("r", *ARGUMENTS, status_callback=callback)
    await request.notify_status("completed", "the answer")
    assert told == [(request, "completed", "the answer", None)] and request.status == "completed"
    await request.notify_status("error", error="e")
    assert told[-1] == (request, "error", None, "e")
    assert "the callback's own fault" in caplog.text
    await QueuedRequest("r", *ARGUMENTS).notify_status("completed")


# ---- handlers


async def test_a_configured_handler(chat, redis, chat_prefix):
    requests: list[QueuedRequest] = []
    calls: list[Any] = []
    retries: list[int] = []

    async def answer(request: QueuedRequest) -> str:
        requests.append(request)
        if request.message == "twice" and len(requests) == 1:
            raise ValueError("not now")
        return f"the answer to {request.message}"

    async def callback(request: QueuedRequest, status: str, response: Any, error: str | None) -> None:
        assert request.status == status
        retries.append(request.retry_count)
        calls.append((request.request_id, status, response, error))

    chat.configure(answer)
    await chat.start_queue_processor()
    id = await chat.enqueue_chat_request("u1", "twice", *ARGUMENTS[2:], callback)
    await until(lambda: calls and calls[-1][1] == "completed")
    assert [status for _, status, _, _ in calls] == ["queued", "processing", "retry", "processing", "completed"]
    assert calls[-1] == (id, "completed", "the answer to twice", None)
    assert tuple(getattr(requests[1], name) for name in FIELDS) == ("u1", "twice", *ARGUMENTS[2:])
    assert [request.status for request in requests] == ["processing"] * 2
    assert [request.retry_count for request in requests] == [0, 1]
    assert retries == [0, 0, 1, 1, 1]
    await until(lambda: counted(redis, chat_prefix, 1))
    await chat.stop_queue_processor()


async def test_a_long_response_reaches_the_callback(chat):
    responses: list[Any] = []

    async def answer(request: QueuedRequest) -> str:
        return "long " * 50_000

    async def callback(request: QueuedRequest, status: str, response: Any, error: str | None) -> None:
        if status == "completed":
            responses.append(response)

    chat.configure(answer)
    await chat.start_queue_processor()
    await chat.enqueue_chat_request(*ARGUMENTS, callback)
    await until(lambda: responses)
    assert responses == ["long " * 50_000]
    await chat.stop_queue_processor()


async def counted(redis: Any, chat_prefix: str, number: int) -> bool:
    return int(await redis.hget(f"{chat_prefix}:stats", "processed_requests") or 0) == number


async def test_a_handler_may_instruct_like_a_native_one(chat, redis, chat_prefix):
    runs: list[str] = []

    async def answer(request: QueuedRequest) -> str:
        runs.append(request.message)
        if request.message == "never":
            raise Reject("not for us")
        if runs.count("soon") == 1:
            raise Retry(delay=0.01)
        return "yes"

    chat._chat.queue.retry_delay_base = 3600
    chat.configure(answer)
    ids = [await chat.enqueue_chat_request("u1", text, *ARGUMENTS[2:]) for text in ("never", "soon")]
    await chat.start_queue_processor()
    await until(lambda: counted(redis, chat_prefix, 1))
    assert runs == ["never", "soon", "soon"]
    assert await redis.zrange(f"{chat_prefix}:queue:dlq", 0, -1) == [ids[0]]
    assert await redis.hget(f"{chat_prefix}:msg:{ids[0]}", "error") == "not for us"
    await chat.stop_queue_processor()


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [("slow", "timeout", "the handler took longer than 1 s"), ("raises", "error", "TimeoutError: the model's own")],
)
async def test_a_handler_that_takes_too_long(chat, redis, monkeypatch, text, reason, words, chat_prefix):
    async def answer(request: QueuedRequest) -> str:
        if request.message == "raises":
            raise TimeoutError("the model's own")
        await asyncio.sleep(60)
        return "yes"

    # The worker's own limit comes as long again after it, which no stall of a busy machine may bridge.
    monkeypatch.setattr(chat, "HANDLER_TIMEOUT", 1.0)
    chat._chat.queue.max_retries = 0
    chat.configure(answer)
    id = await chat.enqueue_chat_request("u1", text, *ARGUMENTS[2:])
    await chat.start_queue_processor()
    await until(lambda: redis.zcard(f"{chat_prefix}:queue:dlq"))
    await chat.stop_queue_processor()
    assert await redis.hmget(f"{chat_prefix}:msg:{id}", "_sq_reason", "error") == [reason, words]


async def test_requests_done_are_counted_and_failures_are_not(chat, redis, chat_prefix):
    async def answer(request: QueuedRequest) -> str:
        if request.message == "fails":
            raise ValueError("not now")
        return "yes"

    chat._chat.queue.max_retries = 0
    chat.configure(answer)
    ids = [await chat.enqueue_chat_request("u1", text, *ARGUMENTS[2:]) for text in ("fails", "a", "b")]
    await chat.start_queue_processor()
    await until(lambda: counted(redis, chat_prefix, 2))
    assert await redis.zrange(f"{chat_prefix}:queue:dlq", 0, -1) == [ids[0]]
    assert (await chat._chat.queue.get_stats())["processed_requests"] == 2
    await chat.stop_queue_processor()


@pytest.mark.parametrize("concurrency", [None, "", "3"])
async def test_concurrency(chat, monkeypatch, concurrency):
    at_work: list[str] = []
    gate = asyncio.Event()

    async def answer(request: QueuedRequest) -> str:
        at_work.append(request.request_id)
        await gate.wait()
        return "yes"

    if concurrency is not None:
        monkeypatch.setenv("CHAT_API_CONCURRENCY", concurrency)
    chat.configure(answer)
    for n in range(4):
        await chat.enqueue_chat_request(f"u{n}", "hi", *ARGUMENTS[2:])
    await chat.start_queue_processor()
    expected = int(concurrency or 1)
    await until(lambda: len(at_work) == expected)
    await asyncio.sleep(0.2)
    assert len(at_work) == expected
    gate.set()
    await until(lambda: len(at_work) == 4)
    await chat.stop_queue_processor()


@pytest.mark.parametrize("switch", [None, "1", "0"])
async def test_one_users_requests_one_after_the_other(chat, chat_prefix, monkeypatch, redis, switch):
    at_work: list[str] = []
    gate = asyncio.Event()

    async def answer(request: QueuedRequest) -> str:
        at_work.append(request.message)
        await gate.wait()
        return "yes"

    monkeypatch.setenv("CHAT_API_CONCURRENCY", "8")
    if switch is not None:
        monkeypatch.setenv("CHAT_API_ONE_AT_A_TIME", switch)
        await redis.hset(f"{chat_prefix}:meta", mapping={"limit_key": "user_id", "limit_concurrency_per_key": "1"})
    chat.configure(answer)
    for n in range(4):
        await chat.enqueue_chat_request("u1", str(n), *ARGUMENTS[2:])
    await chat.enqueue_chat_request("u2", "other", *ARGUMENTS[2:])
    await chat.start_queue_processor()
    expected = ["0", "1", "2", "3", "other"] if switch == "0" else ["0", "other"]
    await until(lambda: len(at_work) == len(expected))
    await asyncio.sleep(0.2)
    assert sorted(at_work) == expected
    gate.set()
    await until(lambda: len(at_work) == 5)
    assert [words for words in at_work if words != "other"] == ["0", "1", "2", "3"]
    await chat.stop_queue_processor()


async def test_limits_that_somebody_set_stay(chat, chat_prefix, monkeypatch, redis):
    limits = {"limit_key": "chat_id", "limit_work_per_key": "1/1.0", "limit_concurrency_per_key": "5"}
    await redis.hset(f"{chat_prefix}:meta", mapping=limits)

    async def answer(request: QueuedRequest) -> str:
        return "yes"

    chat.configure(answer)
    for switch in ("1", "0"):
        monkeypatch.setenv("CHAT_API_ONE_AT_A_TIME", switch)
        await chat.enqueue_chat_request("u1", switch, *ARGUMENTS[2:])
        await chat.start_queue_processor()
        await until(lambda: _is_empty(redis, chat_prefix))
        await chat.stop_queue_processor()
        assert limits.items() <= (await redis.hgetall(f"{chat_prefix}:meta")).items()


async def _is_empty(redis, chat_prefix):
    return not await redis.exists(f"{chat_prefix}:queue:main")


async def test_a_bad_switch(chat, monkeypatch):
    async def answer(request: QueuedRequest) -> str:
        return "yes"

    chat.configure(answer)
    monkeypatch.setenv("CHAT_API_ONE_AT_A_TIME", "yes")
    with pytest.raises(ConfigurationError, match="CHAT_API_ONE_AT_A_TIME='yes'"):
        await chat.start_queue_processor()


@pytest.mark.parametrize("concurrency", ["0", "-1", "many", "1.5"])
async def test_a_bad_concurrency(chat, monkeypatch, concurrency):
    async def answer(request: QueuedRequest) -> str:
        return "yes"

    chat.configure(answer)
    monkeypatch.setenv("CHAT_API_CONCURRENCY", concurrency)
    with pytest.raises(ConfigurationError, match="CHAT_API_CONCURRENCY"):
        await chat.start_queue_processor()
    with pytest.raises(ConfigurationError, match="CHAT_API_CONCURRENCY"):
        await chat.process_chat_api_queue()


@pytest.mark.parametrize(
    "named", ["nonesuch", "nonesuch:f", "json:nonesuch", ":f", "json:", ".json:f", "json:decoder", "breaks:f", "a:b:c"]
)
async def test_a_bad_handler_in_the_environment(chat, monkeypatch, tmp_path, named):
    (tmp_path / "breaks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHAT_API_HANDLER", named)
    with pytest.raises(ConfigurationError, match="CHAT_API_HANDLER"):
        await chat.start_queue_processor()


@pytest.mark.parametrize("start", ["start_queue_processor", "process_chat_api_queue"])
async def test_with_nothing_to_answer_with(chat, start, monkeypatch):
    monkeypatch.setenv("CHAT_API_HANDLER", "")
    with pytest.raises(ConfigurationError) as caught:
        await getattr(chat, start)()
    for remedy in ("api_service", "configure(handler)", "CHAT_API_HANDLER=module:function"):
        assert remedy in str(caught.value)
    with pytest.raises(ConfigurationError):
        await chat.process_chat_request(QueuedRequest("r", *ARGUMENTS))


async def test_configure_with_none_goes_back_to_the_services(chat):
    async def answer(request: QueuedRequest) -> str:
        return "yes"

    chat.configure(answer)
    chat.configure(None)
    with pytest.raises(ConfigurationError):
        await chat.start_queue_processor()


async def test_starting_and_stopping_twice_is_logged(chat, caplog):
    async def answer(request: QueuedRequest) -> str:
        return "yes"

    chat.configure(answer)
    await chat.stop_queue_processor()
    await chat.start_queue_processor()
    await chat.start_queue_processor()
    await chat.stop_queue_processor()
    await chat.stop_queue_processor()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["no chat processor runs", "the chat processor runs already", "no chat processor runs"]


async def test_process_chat_api_queue_works_until_cancelled(chat, redis, chat_prefix):
    started = asyncio.Event()

    async def answer(request: QueuedRequest) -> str:
        started.set()
        await asyncio.sleep(0 if request.message == "quick" else 60)
        return "yes"

    chat.configure(answer)
    quick = await chat.enqueue_chat_request("u1", "quick", *ARGUMENTS[2:])
    task = asyncio.create_task(chat.process_chat_api_queue())
    await until(lambda: counted(redis, chat_prefix, 1))
    assert await chat.get_queue_position(quick) == -1
    started.clear()
    slow = await chat.enqueue_chat_request("u1", "slow", *ARGUMENTS[2:])
    await started.wait()
    task.cancel()
    await asyncio.wait([task], timeout=3)
    assert task.cancelled()
    assert await redis.hget(f"{chat_prefix}:msg:{slow}", "status") == "queued"
    assert not await redis.exists(f"{chat_prefix}:lock:{slow}")


# ---- driven by hand


@pytest.mark.parametrize("text", ["works", "fails"])
async def test_a_request_processed_by_hand(chat, redis, text, chat_prefix):
    calls: list[Any] = []

    async def answer(request: QueuedRequest) -> str:
        if request.message == "fails":
            raise ValueError(f"not with {TOKEN}")
        return "the answer"

    async def callback(request: QueuedRequest, status: str, response: Any, error: str | None) -> None:
        calls.append((status, response, error))

    chat.configure(answer)
    await chat.enqueue_chat_request("u1", text, *ARGUMENTS[2:], callback)
    request = await chat.get_next_request()
    response = await chat.process_chat_request(request)
    last: tuple[str, str | None, str | None]
    if text == "works":
        assert response == "the answer" and request.status == "completed"
        last = ("completed", "the answer", None)
    else:
        assert response is None and request.status == "error"
        last = ("error", None, "not with ***")
    await until(lambda: calls[-1:] == [last])
    assert await counted(redis, chat_prefix, int(text == "works"))
    assert await chat.remove_request(request.request_id) is True
    await asyncio.sleep(0.05)
    assert [call[0] for call in calls] == ["queued", "processing", last[0]]


async def test_a_request_that_was_never_queued(chat):
    told: list[Any] = []

    async def answer(request: QueuedRequest) -> str:
        return "the answer"

    async def callback(request: QueuedRequest, status: str, response: Any, error: str | None) -> None:
        told.append((status, response, error))

    chat.configure(answer)
    request = QueuedRequest("r", *ARGUMENTS, status_callback=callback)
    assert await chat.process_chat_request(request) == "the answer"
    assert told == [("completed", "the answer", None)]


# ---- the services of an application


async def test_the_services(application, redis, chat_prefix):
    notes, log = await application("works")
    assert notes == [
        ["callback", "queued", None, None],
        ["callback", "processing", None, None],
        ["send_chat_message", "works"],
        ["callback", "completed", "the answer to works", None],
        ["update_to_completed_reaction", "telegram", "m1", TOKEN, "c1"],
        [
            "send_response", "telegram", "s1", "the answer to works",
            {"bot_token": TOKEN, "chat_id": "c1", "chat_type": "private"},
        ],
    ]  # fmt: skip
    assert await counted(redis, chat_prefix, 1)
    assert TOKEN not in log


async def test_services_that_fail_once(application, redis, chat_prefix):
    notes, _ = await application("fails once")
    assert [note[1] for note in notes if note[0] == "callback"] == [
        "queued", "processing", "retry", "processing", "completed",
    ]  # fmt: skip
    assert ["callback", "retry", None, "the model is tired"] in notes
    assert [note[0] for note in notes if note[0] != "callback"] == [
        "send_chat_message", "send_chat_message", "update_to_completed_reaction", "send_response",
    ]  # fmt: skip
    assert await counted(redis, chat_prefix, 1)


async def test_an_answer_that_cannot_be_sent_at_once(application, redis, chat_prefix):
    """The work was done and paid for: only the sending is tried again."""
    notes, _ = await application("sent late", MAX_RETRIES="2")
    assert [note[1] for note in notes if note[0] == "callback"] == ["queued", "processing", "completed"]
    assert [note[0] for note in notes if note[0] != "callback"] == [
        "send_chat_message", "update_to_completed_reaction", "send_response", "send_response", "send_response",
    ]  # fmt: skip
    assert await redis.zcard(f"{chat_prefix}:queue:dlq") == 0
    assert await counted(redis, chat_prefix, 1)


@pytest.mark.parametrize(
    ("text", "words"), [("fails", "the model is tired"), ("raises", "https://api/bot***/send: refused")]
)
async def test_services_that_fail(application, redis, text, words, chat_prefix):
    notes, log = await application(text)
    heard = [note[1:] for note in notes if note[0] == "callback"]
    assert [status for status, _, _ in heard] == ["queued", "processing", "retry", "processing", "error"]
    assert words in heard[-1][2]
    (answer,) = [note for note in notes if note[0] == "send_response"]
    assert answer[1:3] == ["telegram", "s1"] and words in answer[3]
    assert answer[4] == {"bot_token": TOKEN, "chat_id": "c1", "chat_type": "private"}
    done = [note[0] for note in notes if note[0] != "callback"]
    assert done == ["send_chat_message"] * 2 + ["send_response"], "the user is told once, and only when it is over"
    assert TOKEN not in log and TOKEN not in json.dumps(heard)
    (id,) = await redis.zrange(f"{chat_prefix}:queue:dlq", 0, -1)
    assert words in await redis.hget(f"{chat_prefix}:msg:{id}", "error")
    assert await counted(redis, chat_prefix, 0)


async def test_a_reaction_that_fails_leaves_the_answer(application, redis, chat_prefix):
    notes, log = await application("works", message_id="no reaction")
    assert [note[0] for note in notes if note[0] != "callback"] == [
        "send_chat_message", "update_to_completed_reaction", "send_response",
    ]  # fmt: skip
    assert "cannot react" in log and TOKEN not in log
    assert await counted(redis, chat_prefix, 1)


async def test_a_service_that_is_missing(application, tmp_path, programs):
    (tmp_path / "bot_logic" / "services" / "response_service.py").write_text("")
    program = programs(MAIN, TEXT="works", TOKEN=TOKEN, MESSAGE_ID="m1")
    _, noise = await asyncio.to_thread(program.communicate, timeout=20)
    assert program.returncode == 1
    assert "ConfigurationError" in noise and "response_service has no send_response" in noise
