"""Another number of shards, at work: every message is where it belongs, once, with all that it had."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from helpers import LEASE, Handler, running, until, work, worker_of
from streams_queue import ConfigurationError, MigrationError, QueueUnavailable, ShardedQueue
from streams_queue.keys import registry_prefix
from streams_queue_migrations import plan_reshard, reshard
from streams_queue_migrations.resharding import Resharded
from streams_queue_migrations.shard_door import MOVERS, Arrival, ShardDoor

Queue = ShardedQueue[Any]


def quiet(step: str, done: int, total: int) -> None:
    pass


@asynccontextmanager
async def sharded(prefix: str, *urls: str, shards: int | None = None, **options: Any) -> AsyncIterator[Queue]:
    async with ShardedQueue(prefix, shards=shards, key="user", url=urls, **options) as queue:
        yield queue


async def resharded(prefix: str, url: str | list[str], count: int) -> Resharded:
    async with sharded(prefix, *([url] if isinstance(url, str) else url)) as queue:
        done = await reshard(queue, count, quiet)
    assert done.clean, done.checks
    return done


@pytest.fixture
def prefix(sharded_prefix: str) -> str:
    return sharded_prefix


@pytest.fixture
def redis(everywhere: Any) -> Any:
    return everywhere


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue]:
    async with sharded(prefix, server.url, shards=4) as queue:
        yield queue


async def standing(redis: Any, queue: Queue, count: int) -> dict[str, list[int]]:
    """In which shards each id stands, whatever the set."""
    found: dict[str, list[int]] = {}
    for shard in range(count):
        for name in ("main", "retry", "scheduled", "dlq"):
            for id in await redis.zrange(f"{{{queue.keys.prefix}:{shard}}}:queue:{name}", 0, -1):
                found.setdefault(id, []).append(shard)
    return found


async def scores(redis: Any, prefix: str, shards: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for shard in range(shards):
        found |= dict(await redis.zrange(f"{{{prefix}:{shard}}}:queue:main", 0, -1, withscores=True))
    return found


@pytest.mark.parametrize(("before", "after"), [(4, 7), (7, 4), (1, 3), (3, 1)])
async def test_every_message_of_every_set_is_moved_with_all_that_it_had(server, prefix, redis, before, after):
    async with sharded(prefix, server.url, shards=before) as queue:
        users: list[dict[str, Any]] = [{"user": f"u{n % 20}", "n": n, "of": None, "big": 2**60} for n in range(100)]
        main = [receipt.id for receipt in await queue.enqueue_many(users)]
        later = [receipt.id for receipt in await queue.enqueue_many(users[:30], delay=1000, ttl=5000)]
        own = [
            (await queue.enqueue({**user, "own": 1}, id=f"own-{user['n']}", priority="high")).id for user in users[:20]
        ]
        unique = [(await queue.enqueue(user, unique_key=user["user"])).id for user in users[:20]]
        first = {id: await queue.get(id) for id in [*main, *later, *own, *unique]}
        places = await scores(redis, prefix, before)
        done = await resharded(prefix, server.url, after)
        assert (done.before, done.after, done.expired, done.finished) == (before, after, 0, 0)
        assert sum(done.moved.values()) > 0
        await queue.look()
        found = await standing(redis, queue, max(before, after))
        assert {id: len(shards) for id, shards in found.items()} == dict.fromkeys(first, 1)
        for id, message in first.items():
            assert await queue.get(id) == message
            assert found[id][0] < after
        assert await scores(redis, prefix, after) == places
        for n in range(20):
            assert (await queue.enqueue(users[n], unique_key=users[n]["user"])).id == unique[n]
            assert (await queue.enqueue(users[n], id=own[n])).duplicate
        for id in later:
            shard = queue._all_shards[found[id][0]]
            assert 5000 < await redis.ttl(shard.keys.message(id)) <= 6000
        handler = Handler()
        await work(queue, handler.handle, concurrency=10)
        assert Counter(handler.ids) == Counter([*main, *own, *unique])
        assert (await queue.stats()).scheduled == 30


async def test_dead_letters_and_retries_go_along(queue, server, prefix):
    async def fail(message):
        raise ValueError("no")

    dead = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(30)])]
    await work(queue, fail, max_retries=0)
    waiting = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(30)])]
    await work(queue, fail, max_retries=5, retry_delay=1000.0)
    done = await resharded(prefix, server.url, 9)
    assert done.moved["dlq"] > 0
    assert done.moved["retry"] > 0
    await queue.look()
    assert {message.id for message in await queue.dead_letters.list(100)} == set(dead)
    for id in waiting:
        message = await queue.get(id)
        assert message is not None
        assert (message.status, message.retries) == ("retry", 1)
    assert await queue.dead_letters.requeue(dead[0])
    handler = Handler()
    await work(queue, handler.handle)
    assert handler.ids == [dead[0]]


async def test_it_does_nothing_on_a_queue_that_has_this_number(queue, server, prefix):
    await queue.enqueue_many([{"user": n} for n in range(30)])
    done = await resharded(prefix, server.url, 4)
    assert (done.moved, done.before, done.after) == ({}, 4, 4)


async def test_a_plan_counts_and_writes_nothing(queue, server, prefix, raw):
    await queue.enqueue_many([{"user": n} for n in range(200)])
    before = {key: await raw.dump(key) for key in await raw.keys("*")}
    async with sharded(prefix, server.url) as other:
        found = await plan_reshard(other, 8, quiet)
    assert {key: await raw.dump(key) for key in await raw.keys("*")} == before
    assert sum(shard.messages for shard in found.shards) == 200
    planned = sum(shard.elsewhere for shard in found.shards)
    assert sum((await resharded(prefix, server.url, 8)).moved.values()) == planned > 50


async def test_what_is_being_worked_on_is_left_to_finish(queue, server, prefix):
    go = asyncio.Event()
    started: list[str] = []

    async def handle(message):
        started.append(message.id)
        await go.wait()
        return message.data["user"]

    ids = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(30)])]
    async with running(worker_of(queue, handle, concurrency=30)):
        await until(lambda: len(started) == 30)
        moving = asyncio.create_task(resharded(prefix, server.url, 8))
        await until(lambda: queue.routing.moving)
        await asyncio.sleep(1)
        assert not moving.done()
        go.set()
        assert (await moving).moved == {}
        assert [await queue.result(id, timeout=5) for id in ids] == list(range(30))  # of the shard that it was in
    assert len(started) == 30


async def test_who_waits_for_a_result_gets_it_after_the_move(queue, server, prefix):
    ids = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(20)])]
    waiting = [asyncio.create_task(queue.result(id, timeout=20)) for id in ids]
    await asyncio.sleep(0.1)
    await resharded(prefix, server.url, 7)

    async def handle(message):
        return message.data["user"]

    async with running(worker_of(queue, handle)):
        assert await asyncio.gather(*waiting) == list(range(20))


async def test_who_does_not_know_of_it_yet_is_refused_by_the_shard_and_asks(queue, server, prefix, redis, monkeypatch):
    monkeypatch.setattr("streams_queue.sharding.FOLLOWS", 1000.0)
    async with sharded(prefix, server.url, shards=4) as late:
        await resharded(prefix, server.url, 2)
        assert late.routing.shards == 4
        receipts = await late.enqueue_many([{"user": n} for n in range(50)])
        assert late.routing.shards == 2
        assert {shard for found in (await standing(redis, queue, 4)).values() for shard in found} == {0, 1}
        assert len({receipt.id for receipt in receipts}) == 50
        late_again = await late.enqueue({"user": 1})
        assert await late.get(late_again.id) is not None


async def test_one_message_at_a_time_knows_of_it_too(queue, server, prefix, monkeypatch):
    monkeypatch.setattr("streams_queue.sharding.FOLLOWS", 1000.0)
    async with sharded(prefix, server.url, shards=4) as late:
        await resharded(prefix, server.url, 9)
        receipts = await asyncio.gather(*(late.enqueue({"user": n}) for n in range(50)))
        assert late.routing.shards == 9
        found = [await late.get(receipt.id) for receipt in receipts]
        assert [message and message.data["user"] for message in found] == list(range(50))


async def test_an_own_id_that_is_sent_again_across_the_change_is_one_message(queue, server, prefix):
    ids = [(await queue.enqueue({"user": n}, id=f"mine-{n}")).id for n in range(20)]
    handler = Handler()
    async with running(worker_of(queue, handler.handle)):
        await until(lambda: len(handler.ids) == 20)
    await resharded(prefix, server.url, 9)
    await queue.look()
    for n, id in enumerate(ids):
        again = await queue.enqueue({"user": n}, id=id)
        assert (again.duplicate, again.status) == (True, "completed")


async def test_workers_hear_of_new_shards_and_leave_old_ones(queue, server, prefix):
    handler = Handler()
    worker = worker_of(queue, handler.handle)
    async with running(worker):
        await resharded(prefix, server.url, 9)
        ids = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(50)])]
        await until(lambda: set(ids) <= set(handler.ids))
        await resharded(prefix, server.url, 2)
        await until(lambda: len(queue.shards) == 2)
        ids = [receipt.id for receipt in await queue.enqueue_many([{"user": n} for n in range(50)])]
        await until(lambda: set(ids) <= set(handler.ids))
        await until(lambda: gone(queue, 8), what="no worker in a shard that is not in use")
    assert len(handler.ids) == 100


async def gone(queue: Queue, shard: int) -> bool:
    return (await queue._all_shards[shard].stats()).workers == 0


async def test_load_goes_on_and_nothing_is_lost_or_done_twice(server, private, prefix):
    servers = [private(), private()]
    urls = [one.url for one in servers]
    handler = Handler()
    sent: list[str] = []
    stop = asyncio.Event()

    async def produce(queue: Queue) -> None:
        while not stop.is_set():
            sent.extend(r.id for r in await queue.enqueue_many([{"user": n} for n in range(40)]))
            sent.append((await queue.enqueue({"user": len(sent)}, delay=0.5)).id)

    async with sharded(prefix, *urls, shards=4) as queue, sharded(prefix, *urls, shards=4) as other:
        async with running(worker_of(queue, handler.handle)), running(worker_of(other, handler.handle)):
            producing = [asyncio.create_task(produce(one)) for one in (queue, other)]
            await until(lambda: len(handler.ids) > 500)
            for count in (9, 3, 4):
                await resharded(prefix, urls, count)
            stop.set()
            await asyncio.gather(*producing)
            await until(lambda: len(set(handler.ids)) == len(sent), seconds=30)
        stats = await queue.stats()
        assert (stats.main, stats.retry, stats.scheduled, stats.dead, stats.lost) == (0, 0, 0, 0, 0)
    assert Counter(handler.ids) == Counter(sent)


async def test_limits_and_pauses_hold_for_new_shards(queue, server, prefix):
    await queue.pause()
    await resharded(prefix, server.url, 8)
    await queue.look()
    assert all([(await shard.stats()).paused for shard in queue.shards])


# ---- refused


@pytest.mark.parametrize("count", [0, -1, 1025, 2.5, "8", True])
async def test_a_bad_number_is_refused(queue, count):
    with pytest.raises(ConfigurationError, match="is not a whole number from 1 to 1024"):
        await reshard(queue, count, quiet)


async def test_another_number_while_one_is_under_way_is_refused(queue, server, prefix, redis):
    await redis.hset(f"{registry_prefix(prefix)}:shards", mapping={"count": 8, "former": 4, "moving": 1, "version": 2})
    async with sharded(prefix, server.url) as other:
        with pytest.raises(MigrationError, match="on its way from 4 to 8 shards: finish that"):
            await reshard(other, 9, quiet)
    await resharded(prefix, server.url, 8)


async def test_two_at_the_same_time_are_one_after_the_other_or_refused(queue, server, prefix, redis):
    await redis.set(f"{registry_prefix(prefix)}:resharder", "reshard:another", px=60_000)
    with pytest.raises(MigrationError, match="is being changed by another process"):
        await reshard(queue, 8, quiet)


async def test_a_shard_that_knows_more_than_the_registry_is_an_error_of_the_server(queue, redis, monkeypatch):
    monkeypatch.setattr("streams_queue.sharding._PAUSES", (0.0, 0.1))
    for shard in queue.shards:
        await redis.hset(shard.keys.meta, "shards_version", 7)
    with pytest.raises(QueueUnavailable, match="the registry of shards does not say so"):
        await queue.enqueue({"user": 1})


# ---- killed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", range(12))
async def test_killed_anywhere_it_is_finished_by_the_next(queue, server, prefix, redis, monkeypatch, place):
    """In this process: what follows the place is not done, and its lock stays until it runs out."""
    ids = [r.id for r in await queue.enqueue_many([{"user": n} for n in range(60)])]
    ids += [r.id for r in await queue.enqueue_many([{"user": n} for n in range(20)], delay=1000)]
    hits = 0

    def hit(name: str) -> None:
        nonlocal hits
        hits += name == "mid_reshard"
        if hits == place + 1:
            raise Killed

    monkeypatch.setattr("streams_queue.failpoints.hit", hit)
    async with sharded(prefix, server.url) as mover:
        with pytest.raises(Killed):
            await reshard(mover, 6, quiet)
    monkeypatch.undo()
    await resharded(prefix, server.url, 6)
    await queue.look()
    found = await standing(redis, queue, 6)
    assert {id: len(shards) for id, shards in found.items()} == dict.fromkeys(ids, 1)
    handler = Handler()
    await work(queue, handler.handle)
    assert Counter(handler.ids) == Counter(ids[:60])
    assert (await queue.stats()).scheduled == 20


async def test_killed_and_not_run_again_what_was_held_goes_on_where_it_is(queue, server, prefix, redis, monkeypatch):
    monkeypatch.setattr("streams_queue_migrations.shard_door.HOLD", 0.5)
    ids = [r.id for r in await queue.enqueue_many([{"user": n} for n in range(60)])]
    hits = 0

    def hit(name: str) -> None:
        nonlocal hits
        hits += name == "mid_reshard"
        if hits == 4:  # a copy was written
            raise Killed

    monkeypatch.setattr("streams_queue.failpoints.hit", hit)
    async with sharded(prefix, server.url) as mover:
        with pytest.raises(Killed):
            await reshard(mover, 6, quiet)
    monkeypatch.undo()
    handler = Handler()
    async with running(worker_of(queue, handler.handle, lease=LEASE)):
        await until(lambda: len(handler.ids) == 60, seconds=20)
    await resharded(prefix, server.url, 6)
    await work(queue, handler.handle)
    assert Counter(handler.ids) == Counter(ids), "the copy was not run"


@pytest.mark.parametrize("stalled_before", ["arrive", "part", "discard"])
async def test_one_that_stalled_and_wakes_discards_nothing_of_the_next(queue, server, stalled_before):
    """The next has the message in its hands, gone from its source, when the first goes on."""
    (receipt,) = await queue.enqueue_many([{"user": 1}])
    source = queue.routing.holders(receipt.id)[0]
    here, there = (ShardDoor(queue.shards[n].connection, queue.shards[n].keys) for n in (source, (source + 1) % 4))
    first, second = f"{MOVERS}1", f"{MOVERS}2"

    async def step(owner: str, held: Any, name: str) -> None:
        match name:
            case "arrive":
                await there.arrive(owner, source, here.keys, held)
            case "part":
                await here.part(owner, held)
            case "discard":
                await there.discard([Arrival(receipt.id, source, owner)])

    steps = ["arrive", "part", "discard"]
    held, _ = await here.leave(first, [receipt.id])
    for name in steps[: steps.index(stalled_before)]:
        if name == "part":
            await here.leave(second, [receipt.id])  # takes it over
        await step(first, held, name)
    again, _ = await here.leave(second, [receipt.id])
    await there.arrive(second, source, here.keys, again)
    assert await here.part(second, again) == ["moved"]
    for name in steps[steps.index(stalled_before) :]:
        await step(first, held, name)
    assert [arrival async for arrival in there.arrivals()] == [Arrival(receipt.id, source, second)]
    assert await there.settle([receipt.id]) == ["entered"]
