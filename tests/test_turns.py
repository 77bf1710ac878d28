"""Whose turn it is to look after the queue, and when the one whose turn begins may sweep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from helpers import LEASE, queue_at
from streams_queue import Queue, Worker
from streams_queue.maintenance import Maintenance


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        for name in ("a", "b"):
            await queue.transitions.join(name, LEASE)
        yield queue


@pytest.fixture
def maintainer(queue) -> Callable[[str], Maintenance]:
    return lambda name: Maintenance(queue.transitions, name, LEASE, Worker(queue).policy)


def sweeps_now(maintainer: Maintenance) -> bool:
    return maintainer.in_turn and maintainer._sweep_at <= asyncio.get_running_loop().time()


async def test_who_has_just_come_lets_holders_renew_first(maintainer):
    first = maintainer("a")
    await first._take_turn()
    assert first.in_turn and not sweeps_now(first)


async def test_who_saw_the_server_answer_all_along_sweeps_at_once(maintainer):
    first, second = maintainer("a"), maintainer("b")
    await first._take_turn()
    await second._take_turn()
    assert not second.in_turn
    await first.resign()
    await second._take_turn()
    assert sweeps_now(second)


async def test_who_did_not_lets_holders_renew_first(maintainer):
    first, second = maintainer("a"), maintainer("b")
    await first._take_turn()
    await second._take_turn()
    await first.resign()
    await asyncio.sleep(0.6 * LEASE)
    await second._take_turn()
    assert second.in_turn and not sweeps_now(second)


async def test_a_turn_lasts_as_long_as_a_pass_over_a_long_queue(queue, maintainer, redis):
    await queue.enqueue_many([{} for _ in range(5_000)])
    (delivery,) = (await queue.transitions.claim("b", 1)).deliveries
    await redis.xclaim(queue.keys.streams["n"], "workers", "b", 0, [delivery.lease.entry[1:]], idle=9999, justid=True)
    await redis.delete(queue.keys.lock(delivery.lease.id))
    first = maintainer("a")
    first._turn, first._answered_at = 0.05, asyncio.get_running_loop().time()
    step = first._step

    async def slow(cursor: str) -> Any:
        await asyncio.sleep(0.02)
        return await step(cursor)

    first._step = slow
    await first._take_turn()
    began = time.monotonic()
    await first.round()
    assert time.monotonic() - began > 2 * first._turn
    assert (await queue.stats()).counters["recovered_messages"] == 1
