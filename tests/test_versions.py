"""Engines of two versions on one queue: side by side where they know the layout, refused where they do not."""

from __future__ import annotations

import asyncio

import pytest

from helpers import Handler, queue_at, running, until, worker_of
from streams_queue import ConfigurationError, consumer
from streams_queue.transitions import SCHEMA, Transitions


@pytest.fixture
async def newer(server, prefix, redis):
    """A queue that an engine of the future wrote."""
    await redis.hset(f"{prefix}:meta", "schema", str(SCHEMA + 1))
    return queue_at(server, prefix)


async def test_a_newer_layout_is_refused_before_anything_is_written(newer, redis, prefix):
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=rf"schema {SCHEMA + 1}, this engine knows {SCHEMA}: upgrade"):
            await newer.open()
    assert await redis.keys("*") == [f"{prefix}:meta"]


async def test_a_worker_refuses_it_too(newer):
    with pytest.raises(ConfigurationError, match="upgrade streams-queue"):
        await worker_of(newer, Handler().handle).run()


async def test_a_worker_stops_where_a_newer_engine_changes_the_layout(server, prefix, redis, monkeypatch, caplog):
    monkeypatch.setattr(consumer, "SCHEMA_EVERY", 0.05)
    handler = Handler()
    async with queue_at(server, prefix) as queue:
        await queue.enqueue({"n": 1})
        work = asyncio.create_task(worker_of(queue, handler.handle).run())
        await until(lambda: handler.ids, what="one worked on")
        await redis.hset(f"{prefix}:meta", "schema", str(SCHEMA + 1))
        with pytest.raises(ConfigurationError, match="upgrade streams-queue"):
            await asyncio.wait_for(work, 5)
    assert "stops: queue" in caplog.text


async def test_a_schema_that_is_no_number_is_no_news(server, prefix, redis):
    await redis.hset(f"{prefix}:meta", "schema", "one")
    async with queue_at(server, prefix) as queue:
        assert await queue.length() == 0


class NextVersion(Transitions):
    """An engine with other scripts, which add a field and a key of their own."""

    async def _send(self, script, keys, arguments, replicas):
        text = script.source.replace(
            "  count('total_messages')",
            "  call('HSET', message_key(message.id), '_sq_future', '1')\n"
            "  call('SET', PREFIX .. ':future', '1', 'EX', 60)\n"
            "  count('total_messages')",
        )
        return await self.connection.client.eval(f"-- the next version\n{text}", len(keys), *keys, *arguments)


async def test_two_versions_of_the_scripts_work_side_by_side(server, prefix, redis):
    """During a rolling upgrade: what one has enqueued or begun the other finishes."""
    old, new = Handler(), Handler()
    async with queue_at(server, prefix) as queue, queue_at(server, prefix) as upgraded:
        upgraded.transitions = NextVersion(upgraded.connection, upgraded.keys)
        at_old, at_new = worker_of(queue, old.handle, concurrency=1), worker_of(upgraded, new.handle, concurrency=1)
        async with running(at_old), running(at_new):
            sent = [await (queue, upgraded)[n % 2].enqueue({"n": n}) for n in range(200)]
            await until(lambda: len(old.ids) + len(new.ids) == 200, what="all worked on")
        assert await redis.exists(f"{prefix}:future")
        ids = {receipt.id: n % 2 for n, receipt in enumerate(sent)}
        assert sorted(old.ids + new.ids) == sorted(ids)
        assert {ids[id] for id in old.ids} == {ids[id] for id in new.ids} == {0, 1}, "each met messages of the other"
        assert await queue.length() == 0
