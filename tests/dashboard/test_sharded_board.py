"""The dashboard shows a queue with shards as one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dashboard.conftest import seen
from dashboard.test_api import Caller
from helpers import Held, running, until, work, worker_of
from streams_queue import Limits, Queue, Reject, ShardedQueue
from streams_queue.connection import Connection
from streams_queue.discovery import discover
from streams_queue.settings import Settings


@pytest.fixture
def prefix(sharded_prefix: str) -> str:
    return sharded_prefix


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[ShardedQueue[Any]]:
    async with ShardedQueue(prefix, shards=4, url=server.url) as queue:
        yield queue


async def fail(message):
    raise Reject("no stock")


async def test_one_queue_is_found(queue, server, prefix):
    connection = Connection(Settings(server.url))
    await connection.open()
    try:
        assert await discover(connection) == []
        await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
        another = Settings(server.url).prefix(f"{prefix}x")
        async with Queue("{alone:3}", url=server.url) as alone, Queue(another, url=server.url) as other:
            await alone.enqueue({})
            await other.enqueue({})
            assert await discover(connection) == sorted([prefix, "{alone:3}", another])
    finally:
        await connection.close()


async def test_one_queue_is_shown(queue, opened, prefix):
    receipts = await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    browser = await opened(prefixes=None)
    overview = await browser.text("/")
    assert prefix in overview
    assert f"{{{prefix}:" not in overview
    page = await browser.text(f"/queues/{prefix}")
    assert "20" in page
    line = (await browser.get(f"/api/queues/{prefix}/line?limit=20")).json()
    assert len(line["messages"]) == 20
    message = await browser.text(f"/queues/{prefix}/message?id={receipts[3].id}")
    assert "u3" in message
    assert f"{await queue.position(receipts[3].id)}, {await queue.ahead(receipts[3].id)} ahead" in message


async def test_pause_dead_letters_and_their_change(queue, opened, prefix):
    died = []
    for n in range(7):
        died.append((await queue.enqueue({"user_id": f"u{n}", "n": n})).id)
        await work(queue.shards[queue.routing.holders(died[-1])[0]], fail)
    browser = await opened()
    listed = (await browser.get(f"/api/queues/{prefix}/dead-letters")).json()
    assert [letter["id"] for letter in listed["letters"]] == died[::-1]
    await browser.post(f"/queues/{prefix}/pause")
    assert (await queue.stats()).paused
    await browser.post(f"/queues/{prefix}/resume")
    assert not (await queue.stats()).paused
    page = seen((await browser.get(f"/queues/{prefix}/dead")).text)
    assert "no stock" in page


async def test_what_a_dead_letter_goes_by_stays(queue, opened, prefix):
    receipt = await queue.enqueue({"user_id": "u1", "n": 1})
    await work(queue, fail)
    await queue.open()
    api = Caller(await opened(), prefix)
    for data in ({"user_id": "u2", "n": 1}, {"n": 1}):
        refused = await api.post("/dead-letters/amend", {"id": receipt.id, "data": data}, 422)
        assert "'user_id' says in which shard" in refused["detail"]
    await api.post("/dead-letters/amend", {"id": receipt.id, "data": {"user_id": "u1", "n": 2}})
    assert (await queue.get(receipt.id)).data == {"user_id": "u1", "n": 2}


async def test_its_metrics(queue, opened, prefix):
    await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    browser = await opened()
    metrics = (await browser.get("/metrics")).text
    assert f'streams_queue_depth{{queue="{prefix}",state="waiting"}} 20.0' in metrics


async def test_limits_of_the_whole(queue, opened, prefix):
    api = Caller(await opened(), prefix)
    await api.post("/limits", {"key": "user_id", "max_length": 100, "concurrency_per_key": 1})
    assert await queue.limits() == Limits(key="user_id", max_length=100, concurrency_per_key=1)
    assert [(await shard.limits()).max_length for shard in queue.shards] == [25] * 4
    refused = await api.post("/limits", {"max_length": 3}, 409)
    assert "max_length=3 is less than one message for each of 4 shards" in refused["detail"]
    refused = await api.post("/limits", {"key": "chat"}, 409)
    assert "the queue's shards go by 'user_id'" in refused["detail"]
    assert (await api.get("/limits"))["max_length"] == 100


async def test_keys_that_wait_in_all_shards(queue, opened, prefix):
    api = Caller(await opened(), prefix)
    await queue.set_limits(Limits(key="user_id", concurrency_per_key=1))
    await queue.enqueue_many([{"user_id": f"u{n % 6}", "n": n} for n in range(18)])
    held = Held()
    worker = worker_of(queue, held.handle, concurrency=12)
    async with running(worker):
        await held.holds(6)

        async def is_parked():
            return (await queue.stats()).parked == 12

        await until(is_parked)
        found = await api.get("/waiting-keys")
        assert found["parked"] == 12
        assert sorted((key["value"], key["messages"]) for key in found["keys"]) == [(f"u{n}", 2) for n in range(6)]
        held.go.set()


async def test_a_priority_in_whichever_shard(queue, opened, prefix):
    api = Caller(await opened(), prefix)
    made = (await queue.enqueue({"user_id": "u1"})).id
    await queue.enqueue({"user_id": "u2"}, id="own")
    for id in (made, "own"):
        assert (await api.post(f"/messages/{id}/priority", {"priority": "high"}))["changed"]
        assert (await queue.get(id)).priority == "high"


async def test_dead_letters_of_one_id_in_two_shards(queue, opened, prefix):
    """Each is shown as it is, with its shard."""
    users = {queue.routing.home("own", [b"user_id", user.encode()]): user for user in ("u1", "u2", "u3", "u4", "u5")}
    (first, one), (second, other), *_ = sorted(users.items())
    for user in (one, other):
        await queue.enqueue({"user_id": user}, id="own")
    for shard in (first, second):
        await work(queue.shards[shard], fail)
    letters = (await (await opened()).get(f"/api/queues/{prefix}/dead-letters")).json()["letters"]
    shown = {(letter["shard"], letter["data"]["user_id"]) for letter in letters}
    assert shown == {(first, one), (second, other)}
    assert {letter.data["user_id"] for letter in await queue.dead_letters.list()} == {one, other}
    assert {letter.data["user_id"] async for letter in queue.dead_letters.scan()} == {one, other}
    page = await (await opened()).text(f"/queues/{prefix}/dead")
    assert f"own shard {first}" in page and f"own shard {second}" in page
