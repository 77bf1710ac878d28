"""One queue over many."""

from __future__ import annotations

import asyncio
import inspect
import re
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import servers
from helpers import Handler, until, work
from streams_queue import (
    ConfigurationError,
    HandlerFailed,
    InvalidMessage,
    Limits,
    NotFound,
    Queue,
    QueueFull,
    QueueUnavailable,
    Rate,
    RateLimited,
    Reject,
    Removed,
    ShardedQueue,
)
from streams_queue.codec import value_in
from streams_queue.routing import hash_in, hash_of, jump, made_id
from streams_queue.settings import Settings

SHARDS = 4


@pytest.fixture
def prefix(sharded_prefix: str) -> str:
    return sharded_prefix


@pytest.fixture
def redis(everywhere: Any) -> Any:
    return everywhere


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[ShardedQueue[Any]]:
    async with ShardedQueue(prefix, shards=SHARDS, url=server.url) as queue:
        yield queue


async def work_all(queue: ShardedQueue[Any], handle: Any, **options: Any) -> None:
    for shard in queue.shards:
        await work(shard, handle, **options)


async def fail(message):
    raise Reject("not like that")


async def other_key(queue: ShardedQueue[Any], than: str) -> str:
    """A user whose messages have another shard."""
    home = jump(hash_of(than.encode()), len(queue.shards))
    return next(user for user in map(str, range(100)) if jump(hash_of(user.encode()), len(queue.shards)) != home)


# ---- arithmetic


def test_the_hash_is_what_any_language_computes():
    """`printf u1 | sha1sum` begins with it."""
    assert f"{hash_of(b'u1'):08x}" == "c5ea7155"


@pytest.mark.parametrize(
    ("hash", "shards", "shard"),
    [(0, 1, 0), (256, 1024, 520), (10863919174838991, 11, 6), (0xDEADBEEF, 1, 0), (0, 60, 0), (1, 1, 0)],
)
def test_jump_is_the_one_that_is_published(hash, shards, shard):
    """The values are those that other implementations test against."""
    assert jump(hash, shards) == shard


def test_each_shard_has_its_part():
    for shards in (2, 16, 100):
        found = Counter(jump(hash_of(b"user-%d" % n), shards) for n in range(20_000))
        expected = 20_000 / shards
        deviations = sum((found[shard] - expected) ** 2 / expected for shard in range(shards))
        assert deviations < shards + 5 * (2 * shards) ** 0.5, f"chi squared of {shards} shards: {deviations}"


def test_where_the_number_grows_few_move_and_all_to_the_new_ones():
    hashes = [hash_of(b"user-%d" % n) for n in range(20_000)]
    for before, after in [(4, 5), (16, 17), (16, 32)]:
        moved = [(jump(hash, before), jump(hash, after)) for hash in hashes]
        left = [pair for pair in moved if pair[0] != pair[1]]
        assert all(new >= before for _, new in left)
        fair = (after - before) / after
        assert abs(len(left) / len(hashes) - fair) < 0.02, f"{before} to {after}"


def test_an_id_carries_its_keys_hash():
    uuid = "5436b99c-2a7c-458c-a5e1-a15f170039df"
    assert made_id(uuid, b"u1") == f"{uuid}.c5ea7155"
    assert hash_in(made_id(uuid, b"u1")) == hash_of(b"u1")
    assert hash_in(made_id(uuid, None)) == hash_of(uuid.encode())
    for own in ("u1", uuid, f"{uuid}.c5ea715", f"{uuid}.C5EA7155", f"{uuid}.c5ea7155\n", f"x{uuid}.c5ea7155"):
        assert hash_in(own) is None


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        ({"user_id": "u1"}, b"u1"), ({"user_id": 7}, b"7"), ({"user_id": "7"}, b"7"), ({"user_id": b"\xff"}, b"\xff"),
        ({"user_id": "None"}, b"None"), ({"user_id": None}, None), ({"user_id": ""}, None), ({"x": "user_id"}, None),
        ({"user_id": [1, 2]}, b"[1,2]"), ({"user_id": True}, b"True"), ({}, None), ({"a": None, "user_id": "u"}, b"u"),
    ],
)  # fmt: skip
def test_the_key_is_what_is_stored(payload, value):
    assert value_in(Queue("q", url="redis://nowhere").codec.encode(payload), "user_id") == value


def test_a_key_that_the_engine_needs_itself():
    assert value_in(Queue("q", url="redis://nowhere").codec.encode({"status": "s", "_x": "y"}), "status") == b"s"


# ---- what is refused before anything is asked


class Order(msgspec.Struct):
    customer: str = msgspec.field(name="buyer")
    sku: str = ""


@pytest.mark.parametrize("shards", [0, -1, 1025, 1.5, "16", True, float("nan")])
def test_a_bad_number_of_shards(shards):
    with pytest.raises(ConfigurationError, match=r"shards=.* is not a whole number from 1 to 1024"):
        ShardedQueue("q", shards=shards, url="redis://nowhere")


@pytest.mark.parametrize("key", ["", 7, b"user_id", "\ud800", ["user_id"]])
def test_a_bad_key(key):
    with pytest.raises(ConfigurationError, match="key="):
        ShardedQueue("q", key=key, url="redis://nowhere")


def test_a_key_that_no_payload_has():
    with pytest.raises(ConfigurationError, match="key='customer' is no field of Order, which has buyer, sku: name one"):
        ShardedQueue("q", key="customer", payload=Order, url="redis://nowhere")
    with pytest.raises(ConfigurationError, match="key='user_id' is no field of Order"):
        ShardedQueue("q", payload=Order, url="redis://nowhere")
    ShardedQueue("q", key="buyer", payload=Order, url="redis://nowhere")
    ShardedQueue("q", key=None, payload=Order, url="redis://nowhere")


@pytest.mark.parametrize("prefix", ["{q}", "q}", "a{b"])
def test_a_prefix_with_a_hash_tag(prefix):
    with pytest.raises(ConfigurationError, match="has braces: leave them out"):
        ShardedQueue(prefix, url="redis://nowhere")


def test_a_prefix_that_leaves_no_room_for_the_shards():
    with pytest.raises(ConfigurationError, match="128"):
        ShardedQueue("q" * 128, url="redis://nowhere")
    ShardedQueue("q" * 121, url="redis://nowhere")


@pytest.mark.parametrize("url", [[], "", " ", ["redis://a", ""], "redis://a nonsense"])
def test_bad_urls(url):
    with pytest.raises(ConfigurationError, match="url"):
        ShardedQueue("q", url=url)


def test_several_urls(monkeypatch):
    both = Settings("redis://a:1/0"), Settings("redis://b:2/0")
    assert ShardedQueue("q", url=["redis://a:1/0", "redis://b:2/0"]).servers == both
    assert ShardedQueue("q", url="redis://a:1/0  redis://b:2/0").servers == both
    monkeypatch.setenv("STREAMS_QUEUE_URL", "redis://a:1/0 redis://b:2/0")
    assert ShardedQueue("q").servers == both


def test_the_repr_shows_no_password():
    queue = ShardedQueue("q", url=["redis://:hidden@a", "redis://:hidden@b"])
    assert repr(queue) == "ShardedQueue('q', shards=16, key='user_id', url='redis://:***@a redis://:***@b')"


async def test_before_it_is_open(server, prefix):
    queue = ShardedQueue(prefix, url=server.url)
    with pytest.raises(RuntimeError, match="open"):
        await queue.enqueue({"user_id": "u1"})
    with pytest.raises(RuntimeError, match="open"):
        await queue.position("x")
    await queue.close()


# ---- where messages go


async def test_messages_of_one_key_are_in_one_shard_and_in_order(queue):
    sent = defaultdict(list)
    for n in range(60):
        user = f"u{n % 7}"
        sent[user].append((await queue.enqueue({"user_id": user, "n": n})).id)
    homes = defaultdict(set)
    for number, shard in enumerate(queue.shards):
        handler = Handler()
        await work(shard, handler.handle, concurrency=1)
        for message in handler.messages:
            homes[message.data["user_id"]].add(number)
            assert sent[message.data["user_id"]].pop(0) == message.id, "in order"
    assert not any(sent.values())
    assert {len(shards) for shards in homes.values()} == {1}
    assert len(set.union(*homes.values())) > 1


async def test_receipts_come_in_order(queue):
    payloads = [{"user_id": f"u{n % 11}", "n": n} for n in range(1200)]
    receipts = await queue.enqueue_many(payloads)
    assert [(await queue.get(receipt.id)).data for receipt in receipts[::97]] == payloads[::97]
    assert len({receipt.id for receipt in receipts}) == 1200
    assert not any(receipt.duplicate for receipt in receipts)
    at_once = await asyncio.gather(*(queue.enqueue(payload) for payload in payloads[:50]))
    assert [(await queue.get(receipt.id)).data for receipt in at_once] == payloads[:50]
    assert await queue.length() == 1250


async def test_the_shards_are_plain_queues(queue, prefix, server):
    receipt = await queue.enqueue({"user_id": "u1"})
    home = jump(hash_of(b"u1"), SHARDS)
    async with Queue(f"{{{prefix}:{home}}}", url=server.url) as shard:
        assert await shard.position(receipt.id) == 1
        assert await shard.length() == await queue.length() == 1


async def test_without_a_key_a_message_goes_by_its_id(queue):
    receipts = await queue.enqueue_many([{"user_id": None}, {"user_id": ""}, {"x": 1}] * 20)
    assert len({queue.routing.holders(receipt.id)[0] for receipt in receipts}) == SHARDS
    for n in range(8):
        await queue.enqueue({}, id=f"own-{n}")
        assert await queue.shards[jump(hash_of(b"own-%d" % n), SHARDS)].get(f"own-{n}")


async def test_all_by_their_ids(server, prefix):
    async with ShardedQueue(prefix, shards=SHARDS, key=None, url=server.url) as queue:
        receipts = await queue.enqueue_many([{"user_id": "u1"}] * 40)
        assert len({queue.routing.holders(receipt.id)[0] for receipt in receipts}) == SHARDS


async def test_a_struct(server, prefix):
    async with ShardedQueue(prefix, shards=SHARDS, key="buyer", payload=Order, url=server.url) as queue:
        receipt = await queue.enqueue(Order("c1", "s"))
        assert queue.routing.holders(receipt.id)[0] == jump(hash_of(b"c1"), SHARDS)
        found = await queue.get(receipt.id)
        assert found is not None
        assert found.data == Order("c1", "s")


async def test_all_are_checked_before_the_first_is_written(queue):
    with pytest.raises(InvalidMessage):
        await queue.enqueue_many([{"user_id": "u1"}, {"user_id": object()}])
    assert await queue.length() == 0


async def test_other_arguments_of_enqueue(queue):
    urgent = await queue.enqueue({"user_id": "u1"}, priority="high", ttl=60)
    later = await queue.enqueue({"user_id": "u1"}, delay=60)
    first = await queue.enqueue({"user_id": "u1"}, unique_key="k")
    again = await queue.enqueue({"user_id": "u1"}, unique_key="k")
    assert (again.id, again.duplicate) == (first.id, True)
    assert (await queue.get(urgent.id)).priority == "high"
    assert later.status == "scheduled"
    with pytest.raises(InvalidMessage, match="priority"):
        await queue.enqueue({"user_id": "u1"}, priority="urgent")


async def test_a_unique_key_is_known_per_shard_only(queue):
    await queue.enqueue({"user_id": "u1"}, unique_key="k")
    other = await queue.enqueue({"user_id": await other_key(queue, "u1")}, unique_key="k")
    assert not other.duplicate


# ---- ids


async def test_an_id_that_was_made_here_leads_to_its_message(queue, monkeypatch):
    receipts = await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    asked: list[int] = []
    for number, shard in enumerate(queue.shards):
        run = shard.transitions._run

        async def counted(*arguments, run=run, number=number, **named):
            asked.append(number)
            return await run(*arguments, **named)

        monkeypatch.setattr(shard.transitions, "_run", counted)
    for receipt in receipts:
        asked.clear()
        assert await queue.position(receipt.id)
        assert await queue.ahead(receipt.id) is not None
        assert (await queue.get(receipt.id)).id == receipt.id
        assert await queue.update(receipt.id, {"n": 1})
        assert await queue.remove(receipt.id)
        assert asked == [queue.routing.holders(receipt.id)[0]] * 5
        asked.clear()
        assert await queue.position("own") is None
        assert sorted(asked) == [0, 1, 2, 3]


async def test_an_id_of_ones_own_is_found_in_whichever_shard(queue):
    for n in range(8):
        await queue.enqueue({"user_id": f"u{n}"}, id=f"own-{n}")
    for n in range(8):
        assert await queue.position(f"own-{n}")
        assert (await queue.get(f"own-{n}")).data == {"user_id": f"u{n}"}
        assert await queue.update(f"own-{n}", {"seen": True})
        assert await queue.set_priority(f"own-{n}", "high")
        assert (await queue.enqueue({"user_id": f"u{n}"}, id=f"own-{n}")).duplicate
        assert await queue.remove(f"own-{n}")
        assert not await queue.remove(f"own-{n}")
    assert (await queue.position("own-1"), await queue.ahead("own-1"), await queue.get("own-1")) == (None, None, None)
    assert not await queue.update("own-1", {"seen": True})


async def test_the_same_id_with_another_key_is_another_message(queue):
    await queue.enqueue({"user_id": "u1"}, id="own")
    assert not (await queue.enqueue({"user_id": await other_key(queue, "u1")}, id="own")).duplicate
    assert await queue.length() == 2
    assert await queue.remove("own")
    assert await queue.length() == 0


async def test_an_id_that_was_made_for_another_key_is_refused(queue):
    made = (await queue.enqueue({"user_id": "u1"})).id
    with pytest.raises(InvalidMessage, match="was made for a message with another key"):
        await queue.enqueue({"user_id": "u2"}, id=made)
    assert (await queue.enqueue({"user_id": "u1"}, id=made)).duplicate
    assert (await queue.enqueue({}, id=made)).duplicate, "without a key, it says itself where it belongs"
    assert await queue.length() == 1


async def test_what_a_message_goes_by_stays(queue):
    receipt = await queue.enqueue({"user_id": "u1"})
    with pytest.raises(InvalidMessage, match="'user_id' says in which shard"):
        await queue.update(receipt.id, {"user_id": "u2", "x": 1})
    assert (await queue.get(receipt.id)).data == {"user_id": "u1"}
    assert await queue.update(receipt.id, {})


async def test_results(queue):
    async def handle(message):
        return message.data["n"] * 2

    receipts = await queue.enqueue_many([{"user_id": f"u{n}", "n": n} for n in range(10)])
    await queue.enqueue({"user_id": "u1", "n": 50}, id="own")
    waiting = [asyncio.create_task(queue.result(receipt.id, timeout=10)) for receipt in receipts]
    own = asyncio.create_task(queue.result("own", timeout=10))
    await asyncio.sleep(0)
    await work_all(queue, handle)
    assert [await task for task in waiting] == [n * 2 for n in range(10)]
    assert await own == await queue.result("own") == 100
    with pytest.raises(NotFound, match="'unknown'"):
        await queue.result("unknown")


async def test_results_that_are_none(queue):
    async def nothing(message):
        raise Reject("no")

    failed = await queue.enqueue({"user_id": "u1"}, id="failed")
    removed = await queue.enqueue({"user_id": "u2"})
    await queue.remove(removed.id)
    with pytest.raises(Removed):
        await queue.result(removed.id)
    with pytest.raises(TimeoutError):
        await queue.result(failed.id, timeout=0.2)
    await work_all(queue, nothing)
    with pytest.raises(HandlerFailed, match="no"):
        await queue.result(failed.id)


# ---- the whole


async def test_stats_add_up(queue):
    await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(5)], delay=60)
    await work_all(queue, fail)
    await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(7)])
    stats = await queue.stats()
    each = [await shard.stats() for shard in queue.shards]
    assert (stats.main, stats.scheduled, stats.dead, stats.retry, stats.lost) == (7, 5, 20, 0, 0)
    assert await queue.length() == 12
    assert stats.counters["total_messages"] == 32
    assert stats.counters["dlq_messages"] == stats.died["rejected"] == 20
    assert stats.counters.keys() == set.union(*(set(one.counters) for one in each))
    assert stats.oldest_waiting is not None
    assert stats.oldest_waiting <= max(one.oldest_waiting or 0 for one in each)
    assert (await queue.transitions.oldest()).since == pytest.approx(  # by how long it waits: each server has its clock
        min([found.since for found in [await shard.transitions.oldest() for shard in queue.shards] if found.since]),
        abs=0.05,
    )


async def test_an_empty_queue(queue):
    stats = await queue.stats()
    assert (stats.main, stats.dead, stats.oldest_waiting, stats.workers, stats.paused) == (0, 0, None, 0, False)
    assert stats.counters == stats.died == stats.edits == {}
    assert await queue.dead_letters.list() == []
    assert (await queue.transitions.oldest()).since is None


async def test_pause_and_resume_reach_every_shard(queue):
    await queue.pause()
    assert [(await shard.stats()).paused for shard in queue.shards] == [True] * SHARDS
    assert (await queue.stats()).paused
    await queue.resume()
    assert [(await shard.stats()).paused for shard in queue.shards] == [False] * SHARDS
    await queue.shards[2].pause()
    assert (await queue.stats()).paused, "some messages do not move"


async def test_dead_letters_are_merged_by_time_of_death(queue):
    died = []
    for n in range(12):
        died.append((await queue.enqueue({"user_id": f"u{n % 5}", "n": n})).id)
        await work_all(queue, fail)
    newest_first = died[::-1]
    letters = queue.dead_letters
    assert [letter.id for letter in await letters.list()] == newest_first
    assert [letter.id for letter in await letters.list(limit=4, offset=3)] == newest_first[3:7]
    assert await letters.list(limit=4, offset=12) == await letters.list(limit=0) == []
    assert [letter.id async for letter in letters.scan()] == newest_first
    assert await letters.requeue(died[0])
    assert await letters.delete(died[1])
    assert not await letters.requeue(died[1])
    assert not await letters.delete("unknown")
    assert [letter.id for letter in await letters.list()] == newest_first[:-2]
    assert (await queue.get(died[0])).status == "queued"


async def test_pages_go_on_over_all_shards(queue):
    sent = [receipt.id for receipt in await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(50)])]
    walked = [place.id async for page in queue.transitions.walk("main", count=7) for place in page.places]
    assert sorted(walked) == sorted(sent)
    backwards = queue.transitions.walk("main", count=7, newest_first=True)
    assert [place.id async for page in backwards for place in page.places] == walked[::-1]


async def test_places_of_one_score_are_met_once(queue):
    for n in range(30):
        await queue.enqueue({"user_id": f"u{n}"}, id=f"m{n}")
    for shard in queue.shards:
        for id in await shard.connection.client.zrange(shard.keys.main, 0, -1):
            await shard.connection.client.zadd(shard.keys.main, {id: 5.0})
    for newest_first in (False, True):
        walk = queue.transitions.walk("main", count=4, newest_first=newest_first)
        found = [place.id async for page in walk for place in page.places]
        assert found == sorted([f"m{n}" for n in range(30)], reverse=newest_first)


async def test_workers_are_counted_once(queue):
    for shard in queue.shards:
        await shard.transitions.join("host-1", 30)
    await queue.shards[1].transitions.join("host-2", 30)
    assert (await queue.stats()).workers == 2
    workers = await queue.transitions.workers(10)
    assert sorted(worker.name for worker in workers) == ["host-1", "host-2"]
    await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    for shard in queue.shards:
        await shard.transitions.claim("host-1", 100)
    (first,) = [worker for worker in await queue.transitions.workers(100) if worker.name == "host-1"]
    assert first.pending == len(first.held) == 20


async def test_limits_are_divided(queue):
    limits = Limits(
        key="user_id", max_length=1001, accept=Rate(30, per=1.0), work=Rate(2, per=60.0), concurrency_per_key=3,
        accept_per_key=Rate(5, per=10.0), low_share=0.1,
    )  # fmt: skip
    assert await queue.limits() == Limits()
    await queue.set_limits(limits)
    assert await queue.limits() == limits
    (part,) = {await shard.limits() for shard in queue.shards}
    assert part.max_length == 250
    assert part.accept is not None
    assert (part.accept.count, part.accept.count / part.accept.per * SHARDS) == (8, pytest.approx(30))
    assert part.work == Rate(1, per=120.0)
    assert (part.key, part.concurrency_per_key, part.accept_per_key, part.low_share) == (
        limits.key, limits.concurrency_per_key, limits.accept_per_key, limits.low_share
    )  # fmt: skip
    await queue.set_limits(Limits())
    assert {await shard.limits() for shard in queue.shards} == {Limits()}


async def test_a_shard_that_got_its_part_refuses_while_others_have_room(queue):
    await queue.set_limits(Limits(max_length=4 * SHARDS))
    for _ in range(4):
        await queue.enqueue({"user_id": "u1"})
    with pytest.raises(QueueFull):
        await queue.enqueue({"user_id": "u1"})
    await queue.enqueue({"user_id": await other_key(queue, "u1")})
    with pytest.raises(QueueFull):
        await queue.enqueue_many([{"user_id": "u1"}] * 2)
    assert await queue.length() == 5


async def test_a_rate_of_a_key_holds_over_all_shards(queue):
    await queue.set_limits(Limits(key="user_id", accept_per_key=Rate(2, per=60.0)))
    for user in ("u1", await other_key(queue, "u1")):
        for _ in range(2):
            await queue.enqueue({"user_id": user})
        with pytest.raises(RateLimited):
            await queue.enqueue({"user_id": user})


@pytest.mark.parametrize(
    "limits",
    [Limits(key="chat_id", accept_per_key=Rate(1)), Limits(max_length=3), Limits(key="x", concurrency_per_key=1)],
)
async def test_limits_that_cannot_be_divided(queue, limits):
    with pytest.raises(ConfigurationError, match="shards"):
        await queue.set_limits(limits)
    assert await queue.limits() == Limits()


async def test_what_a_worker_does_is_done_in_one_shard(queue):
    t = queue.transitions
    for call in (
        t.claim("w", 1), t.join("w", 1), t.index_users(), t.count("x"), t.in_line("x"), t.pending("w"), t.free("slot"),
        t.promote(), t.schema(), t.tell(["c"], b""),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="is sharded: this is done in one of its shards"):
            await call


CONSIDERED = {
    "open", "close", "drain", "use", "enqueue", "enqueue_many", "position", "ahead", "get", "update", "remove",
    "length", "stats", "pause", "resume", "limits", "set_limits", "result", "set_priority",
    "check_limits",
}  # fmt: skip
"""Methods of Queue of which this page says what they do in a queue with shards."""


def test_every_method_of_a_queue_is_considered():
    names = {name for name, _ in inspect.getmembers(Queue, inspect.isfunction) if not name.startswith("_")}
    assert names == CONSIDERED


# ---- what all agree on


async def test_who_is_first_decides(queue, server, prefix, redis):
    found = await redis.hgetall(f"{{{prefix}}}:shards")
    assert len(found.pop("id")) == 32
    assert found == {
        "count": "4", "key": "user_id", "servers": "1", "version": "1",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"has 4 shards, 8 were asked for: .*streams-queue reshard"):
        await ShardedQueue(prefix, shards=8, url=server.url).open()
    with pytest.raises(ConfigurationError, match="go by 'user_id', key='chat_id' was asked for"):
        await ShardedQueue(prefix, shards=4, key="chat_id", url=server.url).open()
    with pytest.raises(ConfigurationError, match="on 1 servers, 2 were named"):
        await ShardedQueue(prefix, shards=4, url=[server.url, server.url.replace("/0", "/1")]).open()
    assert await redis.hget(f"{{{prefix}}}:shards", "count") == "4"


async def test_what_was_decided_is_taken(queue, server, prefix):
    receipt = await queue.enqueue({"user_id": "u1"})
    async with ShardedQueue(prefix, shards=None, key="whatever", url=server.url) as other:
        assert (len(other.shards), other.key) == (4, "user_id")
        assert await other.get(receipt.id)


async def test_by_ids_is_agreed_on_too(server, prefix):
    async with ShardedQueue(prefix, shards=2, key=None, url=server.url):
        pass
    async with ShardedQueue(prefix, shards=None, url=server.url) as queue:
        assert queue.key is None
    with pytest.raises(ConfigurationError, match="go by None, key='user_id'"):
        await ShardedQueue(prefix, shards=2, url=server.url).open()


async def test_nothing_was_decided(server, prefix, redis):
    with pytest.raises(ConfigurationError, match="nothing says how many shards"):
        await ShardedQueue(prefix, shards=None, url=server.url).open()
    assert await redis.keys("*") == []


@pytest.mark.leaks("another program's key")
@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"count": "many", "servers": "1", "version": "1", "key": ""},
        {"count": "0", "servers": "1", "version": "1", "key": "user_id"},
        {"count": "1025", "servers": "1", "version": "1", "key": "user_id"},
        {"count": "4", "servers": "0", "version": "1", "key": "user_id"},
    ],
)
async def test_the_registry_is_another_programs(server, prefix, redis, fields):
    await redis.hset(f"{{{prefix}}}:shards", mapping=fields)
    for shards in (16, None):
        with pytest.raises(ConfigurationError, match="holds no registry of shards"):
            await ShardedQueue(prefix, shards=shards, url=server.url).open()
    await redis.delete(f"{{{prefix}}}:shards")
    await redis.set(f"{{{prefix}}}:shards", "x")
    with pytest.raises(ConfigurationError, match="belongs to another program"):
        await ShardedQueue(prefix, url=server.url).open()


async def test_many_that_open_it_at_once_agree(server, prefix):
    async def count(shards: int) -> int | None:
        try:
            async with ShardedQueue(prefix, shards=shards, url=server.url) as queue:
                return len(queue.shards)
        except ConfigurationError:
            return None

    found = await asyncio.gather(*(count(n) for n in (2, 3, 4) * 4))
    assert Counter(filter(None, found)).most_common() == [(max(filter(None, found)), 4)]


async def test_it_opens_again(server, prefix):
    queue = ShardedQueue(prefix, shards=SHARDS, url=server.url)
    for _ in range(2):
        async with queue:
            await queue.open()
            sending = asyncio.gather(*(queue.enqueue({"user_id": f"u{n}"}) for n in range(20)))
            await asyncio.sleep(0)
        assert len(await sending) == 20, "close sends what was submitted"
    async with queue:
        assert await queue.length() == 40


async def test_shards_on_one_server_share_its_connections(queue):
    """Not on a Cluster, whose client sends one command after the other."""
    clients = {shard.connection for shard in queue.shards}
    listeners = {id(shard.listener) for shard in queue.shards}
    if queue.connection.is_cluster:
        assert (len(clients), len(listeners)) == (SHARDS, SHARDS)
    else:
        assert (clients, len(listeners)) == ({queue.connection}, 1)


async def test_a_newer_engine_wrote_one_shard(queue, server, prefix, redis):
    await redis.hset(queue.shards[3].keys.meta, "schema", "99")
    with pytest.raises(ConfigurationError, match="has schema 99"):
        await ShardedQueue(prefix, shards=SHARDS, url=server.url).open()


# ---- several servers


@pytest.fixture
async def spread(private, prefix) -> AsyncIterator[tuple[ShardedQueue[Any], list[servers.Server]]]:
    hosts = [private() for _ in range(3)]
    async with ShardedQueue(prefix, shards=7, url=[host.url for host in hosts]) as queue:
        yield queue, hosts


async def test_shards_take_turns_on_the_servers(spread):
    queue, hosts = spread
    receipts = await queue.enqueue_many([{"user_id": f"u{n}", "n": n} for n in range(200)])
    held = []
    for number, host in enumerate(hosts):
        async with host.client() as client:
            keys = [key async for key in client.scan_iter("*:queue:main")]
            assert {int(key.partition(":")[2].partition("}")[0]) % 3 for key in keys} == {number}
            held.append(sum([await client.zcard(key) for key in keys]))
            count = await client.hget(f"{{{queue.keys.prefix}}}:shards", "count")
            assert count == ("7" if number == 0 else f"server {number + 1} of 3")
    assert sum(held) == await queue.length() == 200
    assert min(held) > 0
    assert len({id(shard.connection) for shard in queue.shards}) == 3

    async def handle(message):
        return message.data["n"]

    waiting = [asyncio.create_task(queue.result(receipt.id, timeout=20)) for receipt in receipts]
    await work_all(queue, handle)
    assert [await task for task in waiting] == list(range(200))


async def test_dead_letters_of_several_servers(spread):
    queue, _ = spread
    died = []
    for n in range(10):
        died.append((await queue.enqueue({"user_id": f"u{n}"})).id)
        await work(queue.shards[queue.routing.holders(died[-1])[0]], fail)
    assert [letter.id for letter in await queue.dead_letters.list(limit=6)] == died[:3:-1]
    assert [letter.id async for letter in queue.dead_letters.scan()] == died[::-1]


async def test_one_server_is_away(spread):
    queue, hosts = spread
    users = {queue.routing.home("x", [b"user_id", user.encode()]) % 3: user for user in map(str, range(50))}
    hosts[1].kill()
    began = time.monotonic()
    with pytest.raises(QueueUnavailable, match=queue.keys.prefix):
        await queue.enqueue({"user_id": users[1]})
    assert not (await queue.enqueue({"user_id": users[0]})).duplicate
    with pytest.raises(QueueUnavailable):
        await queue.stats()
    with pytest.raises(QueueUnavailable):
        await queue.enqueue_many([{"user_id": user} for user in users.values()])
    assert time.monotonic() - began < 10
    await asyncio.to_thread(hosts[1].start)
    assert await until(lambda: _counted(queue), what="the server to be back") == 3


async def _counted(queue: Queue[Any]) -> int | None:
    try:
        return await queue.length()
    except QueueUnavailable:
        return None


async def test_a_server_that_is_away_from_the_beginning(private, prefix):
    there, away = private(), f"redis://127.0.0.1:{servers.free_port()}"
    queue = ShardedQueue(prefix, shards=2, url=[there.url, away])
    with pytest.raises(QueueUnavailable):
        await queue.open()
    assert not queue.connection.is_open
    assert not any(shard.connection.is_open for shard in queue.shards)


# ---- Redis Cluster


@pytest.fixture
async def cluster(private) -> str:
    """Three primaries; the URL that names them."""
    nodes = [private("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
    for number, node in enumerate(nodes):
        async with node.client() as client:
            slots = range(16384 * number // 3, 16384 * (number + 1) // 3)
            await client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            await client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)

    async def is_up(node: servers.Server) -> bool:
        async with node.client() as client:
            info = await client.execute_command("CLUSTER", "INFO")
            return "cluster_state:ok" in info and "cluster_known_nodes:3" in info

    for node in nodes:
        await until(lambda: is_up(node), 30, "the cluster up")  # noqa: B023
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


async def test_on_cluster_shards_spread_over_the_nodes(cluster, prefix):
    ports = {int(place.rpartition(":")[2]) for place in cluster.removeprefix("redis+cluster://").split(",")}
    async with ShardedQueue(prefix, shards=8, url=cluster) as queue:
        receipts = await queue.enqueue_many([{"user_id": f"u{n}", "n": n} for n in range(100)])
        await queue.enqueue({"user_id": "u1", "n": 200}, id="own")
        client: Any = queue.connection.client
        owners = {client.get_node_from_key(shard.keys.main).port for shard in queue.shards}
        assert owners == ports
        assert (await queue.stats()).main == 101
        waiting = [asyncio.create_task(queue.result(receipt.id, timeout=20)) for receipt in receipts]

        async def handle(message):
            if message.data["n"] % 10 == 9:
                raise Reject("no")
            return message.data["n"]

        await work_all(queue, handle)
        assert await queue.result("own") == 200
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, HandlerFailed)] == [n for n in range(100) if n % 10 != 9]
        letters = await queue.dead_letters.list()
        assert len(letters) == 10
        died = [letter.died_at or 0 for letter in letters]
        assert died == sorted(died, reverse=True)
        assert await queue.dead_letters.requeue(letters[3].id)
        assert await queue.length() == 1
    async with ShardedQueue(prefix, shards=None, url=cluster) as queue:
        assert len(queue.shards) == 8


async def test_servers_in_another_order_are_refused(private, prefix):
    one, two = private(), private()
    async with ShardedQueue(prefix, shards=4, url=[one.url, two.url]) as queue:
        await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    for urls, words in (([two.url, one.url], "server 2 of 2"), ([one.url, one.url], "same order")):
        wrong = ShardedQueue(prefix, shards=4, url=urls)
        with pytest.raises(ConfigurationError, match=words):
            await wrong.open()
        assert not wrong.connection.is_open
    async with ShardedQueue(prefix, shards=None, url=[one.url, two.url]) as queue:
        assert await queue.length() == 20


async def opening(prefix: str, *urls: str, shards: int | None = 4) -> str:
    """Why the queue does not open on these servers; empty where it does."""
    queue = ShardedQueue(prefix, shards=shards, url=list(urls))
    try:
        await queue.open()
    except ConfigurationError as error:
        assert not queue.connection.is_open
        return str(error)
    await queue.close()
    return ""


async def test_a_wrong_server_in_the_place_of_a_right_one(private, prefix):
    one, two, wrong = private(), private(), private()
    async with ShardedQueue(prefix, shards=4, url=[one.url, two.url]) as queue:
        await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])
    for shards in (4, None):
        words = await opening(prefix, one.url, wrong.url, shards=shards)
        assert f"{wrong.url} does not bear the mark of server 2 of 2 of queue '{prefix}', as {two.url} did" in words
        assert f"HDEL '{{{prefix}}}:shards' 'server 2' at {one.url}" in words
    words = await opening(prefix, wrong.url, two.url)
    assert f"{wrong.url} knows nothing of queue '{prefix}', and {two.url} does, as 'server 2 of 2'" in words
    assert "nothing says how many shards" in await opening(prefix, wrong.url, two.url, shards=None)
    with wrong.sync_client() as client:
        assert client.keys("*") == [], "nothing was written there"
    for shards in (4, None):
        assert await opening(prefix, one.url, two.url, shards=shards) == ""


async def test_a_server_that_lost_its_data_is_named_and_may_begin_empty(private, prefix):
    one, two = private(), private()
    assert await opening(prefix, one.url, two.url) == ""
    async with ShardedQueue(prefix, shards=None, url=[one.url, two.url]) as at_work:
        with two.sync_client() as client:
            client.flushall()
        await at_work.look()
        await at_work.enqueue_many([{"user_id": f"u{n}"} for n in range(20)])  # who is at work goes on
    words = await opening(prefix, one.url, two.url)
    assert "has lost its data" in words
    assert await opening(prefix, one.url, two.url) == words, "once more"
    with one.sync_client() as first, two.sync_client() as second:
        for client, command in zip((first, second), re.findall(r"redis-cli (.*?) at redis://", words), strict=True):
            client.execute_command(*shlex.split(command))
    assert await opening(prefix, one.url, two.url) == ""
    assert await opening(prefix, one.url, two.url, shards=None) == ""


async def test_the_first_server_lost_its_data(private, prefix):
    one, two, three = private(), private(), private()
    assert await opening(prefix, one.url, two.url, three.url) == ""
    with one.sync_client() as client:
        client.flushall()
    words = await opening(prefix, one.url, two.url, three.url)
    assert f"redis-cli DEL '{{{prefix}}}:shards' at each of the others" in words
    with one.sync_client() as client:
        assert client.keys("*") == []
    for server in (two, three):
        with server.sync_client() as client:
            client.delete(f"{{{prefix}}}:shards")
    assert await opening(prefix, one.url, two.url, three.url) == ""


async def test_two_queues_of_one_name(private, prefix):
    """As production and staging: the servers of the one are not those of the other."""
    ours, theirs = [private().url, private().url], [private().url, private().url]
    assert await opening(prefix, *ours) == await opening(prefix, *theirs) == ""
    assert "does not bear the mark" in await opening(prefix, ours[0], theirs[1])
    assert "does not bear the mark" in await opening(prefix, ours[0], theirs[1], shards=None)
    assert await opening(prefix, *ours) == ""


async def test_what_an_older_version_agreed_on_gets_its_mark(private, prefix):
    one, two, wrong = private(), private(), private()
    key = f"{{{prefix}}}:shards"
    old = {"key": "user_id", "servers": 2, "version": 1}
    with one.sync_client() as first, two.sync_client() as second, wrong.sync_client() as third:
        first.hset(key, mapping={"count": 4, **old})
        second.hset(key, mapping={**old, "count": "server 2 of 2", "key": ""})
        assert await opening(prefix, one.url, two.url, shards=None) == ""
        assert "id" not in first.hgetall(key), "who only looks writes nothing"
        assert await opening(prefix, one.url, two.url) == ""
        third.hset(key, mapping={**old, "count": "server 2 of 2", "key": ""})  # by an older version that was misled
        assert "does not bear the mark" in await opening(prefix, one.url, wrong.url)
    assert await opening(prefix, one.url, two.url, shards=None) == ""


async def test_marks_are_given_by_several_at_once(private, prefix):
    urls = [private().url for _ in range(3)]
    assert set(await asyncio.gather(*(opening(prefix, *urls) for _ in range(8)))) == {""}


async def test_no_password_is_told(private, prefix):
    one, two, wrong = (private("--requirepass", "hidden") for _ in range(3))
    urls = [server.url for server in (one, two, wrong)]
    assert await opening(prefix, urls[0], urls[1]) == ""
    words = await opening(prefix, urls[0], urls[2])
    assert "does not bear the mark" in words
    assert "hidden" not in words
    with one.sync_client() as client:
        assert "hidden" not in str(client.hgetall(f"{{{prefix}}}:shards"))


async def test_it_may_be_opened_by_several_at_once(server, prefix):
    queue = ShardedQueue(prefix, shards=4, url=server.url)

    async def send(n):
        await queue.open()
        await queue.enqueue({"user_id": f"u{n}"})

    await asyncio.gather(*map(send, range(8)))
    assert await queue.length() == 8
    await queue.close()
