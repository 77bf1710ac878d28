"""What callers of a queue rely on."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from helpers import Handler, Held, queue_at, running, until, work, worker_of
from streams_queue import (
    ConfigurationError,
    Expired,
    HandlerFailed,
    InvalidMessage,
    NotFound,
    Queue,
    QueueUnavailable,
    Receipt,
    Reject,
    Removed,
    Status,
)


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


async def fail(message):
    raise Reject("not like that")


async def order(queue: Queue[Any]) -> list[str]:
    handler = Handler()
    await work(queue, handler.handle, concurrency=1)
    return handler.ids


async def dead(queue: Queue[Any], **payload: Any) -> str:
    receipt = await queue.enqueue(payload)
    await work(queue, fail)
    return receipt.id


# ---- enqueue


async def test_the_receipt(queue):
    receipt = await queue.enqueue({"a": 1})
    assert receipt == Receipt(receipt.id, duplicate=False, status=Status.QUEUED)
    assert len(receipt.id) == 36
    assert await queue.enqueue({"a": 1}, id="mine") == Receipt("mine", duplicate=False, status=Status.QUEUED)
    assert await queue.enqueue({"a": 1}, delay=60) != receipt
    assert (await queue.enqueue({}, delay=60)).status == "scheduled"


async def test_the_message(queue):
    before = time.time()
    receipt = await queue.enqueue({"a": 1, "status": "mine"}, priority="high")
    message = await queue.get(receipt.id)
    assert message is not None
    assert (message.id, message.data, message.status) == (receipt.id, {"a": 1, "status": "mine"}, "queued")
    assert (message.attempts, message.deliveries, message.retries, message.priority) == (0, 0, 0, "high")
    assert (message.error, message.reason, message.due_at) == (None, None, None)
    assert before - 1 < message.enqueued_at < time.time() + 1
    assert await queue.get("unknown") is None


async def test_the_hash_as_documented(queue, prefix, redis):
    await queue.enqueue({"user_id": "u1", "message": "hi", "n": 5, "l": [1]}, id="m", unique_key="u1:hi")
    fields = await redis.hgetall(f"{prefix}:msg:m")
    slot = f"{prefix}:dedup:{hashlib.md5(b'u1:hi').hexdigest()}"
    documented = {name: value for name, value in fields.items() if not name.startswith("_sq_")}
    assert documented == {
        "user_id": "u1", "message": "hi", "n": "5", "l": "[1]", "status": "queued", "retry_count": "0",
        "timestamp": fields["timestamp"], "dedup_key": slot,
    }  # fmt: skip
    assert float(fields["timestamp"]) == pytest.approx(await redis.zscore(f"{prefix}:queue:main", "m"), abs=0.001)
    assert await redis.get(slot) == "m"
    assert 3590 < await redis.ttl(slot) <= 3600
    assert await redis.hget(f"{prefix}:stats", "total_messages") == "1"


async def test_the_hash_of_a_dead_letter_as_documented(queue, prefix, redis):
    id = await dead(queue, a="b")
    fields = await redis.hgetall(f"{prefix}:msg:{id}")
    assert (fields["status"], fields["error"]) == ("error", "not like that")
    assert float(fields["moved_to_dlq_at"]) == pytest.approx(await redis.zscore(f"{prefix}:queue:dlq", id), abs=0.001)
    assert await redis.hget(f"{prefix}:stats", "dlq_messages") == "1"


async def test_the_hash_of_a_retry_as_documented(queue, prefix, redis):
    async def handle(message):
        raise ValueError("broken")

    id = (await queue.enqueue({})).id
    await work(queue, handle, retry_delay=60.0)
    fields = await redis.hgetall(f"{prefix}:msg:{id}")
    assert (fields["status"], fields["retry_count"], fields["last_error"]) == ("retry", "1", "ValueError: broken")
    assert float(fields["next_retry"]) == pytest.approx(await redis.zscore(f"{prefix}:queue:retry", id), abs=0.001)
    assert float(fields["next_retry"]) - float(fields["last_error_time"]) == pytest.approx(60, abs=0.001)
    assert await redis.hget(f"{prefix}:stats", "retry_count") == "1"


async def test_enqueue_many_keeps_the_order(queue):
    receipts = await queue.enqueue_many([{"n": n} for n in range(1203)])
    assert len({receipt.id for receipt in receipts}) == 1203
    assert not any(receipt.duplicate for receipt in receipts)
    assert [await queue.position(receipts[n].id) for n in (0, 1, 418, 499, 500, 1202)] == [1, 2, 419, 500, 501, 1203]
    assert await queue.enqueue_many([]) == []


async def test_delivery_follows_the_order(queue):
    receipts = await queue.enqueue_many([{} for _ in range(50)])
    receipts += [await queue.enqueue({}) for _ in range(20)]
    assert await order(queue) == [receipt.id for receipt in receipts]


async def test_enqueue_many_writes_nothing_when_one_is_bad(queue, redis):
    with pytest.raises(InvalidMessage):
        await queue.enqueue_many([{"a": 1}, {"a": object()}])
    assert await redis.keys() == []


async def test_calls_side_by_side_share_round_trips(queue, redis):
    await redis.config_resetstat()
    receipts = await asyncio.gather(*(queue.enqueue({"n": n}) for n in range(400)))
    assert len({receipt.id for receipt in receipts}) == 400
    info = await redis.info("commandstats")
    calls = sum(stats["calls"] for name, stats in info.items() if name in ("cmdstat_evalsha", "cmdstat_eval"))
    assert calls <= 4
    assert [message.data["n"] for message in await delivered(queue)] == list(range(400))


async def delivered(queue: Queue[Any]) -> list[Any]:
    handler = Handler()
    await work(queue, handler.handle, concurrency=1000)
    return handler.messages


BAD: dict[str, dict[str, Any]] = {
    "blank id": {"id": "a b"},
    "empty id": {"id": ""},
    "long id": {"id": "x" * 129},
    "reserved id": {"id": "global_lock"},
    "id with a line break": {"id": "a\n"},
    "id that is no text": {"id": 5},
    "id in bytes": {"id": b"a"},
    "unknown priority": {"priority": "urgent"},
    "priority of another type": {"priority": ["high"]},
    "negative delay": {"delay": -1},
    "delay nan": {"delay": float("nan")},
    "delay bool": {"delay": True},
    "delay bool of 0": {"delay": False},
    "at bool": {"at": True},
    "ttl bool": {"ttl": True},
    "delay inf": {"delay": float("inf")},
    "delay of ages": {"delay": 1e15},
    "delay that is text": {"delay": "5"},
    "at without a time zone": {"at": datetime(2030, 1, 1)},  # noqa: DTZ001  (what is refused)
    "at before the epoch": {"at": datetime(1969, 1, 1, tzinfo=UTC)},
    "negative at": {"at": -1},
    "at nan": {"at": float("nan")},
    "at inf": {"at": float("inf")},
    "at in milliseconds": {"at": 1.8e12},
    "at that is text": {"at": "2030-01-01T00:00:00Z"},
    "both delay and at": {"delay": 5, "at": 1.9e9},
    "no delay and at": {"delay": 0, "at": 1.9e9},
    "ttl zero": {"ttl": 0},
    "ttl negative": {"ttl": -5},
    "ttl nan": {"ttl": float("nan")},
    "ttl of ages": {"ttl": 1e15},
    "ttl that is text": {"ttl": "5"},
    "unique key that is no text": {"unique_key": 5},
    "unique key with a lone surrogate": {"unique_key": "\ud800"},
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD.keys())
async def test_a_bad_argument_is_refused_and_nothing_written(queue, redis, options):
    with pytest.raises(InvalidMessage):
        await queue.enqueue({"a": 1}, **options)
    assert await redis.keys() == []


@pytest.mark.parametrize("payload", [{"a": "\ud800"}, {1: "a"}, {"a": object()}, {"a": "x" * (1 << 20)}, None, "text"])
async def test_a_bad_payload_is_refused_and_nothing_written(queue, redis, payload):
    with pytest.raises(InvalidMessage):
        await queue.enqueue(payload)
    assert await redis.keys() == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1])
async def test_a_payload_up_to_the_limit_goes_through(queue, size):
    await queue.enqueue({"x": "é" * (size // 2) + "x" * (size % 2)})
    (message,) = await delivered(queue)
    assert len(message.data["x"].encode()) == size


async def test_every_kind_of_value_reaches_the_handler(queue):
    payload = {
        "": "", "text": "123", "true": "true", "none": "None", "nothing": None, "yes": True, "big": 2**70,
        "nul": "\x00", "crlf": "a\r\nb", "bidi": "\u202e", "raw": b"\xff\x00", "pi": 3.14, "inf": float("inf"),
        "t": (1, "2"), "s": {1}, "l": [[], {"a": [None]}], "status": "s",
        "_x": 1, "data:x": 2, "timestamp": 3, "error": 4, "_sq_entry": 5,
    }  # fmt: skip
    await queue.enqueue(payload)
    (message,) = await delivered(queue)
    assert message.data == payload


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 0}, {"ttl": -1}, {"ttl": 1e15}, {"dedup_expiry": 0}, {"result_ttl": -1},
        {"dead_letter_ttl": float("nan")}, {"max_payload": 0}, {"result_ttl": 1e15}, {"prefix": ""},
        {"prefix": "a b"}, {"prefix": "x" * 129},
        {"url": "http://x"}, {"payload": dict}, {"ttl": "5"},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_queue_is_refused(options):
    with pytest.raises(ConfigurationError):
        Queue(**{"prefix": "q", "url": "redis://127.0.0.1:1", **options})


def test_a_repr_shows_no_password():
    assert repr(Queue("q", url="redis://user:hush@h:7/0")) == "Queue('q', url='redis://user:***@h:7/0')"


async def test_no_server():
    with pytest.raises(QueueUnavailable):
        async with Queue("q", url="redis://127.0.0.1:1"):
            pass


# ---- duplicates


async def test_a_known_id_is_a_duplicate_until_its_marker_ends(queue, redis, prefix):
    await queue.enqueue({"n": 1}, id="m")
    assert await queue.enqueue({"n": 2}, id="m") == Receipt("m", duplicate=True, status=Status.QUEUED)
    (message,) = await delivered(queue)
    assert message.data == {"n": 1}
    assert await queue.enqueue({"n": 3}, id="m") == Receipt("m", duplicate=True, status=Status.COMPLETED)
    assert 50 < await redis.ttl(f"{prefix}:done:m") <= 60
    await redis.delete(f"{prefix}:done:m")
    assert await queue.enqueue({"n": 4}, id="m") == Receipt("m", duplicate=False, status=Status.QUEUED)


async def test_a_dead_letter_is_a_duplicate_and_does_not_run(queue):
    id = await dead(queue)
    assert await queue.enqueue({}, id=id) == Receipt(id, duplicate=True, status=Status.ERROR)
    assert await delivered(queue) == []


async def test_a_unique_key_holds_until_its_message_ends(queue):
    first = await queue.enqueue({"n": 1}, unique_key="k")
    second = await queue.enqueue({"n": 2}, unique_key="k")
    assert second == Receipt(first.id, duplicate=True, status=Status.QUEUED)
    assert not (await queue.enqueue({"n": 3}, unique_key="other")).duplicate
    assert len(await delivered(queue)) == 2
    assert not (await queue.enqueue({"n": 4}, unique_key="k")).duplicate


async def test_of_a_hundred_at_once_one_wins(queue):
    receipts = await asyncio.gather(*(queue.enqueue({"n": n}, unique_key="k") for n in range(100)))
    (winner,) = (receipt for receipt in receipts if not receipt.duplicate)
    assert {receipt.id for receipt in receipts} == {winner.id}
    assert await queue.length() == 1


@pytest.mark.parametrize("end", ["remove", "dead", "expire"])
async def test_a_unique_key_is_freed_at_every_end(queue, redis, prefix, end):
    id = (await queue.enqueue({}, unique_key="k")).id
    match end:
        case "remove":
            await queue.remove(id)
        case "dead":
            await work(queue, fail)
        case "expire":
            await redis.delete(f"{prefix}:msg:{id}")
            await delivered(queue)
    assert not (await queue.enqueue({}, unique_key="k")).duplicate


# ---- cancelled


async def test_enqueue_cancelled_at_any_moment_leaves_the_queue_in_step(queue):
    """What was accepted runs; what was cancelled runs once or not at all; no answer goes to another call."""
    chance = random.Random(7)
    answered, cancelled = [], []

    async def enqueue_and_drop(n: int) -> None:
        id = f"m{n}"
        call = asyncio.ensure_future(queue.enqueue({"n": n}, id=id))
        if chance.random() < 0.3:
            await asyncio.sleep(0)  # some just begun, others on their way
        else:
            await asyncio.sleep(chance.random() * 0.002)
        if call.cancel():
            cancelled.append(id)
        try:
            receipt = await call
        except asyncio.CancelledError:
            return
        assert receipt == Receipt(id, duplicate=False, status=Status.QUEUED)
        answered.append(id)

    for start in range(0, 300, 6):
        await asyncio.gather(*(enqueue_and_drop(n) for n in range(start, start + 6)))
        assert await queue.position(f"never{start}") is None
    assert len(cancelled) > 30
    message = await queue.get((await queue.enqueue({"last": True}, id="last")).id)
    assert message is not None
    assert message.data == {"last": True}
    ran = await order(queue)
    assert len(ran) == len(set(ran))
    assert {*answered, "last"} <= set(ran)


async def test_other_calls_cancelled_at_any_moment_leave_the_client_in_step(queue):
    chance = random.Random(8)
    ids = [receipt.id for receipt in await queue.enqueue_many([{"n": n} for n in range(10)])]

    async def look_and_drop(n: int) -> None:
        calls = [queue.position(ids[n]), queue.get(ids[n]), queue.stats(), queue.ahead(ids[n])]
        call = asyncio.ensure_future(calls.pop(chance.randrange(4)))
        for unused in calls:
            unused.close()
        await asyncio.sleep(chance.random() * 0.002)
        call.cancel()
        await asyncio.wait([call])

    for _ in range(30):
        await asyncio.gather(*(look_and_drop(n) for n in range(10)))
    for n, id in enumerate(ids):
        message = await queue.get(id)
        assert message is not None
        assert message.data == {"n": n}
        assert await queue.position(id) == n + 1


async def test_close_sends_what_was_submitted(server, prefix):
    async with queue_at(server, prefix) as queue:
        call = asyncio.ensure_future(queue.enqueue({}, id="m"))
        await asyncio.sleep(0)
    assert (await call).id == "m"
    async with queue_at(server, prefix) as queue:
        assert await queue.position("m") == 1


# ---- places


async def test_position_counts_what_is_in_flight_and_ahead_does_not(queue):
    held = Held()
    ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(5)])]
    async with running(worker_of(queue, held.handle, concurrency=2)):
        await held.holds(2)
        assert [await queue.position(id) for id in ids] == [1, 2, 3, 4, 5]
        assert [await queue.ahead(id) for id in ids] == [0, 0, 0, 1, 2]
        stats = await queue.stats()
        assert (stats.main, stats.processing) == (5, 2)
        held.go.set()
        await until(lambda: len(held.finished) == 5)
    assert await queue.position(ids[4]) is None
    assert await queue.ahead(ids[4]) is None


async def test_priorities(queue):
    low, normal, high, later_high = [
        (await queue.enqueue({}, priority=priority)).id for priority in ("low", "normal", "high", "high")
    ]
    assert [await queue.position(id) for id in (low, normal, high, later_high)] == [1, 2, 3, 4]
    assert [await queue.ahead(id) for id in (high, later_high, normal, low)] == [0, 1, 2, 3]
    assert await order(queue) == [high, later_high, normal, low]


async def test_retries_and_scheduled_ones_stand_behind(queue):
    async def handle(message):
        raise ValueError

    retry = (await queue.enqueue({})).id
    await work(queue, handle, retry_delay=60.0)
    scheduled = (await queue.enqueue({}, delay=60)).id
    later = (await queue.enqueue({}, delay=120)).id
    waiting = (await queue.enqueue({})).id
    assert [await queue.position(id) for id in (waiting, retry, scheduled, later)] == [1, 2, 3, 4]
    assert [await queue.ahead(id) for id in (waiting, retry, scheduled, later)] == [0, 1, 2, 3]
    assert await queue.length() == 4
    stats = await queue.stats()
    assert (stats.main, stats.retry, stats.scheduled, stats.processing, stats.dead) == (1, 1, 2, 0, 0)


# ---- priority


async def test_a_waiting_message_is_given_another_priority(queue):
    handler = Handler()
    for n in range(3):
        await queue.enqueue({}, id=f"m{n}")
    scheduled = await queue.enqueue({}, delay=60)
    assert await queue.set_priority("m2", "high")
    assert await queue.set_priority("m0", "low")
    assert await queue.set_priority(scheduled.id, "high")
    assert [(await queue.get(id)).priority for id in ("m0", "m1", "m2", scheduled.id)] == [
        "low",
        "normal",
        "high",
        "high",
    ]
    assert [await queue.position(f"m{n}") for n in range(3)] == [3, 1, 2]
    assert [await queue.ahead(f"m{n}") for n in range(3)] == [2, 1, 0]
    await work(queue, handler.handle, concurrency=1)
    assert handler.ids == ["m2", "m1", "m0"]
    assert not await queue.set_priority("m0", "high")


@pytest.mark.parametrize("priority", ["urgent", "", None, 5, ["high"]])
async def test_an_unknown_priority_is_refused(queue, priority):
    await queue.enqueue({}, id="a")
    with pytest.raises(InvalidMessage, match="use one of high, normal, low"):
        await queue.set_priority("a", priority)


# ---- delay and time to live


async def test_a_delay_ends_by_the_servers_clock(queue, redis, prefix):
    handler = Handler()
    seconds, micros = await redis.time()
    began = seconds + micros / 1e6
    async with running(worker_of(queue, handler.handle)):
        receipt = await queue.enqueue({}, delay=0.5)
        due = await redis.zscore(f"{prefix}:queue:scheduled", receipt.id)
        assert due == pytest.approx(began + 0.5, abs=0.3)
        assert await queue.result(receipt.id, timeout=5) is None
    seconds, micros = await redis.time()
    assert 0.5 <= seconds + micros / 1e6 - began < 2.5
    (message,) = handler.messages
    assert message.deliveries == 1


REMEDIES: dict[str, dict[str, Any]] = {
    "astimezone": {"at": datetime(2030, 1, 1)},  # noqa: DTZ001  (what is refused)
    "no milliseconds": {"at": 1.8e12},
    "give one of them": {"delay": 5, "at": 1.9e9},
    "from 0 on": {"at": -7},
}


@pytest.mark.parametrize("remedy", REMEDIES)
async def test_a_bad_time_is_named_with_the_remedy(queue, remedy):
    options = REMEDIES[remedy]
    with pytest.raises(InvalidMessage, match=remedy) as refused:
        await queue.enqueue({}, **options)
    assert repr(options["at"]) in str(refused.value)
    with pytest.raises(InvalidMessage, match=remedy):
        await queue.enqueue_many([{}], **options)


async def test_at_is_when_it_is_due_whatever_the_client_s_clock_says(queue, redis, prefix, monkeypatch):
    seconds, _ = await redis.time()
    zone = timezone(timedelta(hours=5.5))
    monkeypatch.setattr(time, "time", lambda: seconds + 3600.0)
    one = await queue.enqueue({}, at=seconds + 100.25)
    (two,) = await queue.enqueue_many([{}], at=datetime.fromtimestamp(seconds + 200, zone))
    past = await queue.enqueue({}, at=seconds - 100)
    assert (one.status, two.status, past.status) == ("scheduled", "scheduled", "queued")
    due = dict(await redis.zrange(f"{prefix}:queue:scheduled", 0, -1, withscores=True))
    assert due == {one.id: pytest.approx(seconds + 100.25, abs=1e-5), two.id: pytest.approx(seconds + 200, abs=1e-5)}
    assert [await queue.position(id) for id in (past.id, one.id, two.id)] == [1, 2, 3]
    assert await queue.remove(one.id)
    assert await queue.position(one.id) is None
    assert await redis.zcard(f"{prefix}:queue:scheduled") == 1


async def test_what_is_scheduled_lives_on_after_it_is_due(server, prefix, redis):
    async with queue_at(server, prefix, ttl=100) as queue:
        receipt = await queue.enqueue({}, at=(await redis.time())[0] + 50)
        assert 145 < await redis.ttl(f"{prefix}:msg:{receipt.id}") <= 150


async def test_a_clock_of_the_client_that_is_wrong_changes_nothing(queue, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    first = await queue.enqueue({})
    monkeypatch.undo()
    second = await queue.enqueue({})
    assert await order(queue) == [first.id, second.id]


async def test_a_time_to_live_ends_in_sight(queue, prefix, redis):
    handler = Handler()
    short, long = await queue.enqueue({}, ttl=0.5), await queue.enqueue({})
    assert await redis.pttl(f"{prefix}:msg:{short.id}") in range(1, 1001)
    await until(lambda: gone(redis, f"{prefix}:msg:{short.id}"))
    await work(queue, handler.handle)
    assert handler.ids == [long.id]
    with pytest.raises(Expired):
        await queue.result(short.id)
    stats = await queue.stats()
    assert (stats.lost, stats.counters["expired_messages"], stats.main) == (1, 1, 0)
    assert await redis.zrange(f"{prefix}:lost", 0, -1) == [short.id]


async def gone(redis, key) -> bool:
    return not await redis.exists(key)


async def test_the_time_to_live_begins_when_the_message_is_due(server, prefix, redis):
    async with queue_at(server, prefix, ttl=100) as queue:
        for options, seconds in (({}, 100), ({"delay": 50}, 150), ({"ttl": 7}, 7), ({"ttl": 7, "delay": 50}, 57)):
            receipt = await queue.enqueue({}, **options)  # type: ignore[arg-type]
            assert seconds - 2 < await redis.ttl(f"{prefix}:msg:{receipt.id}") <= seconds


async def test_without_a_time_to_live_a_message_waits_for_ever(queue, prefix, redis):
    receipt = await queue.enqueue({})
    assert await redis.ttl(f"{prefix}:msg:{receipt.id}") == -1


# ---- update


async def test_update(queue):
    id = (await queue.enqueue({"a": 1, "b": "x", "status": "mine"})).id
    assert await queue.update(id, {"a": "1", "c": [1], "status": None}) is True
    message = await queue.get(id)
    assert message is not None
    assert (message.data, message.status) == ({"a": "1", "b": "x", "c": [1], "status": None}, "queued")
    assert await queue.update("unknown", {"a": 1}) is False
    with pytest.raises(InvalidMessage):
        await queue.update(id, {"a": object()})


async def test_an_update_of_nothing(queue):
    id = (await queue.enqueue({"a": 1})).id
    assert await queue.update(id, {}) is True
    assert await queue.update("unknown", {}) is False


# ---- remove


async def test_remove_in_every_state(queue, prefix, redis):
    async def flaky(message):
        raise Reject("x") if message.data["n"] == 1 else ValueError

    ids = [receipt.id for receipt in await queue.enqueue_many([{"n": 1}, {"n": 2}])]
    await work(queue, flaky, retry_delay=60.0)
    ids += [(await queue.enqueue({}, delay=60)).id, (await queue.enqueue({})).id]
    assert [(await queue.get(id)).status for id in ids] == ["error", "retry", "scheduled", "queued"]
    for id in ids:
        assert await queue.remove(id) is True
        assert await queue.remove(id) is False
        assert await queue.get(id) is None
        with pytest.raises(Removed):
            await queue.result(id)
    assert await queue.remove("unknown") is False
    stats = await queue.stats()
    assert (stats.main, stats.retry, stats.scheduled, stats.dead) == (0, 0, 0, 0)
    assert stats.counters["removed_messages"] == 4
    assert await redis.xlen(f"{prefix}:stream") == 0


async def test_remove_of_what_is_being_worked_on_cancels_it(queue):
    held = Held()
    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        assert await queue.remove(id) is True
        await until(lambda: held.cancelled == [id], what="the handler cancelled at its next renewal")
    with pytest.raises(Removed):
        await queue.result(id)
    assert not (await queue.stats()).counters.get("completed_messages")


# ---- dead letters


async def test_a_scan_meets_every_dead_letter_though_they_go_on_the_way(queue):
    await queue.enqueue_many([{"n": n} for n in range(250)])

    async def handle(message):
        raise Reject("no")

    await work(queue, handle)
    seen = []
    async for dead in queue.dead_letters.scan():
        seen.append(dead.data["n"])
        assert dead.died_at is not None
        if dead.data["n"] % 3:
            await queue.dead_letters.requeue(dead.id)
    assert sorted(seen) == list(range(250))
    assert (await queue.stats()).dead == 84
    newest, *_, oldest = await queue.dead_letters.list(limit=84)
    assert newest.died_at >= oldest.died_at


async def test_dead_letters_list_requeue_delete(queue):
    ids = [await dead(queue, n=n) for n in range(3)]
    listed = await queue.dead_letters.list()
    assert [message.id for message in listed] == ids[::-1]
    assert [(m.status, m.reason, m.error, m.attempts, m.data["n"]) for m in listed] == [
        ("error", "rejected", "not like that", 1, n) for n in (2, 1, 0)
    ]
    assert [message.id for message in await queue.dead_letters.list(limit=1, offset=1)] == [ids[1]]
    assert await queue.dead_letters.list(limit=0) == []

    assert await queue.dead_letters.delete(ids[0]) is True
    assert await queue.dead_letters.delete(ids[0]) is False
    assert await queue.dead_letters.requeue(ids[0]) is False
    assert await queue.dead_letters.requeue(ids[1]) is True
    assert await queue.dead_letters.requeue(ids[1]) is False
    assert await queue.dead_letters.delete(ids[1]) is False, "it is no dead letter any more"

    (message,) = await delivered(queue)
    assert (message.id, message.attempts, message.retries, message.error, message.reason) == (ids[1], 1, 0, None, None)
    assert [message.id for message in await queue.dead_letters.list()] == [ids[2]]


async def test_a_dead_letter_whose_body_ran_out(queue, prefix, redis):
    id = await dead(queue)
    assert 30 * 86400 - 10 < await redis.ttl(f"{prefix}:msg:{id}") <= 30 * 86400
    await redis.delete(f"{prefix}:msg:{id}")
    assert await queue.dead_letters.list() == []
    with pytest.raises(Expired):
        await queue.dead_letters.requeue(id)
    assert (await queue.stats()).dead == 0


class Email(msgspec.Struct):
    to: str
    size: int = 0


async def test_a_typed_queue(server, prefix, redis):
    async with queue_at(server, prefix, payload=Email) as queue:
        good = (await queue.enqueue(Email("a@b.c", 5))).id
        bad = (await queue.enqueue(Email("x@y.z"))).id
        await redis.hset(f"{prefix}:msg:{bad}", mapping={"size": "large"})
        with pytest.raises(InvalidMessage, match="Expected `int`"):
            await queue.get(bad)
        handler = Handler()
        await work(queue, handler.handle)
        assert [message.data for message in handler.messages] == [Email("a@b.c", 5)]
        assert await queue.result(good) is None
        with pytest.raises(HandlerFailed) as failure:
            await queue.result(bad)
        assert failure.value.reason == "undecodable"
        (letter,) = await queue.dead_letters.list()
        assert (letter.id, letter.reason, letter.data) == (bad, "undecodable", {"to": "x@y.z", "size": "large"})
        with pytest.raises(InvalidMessage):
            await queue.enqueue({"to": "x"})


# ---- pause


async def test_pause_and_resume(queue):
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        await queue.result((await queue.enqueue({})).id, timeout=5)
        await queue.pause()
        assert (await queue.stats()).paused
        id = (await queue.enqueue({})).id
        with pytest.raises(TimeoutError):
            await queue.result(id, timeout=0.7)  # several rounds of an idle worker
        assert len(handler.ids) == 1
        await queue.resume()
        assert not (await queue.stats()).paused
        await queue.result(id, timeout=5)
    assert len(handler.ids) == 2


async def test_what_is_held_is_finished_under_a_pause(queue):
    held = Held()
    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        await queue.pause()
        held.go.set()
        assert await queue.result(id, timeout=5) == "let go"


# ---- stats


async def test_stats_add_up(queue, redis, prefix):
    await queue.enqueue_many([{"n": n} for n in range(6)])
    await queue.enqueue({}, id="m")
    await queue.enqueue({}, id="m")
    await queue.remove("m")

    async def handle(message):
        if message.data["n"] == 0:
            raise Reject("x")
        if message.data["n"] == 1 and message.retries == 0:
            raise ValueError

    await work(queue, handle)
    await redis.hset(f"{prefix}:stats", "processed_requests", "many")
    await redis.hset(f"{prefix}:stats", "others", "7")
    stats = await queue.stats()
    wanted = {
        "total_messages": 7, "duplicate_messages": 1, "removed_messages": 1, "completed_messages": 5, "dlq_messages": 1,
        "dead_rejected": 1, "retry_count": 1, "others": 7,
    }  # fmt: skip
    assert {name: count for name, count in stats.counters.items() if count} == wanted
    assert (stats.main, stats.processing, stats.dead) == (0, 0, 1)


async def test_a_result_of_nothing(queue):
    with pytest.raises(NotFound):
        await queue.result("unknown")
