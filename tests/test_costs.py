"""What a message costs, counted: round trips, and commands inside Redis. A change that makes it dearer is seen here.

The numbers are those of today, rounded up a little. Lower them when they can be lowered.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers import Handler, queue_at, running, work
from streams_queue import Worker

MESSAGES = 1000
SCRIPTS = ("evalsha", "eval")


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        await queue.enqueue({})
        await work(queue, Handler().handle)  # the server knows the scripts from here on
        yield queue


async def counted(redis: Any) -> tuple[float, float]:
    """Round trips and commands since the last reset, for each message. What stands in a script is a command, too."""
    stats = {name.removeprefix("cmdstat_"): row["calls"] for name, row in (await redis.info("commandstats")).items()}
    trips = sum(stats.get(name, 0) for name in SCRIPTS)
    own = sum(calls for name, calls in stats.items() if name.startswith(("config", "info")))
    return trips / MESSAGES, (sum(stats.values()) - trips - own) / MESSAGES


async def test_enqueue_many(queue, redis):
    await redis.config_resetstat()
    await queue.enqueue_many([{"n": n} for n in range(MESSAGES)])
    trips, commands = await counted(redis)
    assert trips == 2 / MESSAGES, "500 messages a call"
    assert commands <= 4.1


async def test_concurrent_calls_share_round_trips(queue, redis):
    await redis.config_resetstat()
    await asyncio.gather(*(queue.enqueue({"n": n}) for n in range(MESSAGES)))
    trips, commands = await counted(redis)
    assert trips <= 3 / MESSAGES, "the first goes at once, those that come meanwhile go together"
    assert commands <= 4.1


async def test_working(queue, redis):
    await queue.enqueue_many([{"n": n} for n in range(MESSAGES)])
    # Upkeep costs by the second, not by the message: another looks after the queue, however long this takes.
    await redis.set(queue.keys.maintainer, "another", px=60_000)
    await redis.config_resetstat()
    handler = Handler()
    await work(queue, handler.handle, concurrency=100)
    trips, commands = await counted(redis)
    assert len(handler.ids) == MESSAGES
    assert trips <= 0.09, "a claim for a third of the slots, a finish for as many as are done by then, and the upkeep"
    assert commands <= 7.3


async def test_an_idle_worker(queue, redis):
    """The one that looks after the queue: a read a second and a round in 0.8 s, which has the sign of life in it."""
    worker = Worker(queue)
    worker.handler(Handler().handle)
    async with running(worker):
        await asyncio.sleep(2)  # it has begun, and looked through the whole queue
        await redis.config_resetstat()
        await asyncio.sleep(6)
        stats = await redis.info("commandstats")
    rounds, reads = (stats[f"cmdstat_{name}"]["calls"] for name in ("evalsha", "xreadgroup"))
    requests = reads  # each round has one read in its script: the others are requests, as the rounds are
    assert rounds >= 4
    assert requests <= 2.4 * 6
    assert not {"cmdstat_eval", "cmdstat_xclaim", "cmdstat_ping"} & set(stats)
