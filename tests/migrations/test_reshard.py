"""Another number of shards, at work: every message is where it belongs, once, with all that it had."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from helpers import LEASE, Handler, running, until, work, worker_of
from streams_queue import (
    ConfigurationError,
    Limits,
    MigrationError,
    QueueUnavailable,
    Rate,
    RateLimited,
    Retry,
    ShardedQueue,
)
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


# ---- what the queue has agreed on


async def test_limits_and_pauses_hold_for_new_shards(queue, server, prefix):
    await queue.pause()
    await queue.set_limits(Limits(max_length=160, work=Rate(80, per=1.0)))
    await resharded(prefix, server.url, 8)
    await queue.look()
    assert all([(await shard.stats()).paused for shard in queue.shards])
    assert [await shard.limits() for shard in queue.shards] == [Limits(max_length=20, work=Rate(10, per=1.0))] * 8


async def test_shards_that_were_not_in_use_are_not_paused_for_ever(queue, server, prefix):
    await queue.pause()
    await resharded(prefix, server.url, 2)
    await queue.resume()
    await resharded(prefix, server.url, 4)
    await queue.look()
    assert not any([(await shard.stats()).paused for shard in queue.shards])


async def test_killed_between_the_new_number_and_the_rest_a_paused_queue_is_paused(queue, server, prefix, monkeypatch):
    await queue.pause()
    await queue.set_limits(Limits(work=Rate(90, per=1.0)))
    killed_at(1, monkeypatch)
    async with sharded(prefix, server.url) as mover:
        with pytest.raises(Killed):
            await reshard(mover, 9, quiet)
    await queue.look()
    assert all([(await shard.stats()).paused for shard in queue.shards])
    assert {(await shard.limits()).work for shard in queue.shards[4:]} == {Rate(10, per=1.0)}


async def test_while_messages_are_moved_the_rate_of_work_is_that_of_the_whole(queue, server, prefix, monkeypatch):
    await queue.set_limits(Limits(work=Rate(40, per=10.0)))
    await queue.enqueue_many([{"user": n} for n in range(60)])
    killed_at(5, monkeypatch)
    async with sharded(prefix, server.url) as mover:
        with pytest.raises(Killed):
            await reshard(mover, 1, quiet)
    await queue.look()
    assert [(await shard.limits()).work for shard in queue.shards] == [Rate(10, per=10.0)] * 4
    await resharded(prefix, server.url, 1)
    await queue.look()
    assert [(await shard.limits()).work for shard in queue.shards] == [Rate(40, per=10.0)]


@pytest.mark.parametrize("call", ["pause", "set_limits"])
async def test_who_has_not_heard_of_new_shards_reaches_them(server, prefix, monkeypatch, call):
    monkeypatch.setattr("streams_queue.sharding.FOLLOWS", 1000.0)
    async with sharded(prefix, server.url, shards=4) as late, sharded(prefix, server.url) as other:
        await resharded(prefix, server.url, 8)
        await (late.pause() if call == "pause" else late.set_limits(Limits(max_length=80)))
        await other.look()
        stats, limits = [[await getattr(shard, name)() for shard in other.shards] for name in ("stats", "limits")]
        assert len(other.shards) == 8
        assert all([found.paused for found in stats] if call == "pause" else [one.max_length == 10 for one in limits])


async def test_keys_stay_paused_and_their_rates_spent(queue, server, prefix):
    await queue.set_limits(Limits(key="user", work_per_key=Rate(1, per=100.0), accept_per_key=Rate(3, per=100.0)))
    await queue.enqueue_many([{"user": n // 3} for n in range(60)])
    begun: Counter[int] = Counter()

    async def handle(message):
        user = message.data["user"]
        begun[user] += 1
        if user < 10:
            raise Retry(delay=100, key=str(user))

    await work(queue, handle)
    assert begun == dict.fromkeys(range(20), 1)
    await resharded(prefix, server.url, 9)
    await queue.look()
    await work(queue, handle)
    assert begun == dict.fromkeys(range(20), 1)
    for shard in queue.shards:
        await shard.set_limits(Limits(key="user", accept_per_key=Rate(3, per=100.0)))
    await work(queue, handle)
    assert [begun[user] for user in range(10)] == [1] * 10, "paused"
    assert [begun[user] for user in range(10, 20)] == [3] * 10
    for user in range(10):
        with pytest.raises(RateLimited):
            await queue.enqueue({"user": user})


async def test_one_at_a_time_per_key_holds_afterwards(queue, server, prefix):
    await work(queue, Handler().handle, one_at_a_time_per="user")
    assert await queue.limits() == Limits(key="user", concurrency_per_key=1)
    await resharded(prefix, server.url, 9)
    await queue.look()
    assert [await shard.limits() for shard in queue.shards] == [Limits(key="user", concurrency_per_key=1)] * 9


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


def killed_at(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what follows the place is not done, and its lock stays until it runs out. Once."""
    hits = 0

    def hit(name: str) -> None:
        nonlocal hits
        hits += name == "mid_reshard"
        if name == "mid_reshard" and hits == place:
            raise Killed

    monkeypatch.setattr("streams_queue.failpoints.hit", hit)


@pytest.mark.parametrize("place", range(12))
async def test_killed_anywhere_it_is_finished_by_the_next(queue, server, prefix, redis, monkeypatch, place):
    ids = [r.id for r in await queue.enqueue_many([{"user": n} for n in range(60)])]
    ids += [r.id for r in await queue.enqueue_many([{"user": n} for n in range(20)], delay=1000)]
    killed_at(place + 1, monkeypatch)
    async with sharded(prefix, server.url) as mover:
        with pytest.raises(Killed):
            await reshard(mover, 6, quiet)
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
    killed_at(4, monkeypatch)  # a copy was written
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


async def test_one_that_stalled_for_long_moves_nothing_any_more(queue, server, prefix, redis, monkeypatch):
    """The next finishes the move, and another one changes the number again, before the first goes on."""
    await queue.enqueue_many([{"user": n} for n in range(60)])
    stalled, go, leave = asyncio.Event(), asyncio.Event(), ShardDoor.leave

    async def stall(door: ShardDoor, owner: str, ids: Any) -> Any:
        if not stalled.is_set():
            stalled.set()
            await go.wait()
        return await leave(door, owner, ids)

    monkeypatch.setattr(ShardDoor, "leave", stall)
    monkeypatch.setattr("streams_queue.sharding.FOLLOWS", 1000.0)
    monkeypatch.setattr("streams_queue_migrations.resharding.LASTS", 1000.0)  # it renews nothing
    async with sharded(prefix, server.url) as first:
        moving = asyncio.create_task(reshard(first, 9, quiet))
        await stalled.wait()
        for count in (9, 2):
            await redis.delete(f"{registry_prefix(prefix)}:resharder")
            await resharded(prefix, server.url, count)
        go.set()
        with pytest.raises(MigrationError, match="was stopped for too long, and does nothing more"):
            await moving
    await queue.look()
    assert {tuple(shards) for shards in (await standing(redis, queue, 9)).values()} == {(0,), (1,)}
    await work(queue, Handler().handle)
    assert await queue.length() == 0


async def test_one_that_stalled_takes_nothing_out_of_the_hands_of_a_later_one(queue):
    receipt = await queue.enqueue({"user": 1})
    source = queue.routing.holders(receipt.id)[0]
    here = ShardDoor(queue.shards[source].connection, queue.shards[source].keys)
    (held,), _ = await here.leave(f"{MOVERS}2", [receipt.id])
    assert held.id == receipt.id
    assert await here.leave(f"{MOVERS}1", [receipt.id]) == ([], {receipt.id: "busy"})


async def test_the_dead_are_named_while_what_they_held_is_waited_for(queue, server, prefix, redis, monkeypatch, caplog):
    monkeypatch.setattr("streams_queue_migrations.resharding.TELLS", 0.5)
    await queue.enqueue_many([{"user": n} for n in range(30)])
    for shard in queue.shards:
        await shard.transitions.join("a-dead-one", 0.1)
        await shard.transitions.claim("a-dead-one", 100)
    moving = asyncio.create_task(resharded(prefix, server.url, 9))
    await until(lambda: "held by workers that give no sign of life: a-dead-one" in caplog.text)
    async with running(worker_of(queue, Handler().handle, lease=0.1)):
        await moving


# ---- proved


async def test_a_message_that_vanishes_on_its_way_is_a_fault(queue, server, prefix, raw, monkeypatch):
    await queue.enqueue_many([{"user": n} for n in range(30)])
    settle = ShardDoor.settle
    vanished: list[str] = []

    async def evict_first(door: ShardDoor, ids: Any) -> list[str]:
        if not vanished:
            vanished.append(ids[0])
            await raw.delete(door.keys.arriving(ids[0]))
        return await settle(door, ids)

    monkeypatch.setattr(ShardDoor, "settle", evict_first)
    async with sharded(prefix, server.url) as mover:
        done = await reshard(mover, 9, quiet)
        faults = {check.name: check.examples for check in done.checks if not check.holds}
        assert (done.clean, faults) == (False, {"whole": vanished})
        await queue.look()
        assert (await queue.stats()).lost == 1
        assert not queue.routing.moving, "what is lost holds up nothing"
    await resharded(prefix, server.url, 4)


async def test_messages_with_the_same_id_that_meet_are_named_and_hold_up_nothing(queue, server, prefix):
    users = {queue.routing.home("mine", [b"user", str(n).encode()]): n for n in range(50)}
    for user in users.values():
        assert not (await queue.enqueue({"user": user}, id="mine")).duplicate
    done = await resharded(prefix, server.url, 1)
    assert done.known == ["mine"] * 3
    assert {check.name for check in done.checks if not check.holds} == {"ids"}
    await queue.look()
    assert (await queue.length(), queue.routing.moving) == (1, False)
    await resharded(prefix, server.url, 4)


@pytest.mark.parametrize("harm", ["body", "entry", "two places"])
async def test_what_is_not_as_it_must_be_is_a_fault(queue, server, prefix, redis, harm):
    receipts = await queue.enqueue_many([{"user": n} for n in range(30)])
    then = queue.routing._replace(shards=9)
    harmed = next(r.id for r in receipts if then.home(r.id, []) == queue.routing.home(r.id, []))
    keys = queue.shards[queue.routing.holders(harmed)[0]].keys
    await resharded(prefix, server.url, 9)
    match harm:
        case "body":
            await redis.delete(keys.message(harmed))
        case "entry":
            await redis.delete(keys.streams["n"])
        case "two places":
            await redis.zadd(keys.scheduled, {harmed: 1e10})
    async with sharded(prefix, server.url) as mover:
        done = await reshard(mover, 9, quiet)
    assert not done.clean


async def test_a_registry_that_was_lost_catches_up_with_what_shards_know(queue, server, prefix, redis):
    await resharded(prefix, server.url, 5)
    await resharded(prefix, server.url, 4)
    await redis.delete(f"{registry_prefix(prefix)}:shards")
    async with sharded(prefix, server.url, shards=4) as new:
        with pytest.raises(QueueUnavailable, match="run `streams-queue reshard`"):
            await new.enqueue({"user": 1})
        await resharded(prefix, server.url, 4)
        await new.look()
        await new.enqueue({"user": 1})
    await resharded(prefix, server.url, 5)
