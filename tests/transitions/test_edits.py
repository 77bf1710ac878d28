"""What outsiders do to the documented keys is mended, and counted once by its kind."""

from __future__ import annotations

import pytest

from streams_queue.transitions import GROUP
from transitions.tables import LOCKED, META, NEVER, RETURNED, Queue, body


async def edits(queue: Queue) -> dict[str, int]:
    return (await queue.transitions.stats()).edits


async def upkeep(queue: Queue) -> None:
    """Everything that maintenance does, more than once."""
    for _ in range(3):
        await queue.transitions.promote()
        await queue.quick_look()
        await queue.full_pass()
        await queue.sweep()


async def to_main(queue: Queue, id: str) -> None:
    await queue.redis.zadd(queue.keys.main, {id: await queue.now()})


async def test_what_the_engine_does_itself_is_no_edit(queue: Queue):
    """Each message through every state, a dead worker, a body that ran out, and an old producer."""
    await queue.dead("dead")
    await queue.retrying("retried", priority="high")
    await queue.enqueue("scheduled", delay=100)
    await queue.make_due("retried", "scheduled")
    await queue.requeue("dead")
    await upkeep(queue)
    handed_back, died = await queue.claim(count=2)
    await queue.release(handed_back)
    await queue.run_out(died)
    await queue.enqueue("ran out", "removed")
    await queue.redis.delete(queue.keys.message("ran out"))
    await queue.transitions.remove(["removed"])
    await queue.old("old")
    await upkeep(queue)
    await queue.redis.zincrby(queue.keys.bodiless, -6, "ran out")
    await upkeep(queue)
    done = [await queue.complete(lease, "w2") for lease in await queue.claim("w2", 20)]
    assert done == ["completed"] * 4
    await upkeep(queue)
    stats = await queue.transitions.stats()
    assert stats.edits == {}
    names = ("adopted_messages", "recovered_messages", "expired_messages", "removed_messages", "requeued_messages")
    assert [stats.counters[name] for name in names] == [1] * 5


# ---- added


async def test_added_a_dead_letter_put_into_main(queue: Queue):
    await queue.dead("a", priority="low")
    await queue.redis.zrem(queue.keys.dlq, "a")
    await to_main(queue, "a")
    await upkeep(queue)
    table = await queue.table()
    assert (table["queue:main"], table["stream:low"]) == (["a"], {"a": NEVER})
    assert await edits(queue) == {"added": 1}


async def test_added_one_that_had_been_taken_out_before(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.zrem(queue.keys.main, "a")
    assert await queue.claim() == []
    await to_main(queue, "a")
    await upkeep(queue)
    assert await edits(queue) == {"taken_out": 1, "added": 1}
    assert [lease.id for lease in await queue.claim()] == ["a"]
    assert "ttl" in await queue.table(), "its lock"


async def test_an_old_producer_s_message_is_no_edit_its_requeued_dead_letter_is_one(queue: Queue):
    await queue.old("a")
    await queue.quick_look()
    assert await edits(queue) == {}
    (lease,) = await queue.claim()
    await queue.dead_letter(lease)
    await queue.redis.zrem(queue.keys.dlq, "a")
    await to_main(queue, "a")
    await upkeep(queue)
    assert await edits(queue) == {"added": 1}


# ---- entry_lost


@pytest.mark.parametrize("how", ["deleted", "trimmed", "entry"])
async def test_entry_lost_with_its_stream(queue: Queue, how):
    await queue.enqueue("a")
    stream = queue.keys.streams["n"]
    match how:
        case "deleted":
            await queue.delete_stream()
        case "trimmed":
            await queue.redis.xtrim(stream, maxlen=0, approximate=False)
        case _:
            await queue.redis.xdel(stream, (await queue.redis.xrange(stream))[0][0])
    await upkeep(queue)
    assert await queue.table() == {
        "queue:main": ["a"],
        "stream": {"a": NEVER},
        "msg:a": body("a", "queued"),
        "stats": {"total_messages": 1, "adopted_messages": 1, "outside_entry_lost": 1},
        "meta": META,
    }


async def test_entry_lost_with_the_consumer_that_held_it(queue: Queue):
    await queue.processing("a", "dead")
    await queue.redis.xgroup_delconsumer(queue.keys.streams["n"], GROUP, "dead")
    await queue.redis.delete(queue.keys.lock("a"))
    await upkeep(queue)
    assert await edits(queue) == {"entry_lost": 1}
    assert (await queue.table())["stream"] == {"a": NEVER}


@pytest.mark.parametrize("how", ["stream", "consumer"])
async def test_entry_lost_while_it_was_held_and_then_handed_back(queue: Queue, how):
    """XCLAIM cannot hand it over. Its name stays in the hash, so that what is left of it goes with it."""
    lease = await queue.processing("a")
    if how == "stream":
        await queue.delete_stream()
    else:
        await queue.redis.xgroup_delconsumer(queue.keys.streams["n"], GROUP, "w1")
    assert await queue.release(lease) == "queued"
    assert (await queue.table())["msg:a"] == body("a", "queued", _sq_deliveries="1")
    await upkeep(queue)
    assert await edits(queue) == {"entry_lost": 1}
    assert (await queue.table())["stream"] == {"a": NEVER}, "one entry, and no old one"


async def test_an_entry_that_outlived_its_group_is_not_given_twice(queue: Queue):
    """Handed back while no group was there: the entry is delivered again by the new one, and no other is made."""
    lease = await queue.processing("a")
    await queue.redis.xgroup_destroy(queue.keys.streams["n"], GROUP)
    assert await queue.release(lease) == "queued"
    assert await queue.full_pass() == (0, 0, 0)
    await queue.transitions.join("w1", 30)
    assert [(again.entry, again.delivery) for again in await queue.claim(count=5)] == [(lease.entry, "2")]
    assert await edits(queue) == {}


# ---- taken_out


@pytest.mark.parametrize("met_by", ["claim", "sweep", "retry", "release"])
async def test_taken_out(queue: Queue, met_by):
    lease = await queue.processing("a", ttl=60)
    await queue.redis.zrem(queue.keys.main, "a")
    match met_by:
        case "claim":
            await queue.redis.xclaim(queue.keys.streams["n"], GROUP, RETURNED, 0, [lease.entry[1:]], justid=True)
            await queue.redis.delete(queue.keys.lock("a"))
            assert await queue.claim() == []
        case "sweep":
            await queue.run_out(lease)
            await queue.sweep()
        case "retry":
            assert await queue.retry(lease) == "gone"
        case _:
            assert await queue.release(lease) == "gone"
    await upkeep(queue)
    assert await queue.table() == {
        "msg:a": body("a", "processing", "n", _sq_ttl="60", _sq_deliveries="1"),
        "stats": {"total_messages": 1, "outside_taken_out": 1},
        "meta": META,
        "ttl": {"msg:a": 60},
    }


@pytest.mark.parametrize("fields", [{"something": "else"}, {"id": "unknown"}, {"id": "a"}])
async def test_an_entry_of_another_program_takes_nothing_out(queue: Queue, fields):
    await queue.retrying("a")
    await queue.redis.xadd(queue.keys.streams["n"], fields)
    assert await queue.claim() == []
    assert await edits(queue) == {}
    assert "stream" not in await queue.table()


# ---- locks


async def test_unlocked_while_its_holder_worked(queue: Queue):
    await queue.processing("a")
    await queue.redis.delete(queue.keys.lock("a"))
    await upkeep(queue)
    assert await queue.table() == {
        "queue:main": ["a"],
        "stream": {"a": RETURNED},
        "msg:a": body("a", "queued", _sq_deliveries="1"),
        "stats": {"total_messages": 1, "recovered_messages": 1, "outside_unlocked": 1},
        "meta": META,
    }


async def test_locked_while_it_waited(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.set(queue.keys.lock("a"), "operator", px=60_000)
    assert await queue.claim() == []
    await upkeep(queue)
    assert await queue.table() == {
        "queue:main": ["a"],
        "stream": {"a": LOCKED},
        "msg:a": body("a", "queued"),
        "lock:a": "operator",
        "stats": {"total_messages": 1, "outside_locked": 1},
        "meta": META,
        "ttl": {"lock:a": 60},
    }
    await queue.redis.delete(queue.keys.lock("a"))
    await upkeep(queue)
    assert [lease.id for lease in await queue.claim()] == ["a"]
    assert await edits(queue) == {"locked": 1}, "and freed: that is nobody's loss"


async def test_the_lock_of_its_holder_is_no_edit_where_the_group_was_destroyed(queue: Queue):
    await queue.processing("a")
    await queue.redis.xgroup_destroy(queue.keys.streams["n"], GROUP)
    await queue.transitions.join("w2", 30)
    assert await queue.claim("w2") == []
    assert (await queue.table())["stream"] == {"a": LOCKED}
    assert await edits(queue) == {}


# ---- two_places


@pytest.mark.parametrize("where", ["retry", "dlq", "scheduled"])
async def test_two_places_by_a_place_in_main_beside_the_other(queue: Queue, where):
    match where:
        case "retry":
            await queue.retrying("a")
        case "dlq":
            await queue.dead("a")
        case _:
            await queue.enqueue("a", delay=100)
    await to_main(queue, "a")
    await upkeep(queue)
    table = await queue.table()
    assert {name for name in table if name.startswith("queue:")} == {"queue:main"}
    assert await edits(queue) == {"two_places": 1}


@pytest.mark.parametrize("where", ["retry", "scheduled"])
async def test_two_places_by_a_due_time_for_what_is_in_line(queue: Queue, where):
    await queue.enqueue("a")
    await queue.redis.zadd(f"{queue.keys.prefix}:queue:{where}", {"a": 1})
    before = await queue.table()
    await upkeep(queue)
    del before[f"queue:{where}"]
    assert await queue.table() == {**before, "stats": {"total_messages": 1, "outside_two_places": 1}}


# ---- damaged


@pytest.mark.parametrize("met_by", ["claim", "sweep", "reconcile", "promote", "requeue"])
async def test_damaged(queue: Queue, met_by):
    match met_by:
        case "claim" | "sweep" | "reconcile":
            await queue.enqueue("a")
        case "promote":
            await queue.enqueue("a", delay=100)
        case _:
            await queue.dead("a")
    await queue.redis.hdel(queue.keys.message("a"), "timestamp")
    match met_by:
        case "claim":
            assert await queue.claim() == []
        case "sweep":
            (entry,) = await queue.read_only("dead")
            await queue.age_entry(entry, "dead")
            await queue.sweep()
        case "reconcile":
            await queue.full_pass()
            await queue.redis.zincrby(queue.keys.bodiless, -6, "a")
            await queue.full_pass()
        case "promote":
            await queue.make_due("a")
            await queue.transitions.promote()
        case _:
            assert await queue.requeue("a") == "expired"
    assert await queue.claim() == [], "nor is its entry"
    await upkeep(queue)
    table = await queue.table()
    assert not {name for name in table if name.startswith(("queue:", "stream"))}
    assert table["lost"] == {"a": "now"}
    assert await edits(queue) == {"damaged": 1}


# ---- claimed_elsewhere


async def test_claimed_elsewhere_while_it_waited(queue: Queue):
    """As a worker of the old code does, which peeks at main. It runs here all the same."""
    await queue.enqueue("a")
    await queue.redis.hset(queue.keys.message("a"), "status", "processing")
    (lease,) = await queue.claim()
    assert await edits(queue) == {"claimed_elsewhere": 1}
    await queue.release(lease)
    await queue.claim()
    assert await edits(queue) == {"claimed_elsewhere": 1}


async def test_claimed_elsewhere_before_it_had_an_entry(queue: Queue):
    await queue.old("a", status="processing")
    await upkeep(queue)
    assert await edits(queue) == {"claimed_elsewhere": 1}
    await queue.claim()
    assert await edits(queue) == {"claimed_elsewhere": 1}


@pytest.mark.parametrize("way", ["release", "sweep", "retry", "requeue", "reconcile", "unlock"])
async def test_whatever_ends_our_holding_a_message_says_so(queue: Queue, way):
    lease = await queue.processing("a", "w1")
    match way:
        case "release":
            await queue.release(lease)
        case "sweep":
            await queue.run_out(lease)
        case "retry":
            await queue.retry(lease)
            await queue.make_due("a")
        case "requeue":
            await queue.dead_letter(lease)
            await queue.requeue("a")
        case "reconcile":
            await queue.redis.xgroup_delconsumer(queue.keys.streams["n"], GROUP, "w1")
            await queue.redis.delete(queue.keys.lock("a"))
        case _:
            await queue.redis.delete(queue.keys.lock("a"))
    await upkeep(queue)
    assert len(await queue.claim()) == 1
    assert "claimed_elsewhere" not in await edits(queue)
