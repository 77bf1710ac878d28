"""Limits at work, with real workers: order, rates, keys that are paused."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from datetime import timedelta

import pytest

from helpers import queue_at, running, until, work, worker_of
from streams_queue import ConfigurationError, InvalidMessage, Limits, Queue, Rate, Reject, Retry, Worker


def tasks(users: int, each: int) -> list[dict[str, str | int]]:
    return [{"user_id": f"u{user}", "n": n} for n in range(each) for user in range(users)]


async def test_each_users_messages_stay_in_order_over_all_workers(server, prefix):
    """Two of one user never run at the same time, though four workers have forty slots."""
    done: dict[str, list[int]] = defaultdict(list)
    at_work: set[str] = set()

    async def handle(message):
        user = message.data["user_id"]
        assert user not in at_work
        at_work.add(user)
        await asyncio.sleep(0.001)
        done[user].append(message.data["n"])
        at_work.discard(user)

    async with queue_at(server, prefix) as queue:
        await queue.enqueue_many(tasks(7, 30))
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                worker = worker_of(queue, handle, concurrency=10, one_at_a_time_per="user_id")
                group.create_task(worker.run(burst=True))
        stats = await queue.stats()
        assert (stats.main, stats.parked, stats.dead, stats.counters.get("retry_count", 0)) == (0, 0, 0, 0)
    assert done == {f"u{user}": list(range(30)) for user in range(7)}


async def test_a_message_that_waited_for_its_turn_begins_at_once(server, prefix):
    """Not at the next look of anybody: the first's end wakes an idle worker."""
    first, second = asyncio.Event(), asyncio.Event()
    ended = 0.0

    async def handle(message):
        nonlocal ended
        if message.data["n"] == 0:
            first.set()
            await asyncio.sleep(0.3)
            ended = time.monotonic()
        else:
            second.set()

    async with queue_at(server, prefix) as queue:
        one = worker_of(queue, handle, one_at_a_time_per="user_id", poll_interval=10)
        two = worker_of(queue, handle, one_at_a_time_per="user_id", poll_interval=10)
        async with running(one), running(two):
            await queue.enqueue({"user_id": "a", "n": 0})
            await first.wait()
            await queue.enqueue({"user_id": "a", "n": 1})
            await asyncio.wait_for(second.wait(), 5)
            assert time.monotonic() - ended < 0.5


async def test_two_workers_that_ask_for_different_things(server, prefix):
    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(key="chat_id", concurrency_per_key=1))
        worker = Worker(queue, one_at_a_time_per="user_id")
        worker.handler(_nothing)
        with pytest.raises(ConfigurationError, match=r"one_at_a_time_per='user_id'.*key='chat_id'"):
            await worker.run()
        assert await queue.limits() == Limits(key="chat_id", concurrency_per_key=1)


async def test_a_worker_adds_to_the_limits_that_are_there(server, prefix):
    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(max_length=100))
        await work(queue, _nothing, one_at_a_time_per="user_id")
        assert await queue.limits() == Limits(max_length=100, key="user_id", concurrency_per_key=1)


async def test_the_rate_of_the_queue_holds_over_all_workers(server, prefix):
    """In no window of a second more than the rate and its burst begin."""
    begun: list[float] = []

    async def handle(message):
        begun.append(time.monotonic())

    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(work=Rate(20, per=1.0)))
        await queue.enqueue_many([{"n": n} for n in range(60)])
        workers = [worker_of(queue, handle) for _ in range(3)]
        async with running(workers[0]), running(workers[1]), running(workers[2]):
            await until(lambda: len(begun) == 60, 15)
    took = begun[-1] - begun[0]
    assert 1.9 < took < 4, "20 at once, then 20 a second"
    begun.sort()
    for n in range(len(begun) - 41):
        assert begun[n + 41] - begun[n] > 0.9


async def test_the_rate_of_each_key(server, prefix):
    begun: dict[str, list[float]] = defaultdict(list)

    async def handle(message):
        begun[message.data["chat"]].append(time.monotonic())

    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(key="chat", work_per_key=Rate(5, per=0.5)))
        await queue.enqueue_many([{"chat": f"c{n % 3}"} for n in range(45)])
        one, two = worker_of(queue, handle), worker_of(queue, handle)
        async with running(one), running(two):
            await until(lambda: sum(map(len, begun.values())) == 45, 15)
    for times in begun.values():
        assert 0.9 < times[-1] - times[0] < 4


async def test_a_burst_does_not_wait_for_a_rate_that_nothing_waits_for(server, prefix):
    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(work=Rate(1, per=3600)))
        await queue.enqueue({})
        await asyncio.wait_for(work(queue, _nothing), 5)
        assert await queue.length() == 0


async def test_a_rate_that_is_raised_counts_at_once(server, prefix):
    begun: list[int] = []

    async def handle(message):
        begun.append(message.data["n"])

    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(work=Rate(1, per=3600)))
        await queue.enqueue_many([{"n": n} for n in range(10)])
        async with running(worker_of(queue, handle)):
            await until(lambda: begun == [0])
            await queue.set_limits(Limits())
            await until(lambda: len(begun) == 10)


async def test_a_key_that_the_platform_wants_left_alone(server, prefix):
    """The handler is told to be patient in one chat: all workers are, at no charge, and others go on."""
    begun: list[tuple[str, int]] = []
    refused = 0

    async def handle(message):
        nonlocal refused
        chat, n = message.data["chat"], message.data["n"]
        if chat == "busy" and refused < 3:
            refused += 1
            raise Retry(delay=0.3, key=chat)
        begun.append((chat, n))

    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(key="chat", concurrency_per_key=1))
        receipts = await queue.enqueue_many([{"chat": chat, "n": n} for n in range(3) for chat in ("busy", "calm")])
        worker = worker_of(queue, handle, max_retries=0)
        async with running(worker):
            await until(lambda: len(begun) == 3)
            assert begun == [("calm", 0), ("calm", 1), ("calm", 2)]
            message = await queue.get(receipts[0].id)
            assert message is not None
            assert (message.attempts, message.retries, message.error) == (0, 0, None)
            assert await queue.position(receipts[0].id) == 1
            await until(lambda: len(begun) == 6)
        assert begun[3:] == [("busy", 0), ("busy", 1), ("busy", 2)]
        stats = await queue.stats()
        assert (stats.dead, stats.parked, stats.counters["paused_keys"]) == (0, 0, 3)


async def test_a_queue_that_tells_no_keys_apart_says_so_once(server, prefix, caplog):
    async def handle(message):
        if message.deliveries < 3:
            raise Retry(delay=0, key="c1")

    async with queue_at(server, prefix) as queue:
        receipts = await queue.enqueue_many([{"chat": "c1"}, {"chat": "c2"}])
        async with running(worker_of(queue, handle)):
            await asyncio.gather(*(queue.result(receipt.id, timeout=10) for receipt in receipts))
        said = [r.getMessage() for r in caplog.records if "tells no keys apart" in r.getMessage()]
        assert len(said) == 1 and f"queue {prefix} " in said[0]
        assert "paused_keys" not in (await queue.stats()).counters


@pytest.mark.parametrize("delay", [float("nan"), True, "5", timedelta(seconds=5), 1j])
def test_a_delay_that_is_no_number(delay):
    with pytest.raises(InvalidMessage, match="is not a number of seconds"):
        Retry(delay=delay, key="c1")


@pytest.mark.parametrize("name", ["", 5, "\ud800", b"user_id", ["user_id"]])
def test_a_worker_is_told_at_once_that_a_name_is_none(name):
    with pytest.raises(ConfigurationError, match="is not the name of a payload's field"):
        Worker(Queue("orders", url="redis://127.0.0.1"), one_at_a_time_per=name)


@pytest.mark.parametrize("key", ["", 1j, "\ud800"])
def test_a_key_that_is_none(key):
    with pytest.raises(InvalidMessage, match="key"):
        Retry(delay=1, key=key)


@pytest.mark.parametrize("key", [7, "7"])
async def test_a_key_is_compared_as_it_is_stored(server, prefix, key):
    async def handle(message):
        if (await queue.stats()).counters.get("paused_keys"):
            raise Reject("enough")
        raise Retry(delay=0.05, key=key)

    async with queue_at(server, prefix) as queue:
        await queue.set_limits(Limits(key="chat"))
        receipt = await queue.enqueue({"chat": 7})
        async with running(worker_of(queue, handle)):
            await until(lambda: _is_dead(queue, receipt.id))


async def _is_dead(queue, id):
    message = await queue.get(id)
    return message.status == "error"


async def _nothing(message):
    pass
