"""What callers hear of a queue with shards while one of its servers hangs or is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import servers
from streams_queue import Limits, QueueUnavailable, Rate, ShardedQueue

TIMEOUT = 3.0
NEW = Limits(max_length=400, work=Rate(40))


@pytest.fixture
def pair(private, monkeypatch) -> tuple[servers.Server, servers.Server]:
    monkeypatch.setenv("REDIS_TIMEOUT", str(TIMEOUT))
    return private(), private()


@pytest.fixture
async def queue(pair, prefix) -> AsyncIterator[ShardedQueue[Any]]:
    async with ShardedQueue(prefix, shards=4, url=[server.url for server in pair]) as queue:
        await queue.enqueue({"user_id": "u1"}, id="own")
        yield queue


@pytest.fixture
def hung(pair, queue):
    pair[1].suspend()
    yield pair[1]
    pair[1].resume()


async def test_a_server_that_hangs_costs_one_timeout_and_is_named(queue, hung, prefix):
    asked = [queue.stats(), queue.position("unknown"), queue.dead_letters.list(), queue.get("unknown"), queue.pause()]
    began = time.monotonic()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert time.monotonic() - began < 1.8 * TIMEOUT
    for error in errors:
        assert isinstance(error, QueueUnavailable)
        assert f"{{{prefix}:1}}" in str(error)
        assert str(hung.port) in str(error)


async def test_all_that_did_not_answer_are_named(queue, hung, prefix):
    with pytest.raises(QueueUnavailable, match=rf"without an answer: {{{prefix}:1}}, {{{prefix}:3}} of 4 shards"):
        await queue.stats()


async def test_limits_that_some_shards_did_not_hear_of(queue, pair, hung, prefix):
    with pytest.raises(QueueUnavailable) as raised:
        await queue.set_limits(NEW)
    told = f"{{{prefix}:1}}, {{{prefix}:3}} may not have the new limits, the others of 4 shards have: send it again"
    assert told in str(raised.value)
    assert [(await shard.limits()).max_length for shard in (queue.shards[0], queue.shards[2])] == [100, 100]
    hung.resume()
    await queue.set_limits(NEW)
    assert {(await shard.limits()).max_length for shard in queue.shards} == {100}
    assert await queue.limits() == NEW


async def test_a_pause_that_some_shards_did_not_hear_of(queue, hung, prefix):
    with pytest.raises(QueueUnavailable, match="may not have the pause, the others of 4 shards have: send it again"):
        await queue.pause()
    hung.resume()
    await queue.resume()
    assert not (await queue.stats()).paused
