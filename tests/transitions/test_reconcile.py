"""reconcile: what outsiders did to the documented keys -> consistent."""

from __future__ import annotations

import pytest

from streams_queue.transitions import GROUP
from transitions.tables import DEDUP_EXPIRY, LOCKED, META, NEVER, Queue, body

OLD = {"request_id": "a", "timestamp": "now", "status": "queued", "retry_count": "0"}
"""The hash of an old producer."""


async def test_nothing_at_all(unjoined: Queue):
    assert await unjoined.quick_look() == (0, 0)
    assert await unjoined.full_pass() == (0, 0, 0)
    assert await unjoined.table() == {}


async def test_a_quiet_queue_is_left_as_it_is(queue: Queue):
    await queue.processing("a", priority="high")
    await queue.retrying("c")
    await queue.dead("d")
    await queue.enqueue("e", delay=100)
    await queue.release(await queue.processing("b"))
    await queue.enqueue("f", "g")
    before = await queue.table()
    assert await queue.quick_look() == (0, 0)
    assert await queue.full_pass() == (0, 0, 0)
    assert await queue.table() == before


async def test_an_old_producer_s_message_is_found_by_the_quick_look(queue: Queue):
    """A hash and a place in main, written by a program that knows no streams."""
    await queue.old("a", ttl=100)
    assert await queue.table() == {
        "queue:main": ["a"],
        "msg:a": OLD,
        "meta": META,
        "ttl": {"msg:a": 100},
    }
    assert await queue.quick_look() == (1, 0)
    assert await queue.table() == {
        "queue:main": ["a"],
        "stream": {"a": NEVER},
        "msg:a": {**OLD, "_sq_entry": "n*", "_sq_ttl": "3600"},
        "stats": {"adopted_messages": 1},
        "meta": META,
        "ttl": {"msg:a": 3600},
    }
    assert await queue.quick_look() == (0, 0)
    (lease,) = await queue.claim()
    assert await queue.complete(lease) == "completed"


async def test_an_adopted_hash_gets_a_time_to_live(queue: Queue):
    await queue.old("a", ttl=None)
    await queue.quick_look()
    assert (await queue.table())["ttl"] == {"msg:a": 3600}


async def test_an_adopted_hash_keeps_a_longer_life(queue: Queue):
    """The documented ``default_ttl`` may be set."""
    await queue.old("a", ttl=86_400)
    await queue.quick_look()
    assert (await queue.table())["ttl"] == {"msg:a": 86_400}
    (lease,) = await queue.claim()
    await queue.release(lease)
    assert (await queue.table())["ttl"] == {"msg:a": 86_400}


async def test_an_adopted_message_is_found_by_its_user_where_the_queue_asks_for_that(queue: Queue):
    await queue.transitions.index_users()
    await queue.old("a", user_id="u1")
    await queue.quick_look()
    table = await queue.table()
    assert (table["user:u1"], table["ttl"]["user:u1"]) == (["a"], 3600)


async def test_an_old_score_shows_in_the_counts_and_is_found_by_a_full_pass(queue: Queue):
    await queue.enqueue("b")
    await queue.old("a", score=1e9)
    seen = await queue.transitions.reconcile("", adopted_ttl=3600, dedup_expiry=DEDUP_EXPIRY)
    assert (seen.adopted, seen.difference) == (0, 1)
    assert await queue.full_pass() == (1, 0, 0)
    assert (await queue.table())["stream"] == {"b": NEVER, "a": NEVER}


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), -5.0, 0.0, 1.7e12])
async def test_whatever_the_score_the_message_is_worked_on(queue: Queue, score):
    await queue.old("a", score=score)
    await queue.full_pass()
    (lease,) = await queue.claim()
    assert await queue.complete(lease) == "completed"


async def test_a_full_pass_sees_all_500_a_call(queue: Queue):
    ids = [f"m{n:04}" for n in range(1203)]
    for n, id in enumerate(ids):
        await queue.old(id, score=n // 1100)  # many of one score
    assert await queue.full_pass() == (1203, 0, 0)
    assert await queue.redis.xlen(queue.keys.streams["n"]) == 1203


async def test_in_a_backlog_of_100000_a_new_id_is_found_without_reading_all(queue: Queue):
    """As many came within the last minute as may come: no more than 500 of them are looked at each second."""
    now = await queue.now()
    for start in range(0, 100_000, 10_000):
        scores = {f"m{n}": now - 50 + n / 10_000 for n in range(start, start + 10_000)}
        await queue.redis.zadd(queue.keys.main, scores)
    await queue.old("a")
    await queue.redis.config_resetstat()
    assert await queue.quick_look() == (1, 0)
    assert (await queue.redis.info("commandstats"))["cmdstat_hmget"][
        "calls"
    ] <= 2 * 500 + 1  # of the queue's agreements


async def test_who_was_taken_out_entry_and_all_leaves_the_line_of_its_priority(queue: Queue):
    await queue.enqueue("a", "b", priority="high")
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.delete_stream()
    await queue.redis.delete(queue.keys.streams["h"])
    await queue.redis.expire(queue.keys.message("a"), 60)
    await queue.full_pass()
    assert await queue.redis.zrange(queue.keys.lines["h"], 0, -1) == ["b"]


# ---- dead letters and retries moved by hand


@pytest.mark.parametrize(("ttl", "left"), [(None, {}), (60.0, {"msg:a": 60})])
async def test_the_documented_script_that_requeues_a_dead_letter(queue: Queue, ttl, left):
    """HSET retry_count 0, status queued; ZREM from dlq; ZADD to main: counts and errors anew, the slot taken back."""
    lease = await queue.abandoned("a", "w1", ttl=ttl, unique="k", priority="high")
    await queue.sweep()
    (lease,) = await queue.claim()
    await queue.retry(lease, max_retries=0)
    await queue.redis.hset(queue.keys.message("a"), mapping={"retry_count": 0, "status": "queued"})
    await queue.redis.zrem(queue.keys.dlq, "a")
    await queue.redis.zadd(queue.keys.main, {"a": await queue.now()})
    stats = (await queue.table())["stats"]
    assert await queue.quick_look() == (1, 0)
    native = {"_sq_ttl": f"{ttl}"} if ttl else {}
    assert await queue.table() == {
        "queue:main": ["a"],
        "line:high": ["a"],
        "stream:high": {"a": NEVER},
        "msg:a": body("a", "queued", "h*", dedup_key="dedup:k", _sq_deliveries="2", **native),
        "dedup:k": "a",
        "stats": {**stats, "adopted_messages": 1, "outside_added": 1},
        "meta": META,
        "ttl": {**left, "dedup:k": DEDUP_EXPIRY},
    }


async def test_without_the_hset_the_counts_go_on(queue: Queue):
    await queue.retrying("a")
    (score,) = [await queue.now()]
    await queue.redis.zrem(queue.keys.retry, "a")
    await queue.redis.zadd(queue.keys.main, {"a": score})
    await queue.quick_look()
    hash = (await queue.table())["msg:a"]
    assert (hash["retry_count"], hash["last_error"], hash["status"]) == ("1", "oops", "queued")


@pytest.mark.parametrize("where", ["retry", "dlq", "scheduled"])
async def test_an_id_in_main_and_elsewhere_leaves_the_other_place(queue: Queue, where):
    match where:
        case "retry":
            await queue.retrying("a")
        case "dlq":
            await queue.dead("a")
        case "scheduled":
            await queue.enqueue("a", delay=100)
    await queue.redis.zadd(queue.keys.main, {"a": await queue.now()})
    assert await queue.quick_look() == (1, 0)
    table = await queue.table()
    assert {name: list(ids) for name, ids in table.items() if name.startswith("queue:")} == {"queue:main": ["a"]}
    assert table["stream"] == {"a": NEVER}
    assert table["msg:a"]["status"] == "queued"


@pytest.mark.parametrize("where", ["queue:retry", "queue:scheduled", "queue:dlq"])
async def test_a_live_message_that_somebody_put_elsewhere_too_runs_once(queue: Queue, where):
    await queue.enqueue("a")
    await queue.redis.zadd(f"{queue.keys.prefix}:{where}", {"a": 1})
    await queue.full_pass()
    await queue.transitions.promote()
    (lease,) = await queue.claim(count=5)
    assert await queue.complete(lease) == "completed"
    assert not {name for name in await queue.table() if name.startswith(("queue:", "stream"))}


# ---- no body


async def test_an_id_without_a_body_is_taken_out_only_when_still_so_5_s_later(queue: Queue):
    """An old producer may write the place first and the hash then."""
    await queue.redis.zadd(queue.keys.main, {"a": await queue.now()})
    assert await queue.quick_look() == (0, 0)
    noted = {"queue:main": ["a"], "bodiless": {"a": "now"}, "meta": META, "ttl": {"bodiless": 180}}
    assert await queue.table() == noted
    await queue.redis.zincrby(queue.keys.bodiless, -4, "a")
    assert await queue.quick_look() == (0, 0)
    assert await queue.table() == noted
    await queue.redis.zincrby(queue.keys.bodiless, -2, "a")
    assert await queue.quick_look() == (0, 1)
    assert await queue.table() == {
        "lost": {"a": "now"},
        "done:a": "expired\n\n",
        "stats": {"expired_messages": 1},
        "meta": META,
        "ttl": {"done:a": 60},
    }


async def test_a_body_that_comes_in_time_is_adopted_and_the_note_is_gone(queue: Queue):
    await queue.redis.zadd(queue.keys.main, {"a": await queue.now()})
    await queue.quick_look()
    await queue.old("a")
    assert await queue.quick_look() == (1, 0)
    table = await queue.table()
    assert "bodiless" not in table
    assert table["stream"] == {"a": NEVER}


async def test_a_key_of_another_type_is_no_body(queue: Queue):
    await queue.enqueue("b")
    await queue.redis.set(queue.keys.message("a"), "text", ex=60)
    await queue.redis.zadd(queue.keys.main, {"a": await queue.now()})
    await queue.full_pass()
    await queue.redis.zincrby(queue.keys.bodiless, -6, "a")
    assert await queue.full_pass() == (0, 1, 0)
    assert (await queue.table())["queue:main"] == ["b"]


async def test_the_cap_on_lost_ids_holds(queue: Queue):
    await queue.redis.zadd(queue.keys.lost, {f"m{n}": n for n in range(10_000)})
    await queue.dead("a")
    await queue.redis.delete(queue.keys.message("a"))
    await queue.requeue("a")
    assert await queue.redis.zcard(queue.keys.lost) == 10_000
    assert await queue.redis.zrange(queue.keys.lost, -1, -1) == ["a"]


# ---- entries, groups, consumers and streams that are gone


async def test_an_id_whose_lock_lives_is_left_alone(queue: Queue):
    """An old worker holds it, or the holder of a deleted entry still works."""
    await queue.old("a")
    await queue.redis.set(queue.keys.lock("a"), "processor", ex=60)
    lease = await queue.processing("b")
    await queue.redis.xdel(queue.keys.streams["n"], lease.entry[1:])
    before = await queue.table()
    assert await queue.full_pass() == (0, 0, 2)
    assert await queue.table() == before
    assert await queue.complete(lease) == "completed"
    await queue.redis.delete(queue.keys.lock("a"))
    assert await queue.full_pass() == (1, 0, 0)


async def test_a_consumer_deleted_by_hand_leaves_nothing_stuck(queue: Queue):
    """Its pending entries are lost with it: the entry is in the stream, and nobody will ever be given it."""
    await queue.processing("a", "dead")
    await queue.redis.xgroup_delconsumer(queue.keys.streams["n"], GROUP, "dead")
    assert await queue.full_pass() == (0, 0, 0), "its lock lives"
    await queue.redis.delete(queue.keys.lock("a"))
    assert await queue.quick_look() == (1, 0)
    assert (await queue.table())["stream"] == {"a": NEVER}, "and the lost entry is gone"
    assert [(lease.id, lease.delivery) for lease in await queue.claim()] == [("a", "2")]


@pytest.mark.parametrize("count", [5, 700])
async def test_a_stream_deleted_by_hand_is_rebuilt_from_main_in_its_order(queue: Queue, count):
    ids = [f"{n * 7919 % count}" for n in range(count)]
    for start in range(0, count, 500):
        await queue.enqueue(*ids[start : start + 500])
    await queue.delete_stream()
    assert await queue.full_pass() == (count, 0, 0)
    await queue.transitions.join("w1", 30)
    claimed = [lease.id for lease in await queue.claim(count=500)] + [
        lease.id for lease in await queue.claim(count=500)
    ]
    assert claimed == ids


async def test_work_in_flight_under_a_deleted_stream_goes_on(queue: Queue):
    lease = await queue.processing("a")
    await queue.enqueue("b")
    await queue.delete_stream()
    assert await queue.full_pass() == (1, 0, 1)
    await queue.transitions.join("w1", 30)
    assert [other.id for other in await queue.claim("w2", 5)] == ["b"]
    assert await queue.renew(lease) is True
    assert await queue.complete(lease) == "completed"


async def test_a_group_destroyed_by_hand_is_made_anew_at_0_and_nobody_is_robbed(queue: Queue):
    lease = await queue.processing("a")
    await queue.enqueue("b")
    await queue.redis.xgroup_destroy(queue.keys.streams["n"], GROUP)
    assert await queue.full_pass() == (0, 0, 0)
    await queue.transitions.join("w2", 30)
    assert [other.id for other in await queue.claim("w2", 5)] == ["b"]
    assert (await queue.table())["stream"] == {"a": LOCKED, "b": "w2"}
    assert await queue.complete(lease) == "completed"
    assert (await queue.table())["stream"] == {"b": "w2"}


async def test_a_stream_trimmed_by_hand_gets_its_entries_back(queue: Queue):
    await queue.enqueue("a", "b", "c")
    await queue.redis.xtrim(queue.keys.streams["n"], maxlen=1, approximate=False)
    assert await queue.full_pass() == (2, 0, 0)
    assert {lease.id for lease in await queue.claim(count=5)} == {"a", "b", "c"}


async def test_at_maxmemory_outsiders_messages_are_adopted_still(small: Queue):
    await small.old("a")
    await small.redis.zadd(small.keys.main, {"bodiless": await small.now()})
    await small.fill()
    assert await small.quick_look() == (1, 0)
    assert [lease.id for lease in await small.claim()] == ["a"]


async def test_damaged_messages_stop_nobody(queue: Queue):
    for id in ("a", "b", "c", "d", "e"):
        await queue.old(id)
    await queue.redis.hset(queue.keys.message("a"), mapping={"retry_count": "x", "status": "\xff", "timestamp": "soon"})
    await queue.redis.hset(
        queue.keys.message("b"), mapping={"_sq_ttl": "inf", "_sq_entry": "h0", "dedup_key": "x" * 999}
    )
    await queue.redis.hdel(queue.keys.message("c"), "timestamp")
    await queue.redis.hset(queue.keys.message("e"), "_sq_entry", f"n{'9' * 30}-1")
    assert await queue.full_pass() == (4, 0, 1)
    assert {lease.id for lease in await queue.claim(count=5)} == {"a", "b", "d", "e"}


async def test_telling_a_message_apart_from_its_namesake_in_binary(queue: Queue):
    """Ids of other programs may hold any bytes."""
    await queue.old("naïve id\n*")
    assert await queue.full_pass() == (1, 0, 0)
    (lease,) = await queue.claim()
    assert lease.id == "naïve id\n*"
    assert await queue.complete(lease) == "completed"


async def test_a_full_pass_takes_out_all_that_have_no_body(queue: Queue):
    """None is passed over where one step ends and the next begins."""
    ids = [f"m{n:04}" for n in range(1100)]
    await queue.redis.zadd(queue.keys.main, {id: n + 1.0 for n, id in enumerate(ids)})
    await queue.redis.zadd(queue.keys.bodiless, dict.fromkeys(ids, await queue.now() - 10))
    await queue.full_pass()
    assert await queue.redis.zcard(queue.keys.main) == 0
