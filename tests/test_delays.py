"""Messages with a due time come into line on time, by the server's clock."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time

import pytest

from helpers import Handler, queue_at, running, until, worker_of
from streams_queue import Retry, Worker, maintenance


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


class Clocked(Handler):
    """Remembers how much too late each message was; the server runs on this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.late: dict[str, float] = {}

    async def handle(self, message):
        self.late[message.id] = time.time() - message.data["due"]


def figures(late: dict[str, float]) -> tuple[float, float, float]:
    """The earliest, the median and the last, in milliseconds."""
    values = sorted(late.values())
    found = (values[0], statistics.median(values), values[-1])
    first, median, last = (1000 * seconds for seconds in found)
    print(f"late by {first:.1f} to {last:.1f} ms, median {median:.1f} ms, {len(values)} messages")
    return found


async def test_what_is_known_before_comes_within_milliseconds(queue):
    clocked, chance = Clocked(), random.Random(1)
    began = time.time()
    for _ in range(100):
        due = began + chance.uniform(2.5, 5)
        await queue.enqueue({"due": due}, at=due)
    async with (
        running(worker_of(queue, clocked.handle, lease=30.0)),
        running(worker_of(queue, clocked.handle, lease=30.0)),
    ):
        await until(lambda: len(clocked.late) == 100)
    earliest, median, last = figures(clocked.late)
    assert earliest >= 0 and median < 0.1 and last < 1


async def test_short_delays_that_nobody_knew_of_are_late_by_less_than_a_second(queue):
    clocked, chance = Clocked(), random.Random(2)
    async with (
        running(worker_of(queue, clocked.handle, lease=30.0)),
        running(worker_of(queue, clocked.handle, lease=30.0)),
    ):
        await asyncio.sleep(1)
        for n in range(8):  # few, so that none is on time because of another
            await queue.enqueue({"due": time.time() + 0.01}, delay=0.01)
            await asyncio.sleep(chance.uniform(0.6, 1.2))
            await until(lambda: len(clocked.late) == n + 1)  # noqa: B023  (awaited here)
    _, _, last = figures(clocked.late)
    assert last < 1


async def test_a_retry_comes_on_time(queue):
    runs: list[float] = []

    async def handle(message):
        runs.append(time.time())
        if len(runs) == 1:
            raise Retry(delay=2)

    async with running(worker_of(queue, handle, lease=30.0)):
        await queue.enqueue({})
        await until(lambda: len(runs) == 2)
    assert 2 <= runs[1] - runs[0] < 2.5


async def test_many_due_times_make_no_more_than_fifty_looks_a_second(queue, redis):
    await queue.enqueue_many([{}], at=(await redis.time())[0] + 1)
    worker = Worker(queue)
    worker.handler(Handler().handle)
    now = (await redis.time())[0]
    for n in range(0, 2000, 100):
        await asyncio.gather(*(queue.enqueue({}, at=now + 2 + m / 1000) for m in range(n, n + 100)))
    looks: list[float] = []
    promote = queue.transitions.promote

    async def noted():
        looks.append(time.monotonic())
        return await promote()

    queue.transitions.promote = noted
    async with running(worker):
        await until(lambda: len(looks) > 40)
    assert min(b - a for a, b in itertools.pairwise(looks)) >= 0.9 * maintenance.SHORTEST
