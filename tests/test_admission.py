"""Limits at enqueue, as callers meet them: typed errors that say what to do, and never too many accepted."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions

from bot_logic.services.redis_queue_manager import RedisQueueManager
from helpers import queue_at
from streams_queue import Limits, Queue, QueueFull, QueueUnavailable, Rate, RateLimited, Rejected, ShardedQueue
from streams_queue.transitions import Transitions

SCRIPT = Path(__file__).parent / "processes" / "producer.py"
HOUR = 3600.0


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


async def test_a_full_queue(queue, prefix):
    await queue.set_limits(Limits(max_length=1))
    first = await queue.enqueue({"n": 1})
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue({"n": 2})
    assert caught.value.retry_after is None
    assert caught.value.receipts == ()
    assert str(caught.value) == (
        f"queue '{prefix}' is full, its limit of unfinished messages is max_length=1: try again when workers have "
        "finished some, or raise the limit with streams-queue limits set --max-length"
    )
    await queue.remove(first.id)
    await queue.enqueue({"n": 2})
    assert await queue.length() == 1


async def test_a_rate_that_is_spent(queue, prefix):
    await queue.set_limits(Limits(accept=Rate(1, per=HOUR)))
    await queue.enqueue({})
    with pytest.raises(RateLimited) as caught:
        await queue.enqueue({})
    assert caught.value.retry_after == pytest.approx(HOUR, abs=5)
    assert re.sub(r"\d{4}[.\d]* s", "3600 s", str(caught.value)) == (
        f"queue '{prefix}' takes no more now, its limit is accept=1/h: try again in 3600 s, or raise the limit with "
        "streams-queue limits set --accept"
    )
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.retry_after) == (str(caught.value), caught.value.retry_after)


async def test_waiting_for_retry_after_is_enough(queue):
    await queue.set_limits(Limits(accept=Rate(2, per=0.2)))
    waits = []
    for n in range(8):
        try:
            await queue.enqueue({}, id=f"m{n}")
        except RateLimited as error:
            assert error.retry_after is not None
            waits.append(error.retry_after)
            await asyncio.sleep(error.retry_after)
            await queue.enqueue({}, id=f"m{n}")
    assert await queue.length() == 8
    assert waits
    assert all(0 < wait <= 0.1 for wait in waits)


async def test_nothing_of_the_message_stands_in_the_error(queue):
    await queue.set_limits(Limits(key="api_token", accept_per_key=Rate(1, per=HOUR)))
    await queue.enqueue({"api_token": "canary-value"})
    with pytest.raises(RateLimited, match="accept_per_key=1/h") as caught:
        await queue.enqueue({"api_token": "canary-value"})
    assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_a_key_named_like_a_field_of_the_engine(queue):
    await queue.set_limits(Limits(key="status", accept_per_key=Rate(1, per=HOUR)))
    await queue.enqueue({"status": "new"})
    await queue.enqueue({"status": "old"})
    with pytest.raises(RateLimited):
        await queue.enqueue({"status": "new"})


async def test_callers_who_share_a_round_trip_are_refused_alone(queue):
    await queue.set_limits(Limits(key="user_id", accept_per_key=Rate(2, per=HOUR)))
    users = [f"u{n % 5}" for n in range(50)]
    answers = await asyncio.gather(*(queue.enqueue({"user_id": u}) for u in users), return_exceptions=True)
    refused = [user for user, answer in zip(users, answers, strict=True) if isinstance(answer, RateLimited)]
    assert (len(refused), await queue.length()) == (40, 10)


# ---- many at once


async def test_many_are_accepted_up_to_the_first_that_is_refused(queue):
    """What the error says is enough to go on where it stopped: nothing is lost, nothing doubled, the order stays."""
    await queue.set_limits(Limits(accept=Rate(300, per=0.3)))
    payloads = [{"n": n} for n in range(1200)]
    rest, receipts, refusals = payloads, [], 0
    while rest:
        try:
            receipts += await queue.enqueue_many(rest)
            break
        except RateLimited as error:
            refusals += 1
            receipts += [receipt for receipt in error.receipts if receipt is not None]
            rest = [payload for payload, receipt in zip(rest, error.receipts, strict=True) if receipt is None]
            assert error.retry_after is not None
            await asyncio.sleep(error.retry_after)
    assert refusals
    assert await queue.length() == len(receipts) == 1200
    found = [await queue.get(receipt.id) for receipt in receipts[::100]]
    assert [message.data["n"] for message in found] == list(range(0, 1200, 100))
    positions = [await queue.position(receipt.id) for receipt in receipts[::100]]
    assert positions == list(range(1, 1201, 100))


async def test_many_into_a_queue_with_room_for_fewer(queue):
    await queue.set_limits(Limits(max_length=700))
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue_many([{"n": n} for n in range(1500)])
    receipts = caught.value.receipts
    assert [receipt is not None for receipt in receipts] == [True] * 700 + [False] * 800
    assert not any(receipt.duplicate for receipt in receipts[:700])
    assert await queue.length() == 700
    assert (await queue.stats()).counters["refused_max_length"] == 1


async def test_many_where_all_fit_and_none(queue):
    await queue.set_limits(Limits(max_length=3))
    assert len(await queue.enqueue_many([{}, {}, {}])) == 3
    assert await queue.enqueue_many([]) == []
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue_many([{}, {}])
    assert caught.value.receipts == (None, None)


async def test_a_reply_that_was_lost_costs_nothing(queue, monkeypatch):
    """The script has run, the connection breaks, the same command goes again."""
    await queue.set_limits(Limits(accept=Rate(3, per=HOUR), max_length=3))
    send, sent = Transitions._send, []

    async def without_reply(self, script, *arguments):
        answer = await send(self, script, *arguments)
        sent.append(script.name)
        if len(sent) == 1:
            raise exceptions.ConnectionError
        return answer

    monkeypatch.setattr(Transitions, "_send", without_reply)
    receipts = await queue.enqueue_many([{}, {}])
    assert sent == ["enqueue", "enqueue"]
    assert [receipt.duplicate for receipt in receipts] == [False, False]
    await queue.enqueue({})
    with pytest.raises(Rejected):
        await queue.enqueue({})


async def test_replicas_that_are_missing_are_told_beside_the_refusal(queue):
    """The receipts are of what is in the queue; that it is on no replica stands in the cause."""
    await queue.set_limits(Limits(max_length=1))
    with pytest.raises(QueueFull) as caught:
        await queue.enqueue_many([{}, {}], replicas=2)  # one more than a Cluster has here
    assert isinstance(caught.value.__cause__, QueueUnavailable)
    assert caught.value.receipts[0].id in str(caught.value.__cause__)
    with pytest.raises(QueueFull):
        await queue.enqueue({}, replicas=2)


async def test_many_into_shards_of_which_some_are_full(server, sharded_prefix):
    """Each shard takes its own in order, up to the first that it refuses; what is left over goes again."""
    sharded = ShardedQueue(sharded_prefix, shards=3, url=server.url, key="user_id")
    async with sharded as queue:
        await queue.set_limits(Limits(key="user_id", accept_per_key=Rate(10, per=0.2)))
        payloads = [{"user_id": f"u{n % 4}", "n": n} for n in range(100)]
        rest, receipts, refusals = payloads, [], 0
        while rest:
            try:
                receipts += await queue.enqueue_many(rest)
                break
            except RateLimited as error:
                refusals += 1
                receipts += [receipt for receipt in error.receipts if receipt is not None]
                rest = [payload for payload, receipt in zip(rest, error.receipts, strict=True) if receipt is None]
                await asyncio.sleep(error.retry_after or 0)
        assert refusals
        assert await queue.length() == len(receipts) == 100
        order: dict[str, list[int]] = {}
        for receipt in receipts:
            message = await queue.get(receipt.id)
            assert message is not None
            order.setdefault(message.data["user_id"], []).append(message.data["n"])
        assert all(numbers == sorted(numbers) for numbers in order.values())


# ---- the documented API


async def test_the_documented_api_answers_none_and_logs_why(server, prefix, monkeypatch, caplog):
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    caplog.set_level(logging.WARNING, logger="bot_logic")
    manager, told = RedisQueueManager(prefix), []

    async def callback(message, status, response, error):
        told.append(status)

    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(key="user_id", accept_per_key=Rate(1, per=HOUR)))
    request = {"user_id": "u1", "message": "hi", "response_token": "canary-token"}
    first = await manager.enqueue(request)
    assert first is not None
    assert await manager.enqueue(request) == first, "a duplicate is none too many"
    assert await manager.enqueue({**request, "message": "ho"}, callback) is None
    assert await manager.enqueue({**request, "user_id": "u2"}) is not None
    assert await manager.get_queue_length() == 2
    assert told == []
    assert "canary" not in caplog.text
    (record,) = [record for record in caplog.records if record.name.startswith("bot_logic")]
    assert record.getMessage().startswith(
        f"enqueue: queue '{prefix}' takes no more now, its limit is accept_per_key=1/h"
    )
    await manager.close()


# ---- never more than so many


@pytest.fixture
def producers(server, prefix) -> Iterator[Any]:
    """Starts producers as processes: user -> how many of its messages were accepted."""
    started: list[subprocess.Popen[str]] = []

    def run(users: list[str], seconds: float) -> tuple[dict[str, int], float]:
        for user in users:
            command = [sys.executable, str(SCRIPT), server.url, prefix, user, str(seconds)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        accepted = dict.fromkeys(users, 0)
        for user, process in zip(users, started, strict=True):
            assert process.stdout is not None
            accepted[user] += int(process.stdout.readline())
        elapsed = time.monotonic() - began
        assert [process.wait() for process in started] == [0] * len(started)
        return accepted, elapsed

    yield run
    for process in started:
        process.kill()
        process.communicate()


async def test_producers_in_many_processes_are_accepted_no_more_than_the_limits_say(queue, producers):
    """In t seconds at most what a full bucket holds and what flows into it in that time; and not much less."""
    await queue.set_limits(Limits(key="user_id", accept=Rate(70, per=1.0), accept_per_key=Rate(20, per=1.0)))
    users = [f"u{n % 3}" for n in range(6)] + ["u9"]
    accepted, elapsed = await asyncio.to_thread(producers, users, 2.0)
    assert sum(accepted.values()) == await queue.length()
    assert all(20 < count <= 20 + 20 * elapsed for count in accepted.values())
    assert 70 + 70 < sum(accepted.values()) <= 70 + 70 * elapsed


async def test_a_length_is_never_passed_by_producers_in_many_processes(queue, producers):
    await queue.set_limits(Limits(max_length=50))
    accepted, _ = await asyncio.to_thread(producers, ["u1", "u2", "u3"], 0.5)
    assert sum(accepted.values()) == await queue.length() == 50
