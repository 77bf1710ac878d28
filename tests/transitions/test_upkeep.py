"""upkeep: one call a second of whoever looks after the queue, and of those who would."""

from __future__ import annotations

import asyncio

from streams_queue.answers import Turn
from transitions.tables import Queue


async def test_whose_turn_it_is(queue: Queue):
    assert [(await queue.upkeep(name)).turn for name in ("m", "m", "n")] == [
        Turn.BEGINS,
        Turn.GOES_ON,
        Turn.ANOTHERS,
    ]
    await queue.redis.delete(queue.keys.maintainer)
    assert (await queue.upkeep("n")).turn is Turn.BEGINS


async def test_it_is_a_sign_of_life(queue: Queue):
    """Which an idle worker's blocking reads are not before Redis 7.2."""
    lease = await queue.processing("a")

    async def idle() -> float:
        return next(seen.idle for seen in await queue.transitions.workers(1) if seen.name == "w1")

    await asyncio.sleep(0.3)
    before = await idle()
    await queue.upkeep("w1")
    assert await idle() < before
    assert await queue.complete(lease) == "completed"  # the delivery that was claimed


async def test_it_promotes_and_mends_the_newest(queue: Queue):
    await queue.retrying("due", delay=0)
    await queue.old("old")
    done = await queue.upkeep("m")
    assert (done.promoted, done.more_due) == (1, False)
    assert (done.newest.adopted, done.newest.difference) == (1, 0)
    assert (await queue.table())["queue:main"] == ["old", "due"]
    assert sorted((await queue.table())["stream"]) == ["due", "old"]
    assert (await queue.table())["stats"]["adopted_messages"] == 1


async def test_who_is_not_in_turn_does_nothing(queue: Queue):
    await queue.upkeep("m")
    await queue.retrying("due", delay=0)
    await queue.old("old")
    before = await queue.table()
    done = await queue.upkeep("n")
    assert (done.promoted, done.newest.adopted) == (0, 0)
    assert await queue.table() == before


async def test_it_says_what_no_blocking_read_brings(queue: Queue):
    done = await queue.upkeep("m")
    assert (done.waiting, done.pending) == (False, False)
    lease = await queue.processing("a")
    done = await queue.upkeep("n")
    assert (done.waiting, done.pending) == (False, True)
    await queue.release(lease)
    done = await queue.upkeep("n")
    assert (done.waiting, done.pending) == (True, True)


async def test_a_queue_that_nobody_joined(unjoined: Queue):
    done = await unjoined.upkeep("m")
    assert (done.turn, done.waiting, done.pending) == (Turn.BEGINS, False, False)
