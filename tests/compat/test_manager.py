"""Each method of `RedisQueueManager` by the table of the old documentation, its answers for what is wrong included."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import hashlib
import logging
import socket
import time
import uuid
from typing import Any

import pytest

import servers
from bot_logic.services.redis_queue_manager import RedisQueueManager
from compat.old_programs import decoded, encoded
from helpers import until

VALUES: dict[str, Any] = {
    "text": "ä \x00\r\n\u202e 🎈",
    "digits": "123",
    "word": "true",
    "none": "None",
    "empty": "",
    "number": 12345678901234567890,
    "fraction": 0.1,
    "yes": True,
    "nothing": None,
    "list": [1, "2", None, [True]],
    "dict": {"a": {"b": [1.5]}},
    "tuple": (1, "x"),
    "set": {1},
    "frozen": frozenset({"x"}),
    "empty_list": [],
}
MISSING = ("nonesuch", "", "global_lock", "with space", "ä", "x" * 200, "\ud800")


async def main(redis, manager: RedisQueueManager) -> list[str]:
    return list(await redis.zrange(manager.queue_main_key, 0, -1))


# ---- enqueue


async def test_enqueue_fills_what_is_missing(manager, redis):
    before = time.time()
    id = await manager.enqueue({"job": "x"})
    assert str(uuid.UUID(id, version=4)) == id
    message = await manager.get_message(id)
    assert before - 1 < message.pop("timestamp") < time.time() + 1
    assert message == {"job": "x", "request_id": id, "status": "queued", "retry_count": 0, "_has_callback": False}


async def test_enqueue_takes_the_id_given(manager, redis):
    assert await manager.enqueue({"request_id": "mine.1:a-b_c"}) == "mine.1:a-b_c"
    assert await manager.enqueue({"request_id": 17}) == "17"
    assert len(await manager.enqueue({"request_id": None})) == 36
    assert len(await manager.enqueue({"request_id": ""})) == 36
    assert len(await main(redis, manager)) == 4


async def test_values_come_back_as_they_were_put_in(manager):
    id = await manager.enqueue(VALUES)
    message = await manager.get_message(id)
    assert {name: message[name] for name in VALUES} == VALUES
    assert {name: type(message[name]) for name in VALUES} == {name: type(value) for name, value in VALUES.items()}


async def test_values_are_stored_as_old_tools_read_them(manager, redis, prefix):
    id = await manager.enqueue(VALUES)
    fields = await redis.hgetall(f"{prefix}:msg:{id}")
    for name, value in VALUES.items():
        if isinstance(value, str):
            assert fields[name] == value
        else:
            assert decoded(fields[name]) == decoded(encoded(value))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (dt.date(2024, 5, 17), "2024-05-17"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (1 + 2j, "(1+2j)"),
    ],
)
async def test_everything_else_is_stored_as_its_text(manager, redis, prefix, value, stored):
    id = await manager.enqueue({"value": value})
    assert await redis.hget(f"{prefix}:msg:{id}", "value") == stored
    assert (await manager.get_message(id))["value"] == stored
    assert await manager.update_message(id, {"other": value})
    assert (await manager.get_message(id))["other"] == stored


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ([(1, 2), (3, 4)], [[1, 2], [3, 4]]),
        ({1: "one", None: "no"}, {"1": "one", "null": "no"}),
        ({"point": (1, 2)}, {"point": [1, 2]}),
        (((1, 2), (3,)), ([1, 2], [3])),
        ({(1, 2)}, [[1, 2]]),
    ],
)
async def test_what_json_changes_comes_back_as_json_has_it(manager, value, back):
    id = await manager.enqueue({"value": value})
    assert (await manager.get_message(id))["value"] == back


async def test_a_message_may_have_fields_of_any_documented_name(manager):
    payload = {"error": "of the job", "last_error": "x", "next_retry": "never", "type": "a", "data": {"status": 1}}
    id = await manager.enqueue(payload)
    message = await manager.get_message(id)
    assert {name: message[name] for name in payload} == payload


async def test_a_message_given_back_starts_anew(manager, redis):
    data = {**await manager.get_message(await manager.enqueue({"request_id": "a"})), "status": "error"}
    await manager.remove_message("a")
    await manager.enqueue({**data, "request_id": "b", "retry_count": 2})
    message = await manager.get_message("b")
    assert (message["status"], message["retry_count"]) == ("queued", 0)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"request_id": "global_lock"}, "reserved"),
        ({"request_id": "a b"}, "characters"),
        ({"request_id": "x" * 129}, "characters"),
        ({"text": "\ud800"}, "surrogates not allowed"),
        ({"user_id": "\ud800", "message": "hi"}, "surrogates not allowed"),
        ({"big": "x" * (1 << 20)}, "are allowed"),
        ({"n": 10**5000}, "digits"),
        ({"deep": {"x": {1, 2}}}, "deep"),
        ({"_sq_entry": "n1-1"}, "belongs to the engine"),
        ({5: "five"}, "key 5"),
        (["no", "dict"], "is a list"),
        (None, "is a NoneType"),
    ],
)
async def test_a_refused_message_is_logged_with_the_reason_and_not_written(
    manager, redis, prefix, caplog, message, reason
):
    assert await manager.get_queue_length() == 0  # connected
    before = await redis.dbsize()
    assert await manager.enqueue(message) is None
    assert reason in caplog.text and "enqueue" in caplog.text
    assert await redis.dbsize() == before


async def test_the_callers_timestamp_stays_and_the_place_is_the_servers(manager, redis, prefix):
    first = await manager.enqueue({"timestamp": time.time() + 7200.5})
    second = await manager.enqueue({"timestamp": 5})
    assert await main(redis, manager) == [first, second]
    assert abs(await redis.zscore(manager.queue_main_key, first) - time.time()) < 60
    assert (await manager.get_message(second))["timestamp"] == 5
    assert float(await redis.hget(f"{prefix}:msg:{first}", "timestamp")) > time.time() + 7000


@pytest.mark.parametrize("message", [{"user_id": "u"}, {"message": "hi"}, {"user_id": "", "message": "hi"}])
async def test_only_messages_with_user_and_text_are_deduplicated(manager, redis, prefix, message):
    assert await manager.enqueue(message) != await manager.enqueue(message)
    assert not await redis.keys(f"{prefix}:dedup:*")


async def test_a_duplicate_gets_the_existing_id(manager, redis, prefix):
    id = await manager.enqueue({"user_id": 7, "message": "hé"})
    assert await manager.enqueue({"user_id": "7", "message": "hé", "request_id": "other"}) == id
    assert await redis.get(f"{prefix}:dedup:{hashlib.md5('7:hé'.encode()).hexdigest()}") == id
    assert await redis.hget(manager.stats_key, "total_messages") == "1"
    assert await main(redis, manager) == [id]


async def test_the_same_id_again_while_it_waits_changes_nothing(manager):
    assert await manager.enqueue({"request_id": "a", "n": 1}) == await manager.enqueue({"request_id": "a", "n": 2})
    assert (await manager.get_message("a"))["n"] == 1
    assert await manager.get_queue_length() == 1


@pytest.mark.parametrize("ended", ["remove_message", "finished", "dead letter"])
async def test_an_id_may_be_used_again_when_its_message_has_ended(manager, ended):
    await manager.enqueue({"request_id": "nightly", "n": 1})
    if ended == "remove_message":
        await manager.remove_message("nightly")
    elif ended == "dead letter":
        await manager.move_to_dlq("nightly", "broken")
    else:
        assert await manager.get_next_message() == "nightly"
        await manager.remove_message("nightly")
    assert await manager.enqueue({"request_id": "nightly", "n": 2}) == "nightly"
    message = await manager.get_message("nightly")
    assert (message["n"], message["status"]) == (2, "queued") and "error" not in message
    assert await manager.get_queue_length(include_dlq=True) == 1
    assert await manager.get_next_message() == "nightly"


# ---- look


async def test_positions(manager, redis):
    ids = [await manager.enqueue({}) for _ in range(3)]
    assert [await manager.get_position(id) for id in ids] == [1, 2, 3]
    manager.retry_delay_base = 60
    assert await manager.retry_message(ids[0])
    manager.retry_delay_base = 30
    assert await manager.retry_message(ids[1])
    assert [await manager.get_position(id) for id in ids] == [3, 2, 1]
    await manager.move_to_dlq(ids[2], "x")
    assert await manager.get_position(ids[2]) == -1
    assert await manager.get_position("nonesuch") == -1


async def test_lengths_and_statistics(manager, redis):
    ids = [await manager.enqueue({}) for _ in range(5)]
    manager.retry_delay_base = 60
    await manager.retry_message(ids[0])
    await manager.retry_message(ids[1])
    await manager.move_to_dlq(ids[2], "x")
    assert await manager.get_queue_length() == 4
    assert await manager.get_queue_length(include_retry=False) == 2
    assert await manager.get_queue_length(include_retry=False, include_dlq=True) == 3
    assert await manager.get_queue_length(True, True) == 5
    await redis.hincrby(manager.stats_key, "of_another_program", 9)
    stats = await manager.get_stats()
    documented = {
        "total_messages": 5, "retry_count": 2, "dlq_messages": 1, "of_another_program": 9,
        "main_queue_length": 2, "retry_queue_length": 2, "dlq_length": 1,
    }  # fmt: skip
    assert {name: stats[name] for name in documented} == documented


async def test_statistics_of_an_empty_queue(manager):
    assert await manager.get_stats() == {"main_queue_length": 0, "retry_queue_length": 0, "dlq_length": 0}


# ---- change


async def test_update_writes_and_refreshes_the_time_to_live(manager, redis, prefix):
    id = await manager.enqueue({"a": "1"})
    await redis.expire(f"{prefix}:msg:{id}", 100)
    assert await manager.update_message(id, {"a": 2, "b": [1], "status": "working"}) is True
    message = await manager.get_message(id)
    assert (message["a"], message["b"], message["status"]) == (2, [1], "working")
    assert 3590 < await redis.ttl(f"{prefix}:msg:{id}") <= 3600
    await redis.expire(f"{prefix}:msg:{id}", 100)
    assert await manager.update_message(id, {}) is True
    assert await redis.ttl(f"{prefix}:msg:{id}") > 3590


async def test_an_update_that_cannot_be_stored_is_logged(manager, redis, caplog):
    id = await manager.enqueue({"a": "1"})
    assert await manager.update_message(id, {"a": "2", "b": "\ud800"}) is False
    assert await manager.update_message(id, {"a": "2", "_sq_owner": "me"}) is False
    assert "surrogates" in caplog.text and "_sq_owner" in caplog.text
    assert (await manager.get_message(id))["a"] == "1"


@pytest.mark.parametrize("place", ["main", "retry", "dlq"])
async def test_remove_takes_it_out_of_everywhere(manager, redis, prefix, place):
    manager.retry_delay_base = 60
    id = await manager.enqueue({"user_id": "u", "message": "hi"})
    if place != "main":
        await (manager.retry_message(id) if place == "retry" else manager.move_to_dlq(id, "x"))
    assert await redis.zscore(f"{prefix}:queue:{place}", id)
    assert await manager.remove_message(id) is True
    assert not await redis.keys(f"{prefix}:queue:*")
    assert not await redis.exists(f"{prefix}:msg:{id}", f"{prefix}:lock:{id}")
    assert not await redis.keys(f"{prefix}:dedup:*")
    assert await manager.remove_message(id) is False


async def test_remove_leaves_the_slot_of_a_later_message(manager, redis, prefix):
    first = await manager.enqueue({"user_id": "u", "message": "hi"})
    await manager.clear_deduplication_key("u", "hi")
    second = await manager.enqueue({"user_id": "u", "message": "hi"})
    await manager.remove_message(first)
    assert await manager.enqueue({"user_id": "u", "message": "hi"}) == second


@pytest.mark.parametrize("place", ["main", "retry"])
async def test_a_dead_letter(manager, redis, prefix, place):
    id = await manager.enqueue({"a": "b"})
    manager.retry_delay_base = 60
    if place == "retry":
        await manager.retry_message(id)
    assert await manager.move_to_dlq(id, "too bad") is True
    message = await manager.get_message(id)
    assert (message["status"], message["error"]) == ("error", "too bad")
    died = await redis.zscore(f"{prefix}:queue:dlq", id)
    assert message["moved_to_dlq_at"] == pytest.approx(died, abs=0.001) == pytest.approx(time.time(), abs=60)
    assert await redis.zscore(f"{prefix}:queue:main", id) is await redis.zscore(f"{prefix}:queue:retry", id) is None


async def test_retries_wait_twice_as_long_each_time_and_end_in_the_dead_letters(manager, redis, prefix):
    manager.retry_delay_base = 60
    id = await manager.enqueue({"a": "b"})
    for count, delay in enumerate((60, 120, 240), 1):
        assert await manager.retry_message(id) is True
        due = await redis.zscore(f"{prefix}:queue:retry", id)
        message = await manager.get_message(id)
        assert (message["status"], message["retry_count"]) == ("retry", count)
        assert message["next_retry"] == pytest.approx(due, abs=0.001) == pytest.approx(time.time() + delay, abs=5)
        assert await redis.zscore(f"{prefix}:queue:main", id) is None
    await manager.update_message(id, {"last_error": "the last straw"})
    assert await manager.retry_message(id) is True
    message = await manager.get_message(id)
    assert (message["status"], message["error"], message["last_error"]) == ("error", "the last straw", "the last straw")
    assert await redis.zscore(f"{prefix}:queue:dlq", id)
    assert (await manager.get_stats())["retry_count"] == 3


async def test_what_is_missing_is_answered_with_no(manager, redis, caplog):
    await manager.enqueue({"request_id": "other"})
    for id in MISSING:
        assert await manager.get_position(id) == -1
        assert await manager.get_message(id) is None
        assert await manager.update_message(id, {"a": 1}) is False
        assert await manager.remove_message(id) is False
        assert await manager.move_to_dlq(id, "x") is False
        assert await manager.retry_message(id) is False
        assert await manager.clear_deduplication_key_by_id(id) is False
    assert await manager.clear_deduplication_key("nobody", "nothing") is False
    assert await main(redis, manager) == ["other"] and await manager.get_queue_length(True, True) == 1


async def test_the_lock_of_all_old_workers_is_no_messages_lock(manager, redis, prefix):
    assert await manager.try_acquire_lock("global_lock", "processor")
    await manager.remove_message("global_lock")
    await manager.retry_message("global_lock")
    await manager.move_to_dlq("global_lock", "x")
    assert await redis.get(f"{prefix}:lock:global_lock") == "processor"


async def test_get_next_message_of_an_empty_queue(manager):
    assert await manager.get_next_message() is None


# ---- locks and slots


async def test_locks(manager, redis, prefix):
    assert await manager.try_acquire_lock("m", "one") is True
    assert await redis.get(f"{prefix}:lock:m") == "one"
    assert 0 < await redis.pttl(f"{prefix}:lock:m") <= 2000
    assert await manager.try_acquire_lock("m", "two") is False
    assert await manager.try_acquire_lock("m", "one") is False
    assert await manager.release_lock("m", "two") is False
    assert await redis.get(f"{prefix}:lock:m") == "one"
    assert await manager.release_lock("m", "one") is True
    assert not await redis.exists(f"{prefix}:lock:m")
    assert await manager.release_lock("m", "anybody") is True


async def test_a_lock_is_waited_for(manager, redis, prefix):
    await redis.set(f"{prefix}:lock:m", "one", px=300)
    begun = time.monotonic()
    assert await manager.try_acquire_lock("m", "two", timeout=0.15) is False
    assert 0.1 < time.monotonic() - begun < 0.3
    assert await manager.try_acquire_lock("m", "two", timeout=5) is True
    assert time.monotonic() - begun < 2


async def test_clearing_slots(manager, redis, prefix):
    message = {"user_id": "u", "message": "hi"}
    first = await manager.enqueue(message)
    assert await manager.clear_deduplication_key("u", "hi") is True
    second = await manager.enqueue(message)
    assert second != first
    assert await manager.clear_deduplication_key_by_id(first) is False  # the second's
    assert await manager.clear_deduplication_key_by_id(second) is True
    assert await manager.enqueue(message) not in (first, second)


# ---- attributes


async def test_attributes_count_from_when_they_are_set(manager, redis, prefix):
    manager.default_ttl, manager.dedup_expiry, manager.lock_expiry = 60, 30, 20
    manager.retry_delay_base, manager.max_retries = 40, 1
    id = await manager.enqueue({"user_id": "u", "message": "hi"})
    assert 50 < await redis.ttl(f"{prefix}:msg:{id}") <= 60
    (slot,) = await redis.keys(f"{prefix}:dedup:*")
    assert 25 < await redis.ttl(slot) <= 30
    await manager.try_acquire_lock("x", "me")
    assert 15 < await redis.ttl(f"{prefix}:lock:x") <= 20
    assert await manager.retry_message(id)
    assert await redis.zscore(f"{prefix}:queue:retry", id) == pytest.approx(time.time() + 40, abs=5)
    manager.max_retries = 0
    assert await manager.retry_message(id)
    assert await redis.zscore(f"{prefix}:queue:dlq", id)


async def test_without_a_time_to_live(managers, redis, prefix):
    manager = managers(default_ttl=None)
    id = await manager.enqueue({"a": "b"})
    assert await redis.ttl(f"{prefix}:msg:{id}") == -1
    await manager.update_message(id, {"a": "c"})
    assert await redis.ttl(f"{prefix}:msg:{id}") == -1
    assert await manager.get_next_message() == id
    assert await manager.remove_message(id) is True
    assert not await redis.exists(f"{prefix}:msg:{id}")


async def test_another_instance_decides_from_outside(managers, redis, prefix):
    worker, operator = managers(), managers()
    ids = [await worker.enqueue({}) for _ in range(3)]
    for act in (operator.remove_message, operator.retry_message, lambda held: operator.move_to_dlq(held, "x")):
        id = await worker.get_next_message()
        assert id in ids
        assert await act(id) is True
        assert await worker.remove_message(id) is False  # it is not the worker's any more
    operator.retry_delay_base = 0
    assert await redis.zcard(f"{prefix}:queue:dlq") == 1


# ---- trouble


async def test_redis_away(monkeypatch, caplog, prefix):
    monkeypatch.setenv("STREAMS_QUEUE_URL", f"redis://127.0.0.1:{servers.free_port()}/0")
    manager = RedisQueueManager(prefix)
    assert await manager.enqueue({"a": "b"}) is None
    assert await manager.get_position("x") == -1
    assert await manager.get_message("x") is None
    assert await manager.update_message("x", {}) is False
    assert await manager.remove_message("x") is False
    assert await manager.move_to_dlq("x", "e") is False
    assert await manager.retry_message("x") is False
    assert await manager.get_next_message() is None
    assert await manager.get_queue_length() == 0
    assert await manager.get_stats() == {}
    assert await manager.try_acquire_lock("x", "me", timeout=0) is False
    assert await manager.release_lock("x", "me") is False
    assert await manager.clear_deduplication_key("u", "m") is False
    assert await manager.clear_deduplication_key_by_id("x") is False
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 14
    for record in errors:
        assert record.name == "bot_logic.services.redis_queue_manager"
        assert "ConnectionError" in record.getMessage() and "127.0.0.1" in record.getMessage()
    await manager.close()


async def test_a_server_that_does_not_answer_costs_each_caller_one_timeout(monkeypatch, prefix):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections get through, and that is all
        monkeypatch.setenv("STREAMS_QUEUE_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        monkeypatch.setenv("REDIS_TIMEOUT", "0.3")
        manager = RedisQueueManager(prefix)
        begun = time.monotonic()
        assert await asyncio.gather(*(manager.get_position("x") for _ in range(20))) == [-1] * 20
        assert await manager.enqueue({"a": "b"}) is None
        assert time.monotonic() - begun < 2
        await manager.close()


async def test_a_url_that_is_none(monkeypatch, caplog, prefix):
    monkeypatch.setenv("STREAMS_QUEUE_URL", "http://:secret-word@somewhere")
    manager = RedisQueueManager(prefix)
    assert await manager.enqueue({"a": "b"}) is None
    assert "STREAMS_QUEUE_URL" in caplog.text and "secret-word" not in caplog.text


@pytest.mark.leaks("the keys of the wrong type are the test's own")
@pytest.mark.parametrize("key", ["queue:main", "queue:retry", "queue:dlq"])
async def test_a_queue_of_the_wrong_type(manager, redis, prefix, caplog, key):
    await redis.set(f"{prefix}:{key}", "not a queue")
    assert await manager.enqueue({"a": "b"}) is None
    assert await manager.get_next_message() is None
    assert await manager.get_stats() == {}
    assert "belongs to another program" in caplog.text
    assert await redis.get(f"{prefix}:{key}") == "not a queue"
    assert not await redis.keys(f"{prefix}:msg:*")


@pytest.mark.leaks("the keys of the wrong type are the test's own")
async def test_other_keys_of_the_wrong_type(manager, redis, prefix):
    await redis.set(f"{prefix}:stats", "not a hash")
    await redis.set(f"{prefix}:msg:string", "not a hash")
    await redis.lpush(f"{prefix}:lock:list", "not a lock")
    slot = hashlib.md5(b"u:hi").hexdigest()
    await redis.lpush(f"{prefix}:dedup:{slot}", "not a slot")
    assert await manager.get_stats() == {"main_queue_length": 0, "retry_queue_length": 0, "dlq_length": 0}
    assert await manager.get_message("string") is None
    assert await manager.update_message("string", {"a": 1}) is False
    assert await manager.try_acquire_lock("list", "me") is False
    assert await manager.release_lock("list", "me") is False
    id = await manager.enqueue({"user_id": "u", "message": "hi"})
    assert await manager.get_next_message() == id
    assert await manager.remove_message(id) is True


@pytest.mark.parametrize("expiry", [0, -1, float("nan"), float("inf"), "300", None])
async def test_a_lock_expiry_that_is_none(managers, caplog, redis, prefix, expiry):
    manager = managers(lock_expiry=expiry)
    runs: list[str] = []

    async def process(id: str) -> None:
        runs.append(id)

    id = await manager.enqueue({"a": "b"})
    reason = f"lock_expiry={expiry!r} is not a number above 0"
    for name, arguments, no in (("get_next_message", (), None), ("try_acquire_lock", ("other", "me"), False)):
        assert await getattr(manager, name)(*arguments) is no
        assert f"{name}: {reason}" in caplog.text
    assert not await redis.exists(f"{prefix}:lock:other")
    await manager.start_processor(process)
    await until(lambda: f"the processor cannot work at present, trying on: {reason}" in caplog.text)
    assert runs == []
    manager.lock_expiry = 2
    await until(lambda: runs == [id])


async def test_a_held_message_and_a_lock_expiry_that_is_none(manager, caplog):
    await manager.enqueue({"a": "b"})
    id = await manager.get_next_message()
    manager.lock_expiry = 0
    assert await manager.update_message(id, {"a": "c"}) is False
    assert await manager.try_acquire_lock(id, "me") is False
    assert caplog.text.count("lock_expiry=0 is not a number above 0") == 2
    assert await manager.remove_message(id) is True


async def test_a_lock_needs_an_id(manager, caplog, redis, prefix):
    assert await manager.try_acquire_lock("", "me") is False
    assert await manager.release_lock("", "me") is False
    assert not await redis.exists(f"{prefix}:lock:")
    assert caplog.text.count("a lock without an id") == 2


async def test_an_id_that_cannot_be_encoded(manager, caplog):
    assert await manager.get_message("\ud800") is None
    assert await manager.update_message("\ud800", {"a": "b"}) is False
    assert caplog.text.count("cannot be encoded") >= 2
