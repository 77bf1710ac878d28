"""sweep, promote, prune and join: what happens without anybody's asking."""

from __future__ import annotations

import pytest

from streams_queue.answers import Turn
from streams_queue.errors import ConfigurationError
from streams_queue.transitions import GROUP
from transitions.tables import (
    DEAD_LETTER_TTL,
    DEDUP_EXPIRY,
    LOCKED,
    META,
    NEVER,
    RETURNED,
    SUSPECTS,
    Queue,
    body,
    outside,
)

# ---- sweep


async def test_a_dead_worker_s_message_becomes_queued_again_with_a_crash_on_its_count(queue: Queue):
    """`returned` holds it, not the sweeper, whose slots may be full; its place in line is as it was."""
    await queue.abandoned("a", ttl=60)
    await queue.enqueue("b")
    await queue.redis.expire(queue.keys.message("a"), 5)
    assert await queue.table() == {
        "queue:main": ["a", "b"],
        "stream": {"a": "dead", "b": NEVER},
        "msg:a": body("a", "processing", _sq_ttl="60", _sq_owner="dead", _sq_deliveries="1"),
        "msg:b": body("b", "queued"),
        "stats": {"total_messages": 2},
        "meta": META,
        "ttl": {"msg:a": 5},
    }
    assert await queue.sweep() == (1, 0)
    assert await queue.table() == {
        "queue:main": ["a", "b"],
        "stream": {"a": RETURNED, "b": NEVER},
        "msg:a": body("a", "queued", _sq_ttl="60", _sq_deliveries="1", _sq_crashes="1"),
        "msg:b": body("b", "queued"),
        "stats": {"total_messages": 2, "recovered_messages": 1},
        "meta": META,
        "ttl": {"msg:a": 60},
    }
    assert [lease.id for lease in await queue.claim(count=2)] == ["a", "b"]


async def test_past_the_delivery_limit_it_becomes_a_dead_letter(queue: Queue):
    await queue.abandoned("a", ttl=60, unique="k", priority="high")
    await queue.sweep(max_deliveries=2)
    (lease,) = await queue.claim("dead-too")
    await queue.run_out(lease, "dead-too")
    assert await queue.sweep(max_deliveries=2) == (0, 1)
    assert await queue.table() == {
        "queue:dlq": {"a": "now"},
        "msg:a": body(
            "a", "error", "h", error="the worker died or lost its lease 2 times while it held this message",
            moved_to_dlq_at="now", dedup_key="dedup:k", _sq_ttl="60", _sq_deliveries="2", _sq_crashes="2",
            _sq_suspect="1", _sq_reason="crash",
        ),
        "stats": {"total_messages": 1, "recovered_messages": 1, "dlq_messages": 1, "dead_crash": 1},
        "meta": META,
        "ttl": {"msg:a": DEAD_LETTER_TTL},
    }  # fmt: skip


async def suspects(queue: Queue, *ids: str) -> None:
    """Of two deliveries that may crash these have crashed once."""
    for id in ids:
        await queue.abandoned(id)
    await queue.sweep(max_deliveries=2)


async def test_whose_next_crash_is_its_last_waits_to_be_run_alone(queue: Queue):
    await suspects(queue, "a", "b")
    await queue.enqueue("innocent")
    table = await queue.table()
    assert table["stream"] == {"a": SUSPECTS, "b": SUSPECTS, "innocent": "-"}
    assert table["queue:main"] == ["a", "b", "innocent"], "its place in line is what it was"
    assert table["msg:a"]["_sq_suspect"] == "1"


async def test_a_suspect_is_for_a_consumer_that_holds_nothing_and_nothing_comes_with_it(queue: Queue):
    await suspects(queue, "a", "b")
    await queue.enqueue("innocent", "other")
    busy = await queue.transitions.claim("busy", 1, alone=False)
    assert ([lease.id for lease, _ in busy.deliveries], busy.suspects_wait) == (["innocent"], True)
    alone = await queue.transitions.claim("idle", 10)
    assert [lease.id for lease, _ in alone.deliveries] == ["a"]
    assert (await queue.table())["stream"] == {"a": "idle", "b": SUSPECTS, "innocent": "busy", "other": "-"}
    assert [await queue.transitions.positions([id]) for id in ("a", "b", "other")] == [[(1, 0)], [(2, 0)], [(4, 1)]]


async def test_a_suspect_stays_one_until_it_is_requeued(queue: Queue):
    await suspects(queue, "a")
    (lease,) = await queue.claim()
    await queue.release(lease)
    assert (await queue.table())["stream"] == {"a": SUSPECTS}, "handed back"
    (lease,) = await queue.claim()
    await queue.retry(lease)
    await queue.make_due("a")
    await queue.transitions.promote()
    assert (await queue.transitions.claim("busy", 1, alone=False)).deliveries == []
    assert (await queue.table())["stream"] == {"a": SUSPECTS}, "tried again"
    (lease,) = await queue.claim()
    await queue.dead_letter(lease)
    await queue.requeue("a")
    assert len((await queue.transitions.claim("busy", 1, alone=False)).deliveries) == 1


async def test_a_suspect_that_waits_for_long_is_charged_nothing(queue: Queue):
    await suspects(queue, "a")
    (row,) = await queue.redis.xpending_range(queue.keys.streams["n"], GROUP, "-", "+", 1)
    await queue.age_entry("n" + row["message_id"], SUSPECTS)
    assert await queue.sweep(max_deliveries=2) == (0, 0)
    table = await queue.table()
    assert (table["stream"], table["msg:a"]["_sq_crashes"]) == ({"a": SUSPECTS}, "1")


async def test_crashes_and_retries_are_counted_apart(queue: Queue):
    lease = await queue.abandoned("a")
    await queue.sweep()
    (lease,) = await queue.claim()
    await queue.retry(lease)
    hash = (await queue.table())["msg:a"]
    assert (hash["retry_count"], hash["_sq_crashes"], hash["_sq_deliveries"]) == ("1", "1", "2")


async def test_what_was_delivered_but_never_adopted_is_not_charged(queue: Queue):
    """A worker that died between the blocking read and the adoption."""
    await queue.enqueue("a")
    (entry,) = await queue.read_only("dead")
    await queue.age_entry(entry, "dead")
    before = await queue.table()
    assert await queue.sweep(max_deliveries=1) == (0, 0)
    assert await queue.table() == {**before, "stream": {"a": RETURNED}}
    assert [lease.delivery for lease in await queue.claim()] == ["1"]


async def test_what_lives_is_left_alone_and_a_quiet_sweep_writes_nothing(queue: Queue):
    await queue.processing("a", priority="high")
    await queue.release(await queue.processing("b"))
    await queue.enqueue("c")
    before = await queue.table()
    assert await queue.sweep() == (0, 0)
    assert await queue.table() == before


async def test_what_waits_with_returned_for_long_is_charged_nothing(queue: Queue):
    lease = await queue.processing("a")
    await queue.release(lease)
    for _ in range(3):
        await queue.age(lease, RETURNED)
        assert await queue.sweep(max_deliveries=1) == (0, 0)
    table = await queue.table()
    assert table["stream"] == {"a": RETURNED}
    assert "_sq_crashes" not in table["msg:a"]


async def test_one_dead_entry_behind_thousands_of_live_ones_is_found(queue: Queue):
    """XAUTOCLAIM looks at ten times COUNT entries and then stops: the cursor must be kept."""
    for batch in range(12):
        await queue.enqueue(*[f"{batch}-{n}" for n in range(500)])
    while await queue.claim("w1", 500):
        pass
    await queue.abandoned("dead", "dead")
    assert await queue.sweep() == (1, 0)
    assert [lease.id for lease in await queue.claim("w2")] == ["dead"]


async def test_a_cursor_that_somebody_damaged_heals(queue: Queue):
    await queue.abandoned("a")
    await queue.redis.hset(queue.keys.meta, mapping={"sweep_cursor_n": "text", "lock_cursor_n": "text"})
    await queue.sweep()
    await queue.sweep()
    assert (await queue.table())["stream"] == {"a": RETURNED}


async def test_an_entry_deleted_by_hand_is_forgotten_and_its_message_given_another(queue: Queue):
    """On Redis 6.2 too, where XAUTOCLAIM keeps a deleted entry pending."""
    lease = await queue.abandoned("a")
    await queue.redis.xdel(queue.keys.streams["n"], lease.entry[1:])
    assert (await queue.table())["stream"] == {"(deleted)": ["dead"]}
    await queue.sweep()
    table = await queue.table()
    assert "stream" not in table
    assert table["queue:main"] == ["a"]
    assert await queue.full_pass() == (1, 0, 0)
    assert [again.id for again in await queue.claim()] == ["a"]


async def test_a_maintainer_whose_turn_is_over_sweeps_nothing(queue: Queue):
    """The sweep may be the first command that a server carries out when it thaws: leases have run out in its sleep."""
    await queue.abandoned("a")
    assert (await queue.upkeep("m")).turn is Turn.BEGINS
    assert (await queue.upkeep("m")).turn is Turn.GOES_ON
    assert (await queue.upkeep("n")).turn is Turn.ANOTHERS
    limits = {"max_deliveries": 3, "dead_letter_ttl": DEAD_LETTER_TTL}
    assert (await queue.transitions.sweep(maintainer="n", **limits)).recovered == 0
    await queue.redis.delete(queue.keys.maintainer)
    assert (await queue.transitions.sweep(maintainer="m", **limits)).recovered == 0
    assert (await queue.upkeep("m")).turn is Turn.BEGINS
    assert (await queue.transitions.sweep(maintainer="m", **limits)).recovered == 1


async def test_the_lease_is_the_one_in_meta(queue: Queue):
    lease = await queue.processing("a", "dead")
    await queue.redis.delete(queue.keys.lock("a"))
    await queue.age(lease, "dead", seconds=20)
    await queue.redis.hset(queue.keys.meta, "lease_ms", 60_000)
    await queue.redis.hset(queue.keys.message("a"), "_sq_owner", "another")  # else: a lock deleted by hand
    assert await queue.sweep() == (0, 0)
    await queue.redis.hset(queue.keys.meta, "lease_ms", 10_000)
    assert await queue.sweep() == (1, 0)


async def test_without_a_lease_nothing_is_swept(queue: Queue):
    await queue.abandoned("a")
    await queue.redis.delete(queue.keys.meta)
    before = await queue.table()
    assert await queue.sweep() == (0, 0)
    assert await queue.table() == before


async def test_a_swept_id_that_left_main_is_dropped_and_its_hash_kept_for_a_while(queue: Queue):
    await queue.abandoned("a", priority="high")
    await queue.redis.zrem(queue.keys.main, "a")
    assert await queue.sweep() == (0, 0)
    assert await queue.table() == {
        "msg:a": body("a", "processing", "h", _sq_deliveries="1"),
        "stats": {"total_messages": 1, "outside_taken_out": 1},
        "meta": META,
        "ttl": {"msg:a": 3600},
    }


async def test_a_body_that_ran_out_in_flight_is_counted_and_shown(queue: Queue):
    await queue.abandoned("a", priority="low")
    await queue.redis.delete(queue.keys.message("a"))
    await queue.sweep()
    assert await queue.table() == {
        "lost": {"a": "now"},
        "done:a": "expired\n\n",
        "stats": {"total_messages": 1, "expired_messages": 1},
        "meta": META,
        "ttl": {"done:a": 60},
    }


async def test_a_lock_that_outlives_the_lease_keeps_the_message_with_its_holder(queue: Queue):
    lease = await queue.processing("a")
    await queue.redis.pexpire(queue.keys.lock("a"), 600_000)
    await queue.age(lease)
    assert await queue.sweep() == (0, 0)
    assert (await queue.table())["stream"] == {"a": "w1"}
    assert await queue.complete(lease) == "completed"


async def test_a_foreign_lock_on_a_dead_worker_s_message_parks_it_until_it_is_gone(queue: Queue):
    await queue.abandoned("a")
    await queue.redis.set(queue.keys.lock("a"), "operator", px=60_000)
    assert await queue.sweep() == (0, 0)
    assert (await queue.table())["stream"] == {"a": LOCKED}
    await queue.redis.delete(queue.keys.lock("a"))
    assert await queue.sweep() == (1, 0)
    assert (await queue.table())["stream"] == {"a": RETURNED}
    assert await queue.redis.hget(queue.keys.message("a"), "_sq_crashes") == "1"


async def test_damaged_messages_stop_no_sweep(queue: Queue):
    for id in ("a", "b", "c", "d"):
        await queue.processing(id, "dead", ttl=60)
    for lease_id, damage in {
        "a": {"_sq_crashes": "many"}, "b": {"_sq_ttl": "inf", "retry_count": "x"}, "c": {"_sq_entry": "?"},
    }.items():  # fmt: skip
        await queue.redis.hset(queue.keys.message(lease_id), mapping=damage)
    for row in await queue.redis.xpending_range(queue.keys.streams["n"], GROUP, "-", "+", 10):
        await queue.age_entry("n" + row["message_id"], "dead")
    await queue.redis.delete(*[queue.keys.lock(id) for id in "abcd"])
    await queue.sweep()
    await queue.full_pass()
    assert {lease.id for lease in await queue.claim(count=10)} == {"a", "b", "c", "d"}


# ---- promote


async def test_a_due_retry_becomes_queued_at_the_tail(queue: Queue):
    await queue.retrying("a", ttl=60, unique="k", priority="low")
    await queue.enqueue("b", priority="low")
    await queue.make_due("a")
    assert (await queue.transitions.promote())[:2] == (False, 1)
    assert await queue.table() == {
        "queue:main": ["b", "a"],
        "line:low": ["b", "a"],
        "stream:low": {"b": NEVER, "a": NEVER},
        "msg:a": body(
            "a", "queued", "l*", retry_count="1", next_retry="now+100", last_error="oops", last_error_time="now",
            dedup_key="dedup:k", _sq_ttl="60", _sq_deliveries="1", _sq_settled="l*/1",
        ),
        "msg:b": body("b", "queued", "l*"),
        "dedup:k": "a",
        "stats": {"total_messages": 2, "retry_count": 1},
        "meta": META,
        "ttl": {"msg:a": 60, "dedup:k": 100 + DEDUP_EXPIRY},
    }  # fmt: skip


async def test_a_due_scheduled_message_becomes_queued(queue: Queue):
    await queue.enqueue("a", delay=100, ttl=60, priority="high", user_id="u1", index_users=True)
    await queue.make_due("a")
    assert (await queue.transitions.promote())[:2] == (False, 1)
    assert await queue.table() == {
        "queue:main": ["a"],
        "line:high": ["a"],
        "stream:high": {"a": NEVER},
        "msg:a": body("a", "queued", "h*", user_id="u1", _sq_ttl="60"),
        "user:u1": ["a"],
        "stats": {"total_messages": 1},
        "meta": {**META, "user_index": "1"},
        "ttl": {"msg:a": 60, "user:u1": 60},
    }


async def test_nothing_is_promoted_before_it_is_due(queue: Queue):
    await queue.retrying("a")
    await queue.enqueue("b", delay=100)
    before = await queue.table()
    assert (await queue.transitions.promote())[:2] == (False, 0)
    assert await queue.table() == before


async def test_in_the_order_of_due_times_500_a_call(queue: Queue):
    ids = [f"m{n:03}" for n in range(501)]
    await queue.enqueue(*ids, delay=100)
    await queue.redis.zadd(queue.keys.scheduled, {id: 501 - n for n, id in enumerate(ids)})
    assert (await queue.transitions.promote())[:2] == (True, 500)
    assert (await queue.transitions.promote())[:2] == (False, 1)
    assert [lease.id for lease in await queue.claim(count=500)] == ids[:0:-1]


async def test_one_that_main_has_already_leaves_the_waiting_and_keeps_its_place(queue: Queue):
    await queue.enqueue("a", "b")
    before = await queue.table()
    await queue.redis.zadd(queue.keys.retry, {"a": 1})
    assert (await queue.transitions.promote())[:2] == (False, 0)
    assert await queue.table() == {**before, "stats": {"total_messages": 2, "outside_two_places": 1}}


@pytest.mark.parametrize("where", ["retry", "scheduled"])
async def test_a_body_that_ran_out_while_it_waited_is_counted_and_shown(queue: Queue, where):
    await (queue.retrying("a") if where == "retry" else queue.enqueue("a", delay=100))
    stats = (await queue.table())["stats"]
    await queue.make_due("a")
    await queue.redis.delete(queue.keys.message("a"))
    assert (await queue.transitions.promote())[:2] == (False, 0)
    assert await queue.table() == {
        "lost": {"a": "now"},
        "done:a": "expired\n\n",
        "stats": {**stats, "expired_messages": 1},
        "meta": META,
        "ttl": {"done:a": 60},
    }


async def test_a_retry_of_an_old_producer_keeps_its_time_to_live(queue: Queue):
    await queue.old("a", ttl=500)
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.redis.zadd(queue.keys.retry, {"a": 1})
    assert (await queue.transitions.promote())[:2] == (False, 1)
    assert (await queue.table())["ttl"] == {"msg:a": 500}
    assert [lease.id for lease in await queue.claim()] == ["a"]


async def test_a_message_that_came_back_by_the_retries_does_not_expire_as_an_orphan(queue: Queue):
    """Somebody took it out of main and, later, put it into retry; in between its hash was bounded."""
    await queue.enqueue("a")
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.claim()
    assert (await queue.table())["ttl"] == {"msg:a": 3600}
    await queue.redis.zadd(queue.keys.retry, {"a": 1})
    await queue.transitions.promote()
    assert "ttl" not in await queue.table()


# ---- at maxmemory


async def test_at_maxmemory_running_work_finishes_and_dead_work_is_recovered(small: Queue):
    ids = ["complete", "retry", "dead", "release", "renew", "sweep", "crash", "remove"]
    leases = {id: await small.processing(id) for id in ids}
    await small.retrying("due")
    await small.make_due("due")
    await small.enqueue("order", "mine")
    await small.run_out(leases["sweep"])
    await small.run_out(leases["crash"])
    await small.redis.hset(small.keys.message("crash"), "_sq_crashes", "2")
    await small.fill()
    assert await small.complete(leases["complete"], result=b"1") == "completed"
    assert await small.retry(leases["retry"]) == "retry"
    assert await small.dead_letter(leases["dead"]) == "error"
    assert await small.release(leases["release"]) == "queued"
    assert await small.renew(leases["renew"]) is True
    assert await small.retry(outside("order")) == "retry"
    assert await small.transitions.remove(["remove"]) == [True]
    assert await small.sweep() == (1, 1)
    assert (await small.transitions.promote())[:2] == (False, 1)
    assert {lease.id for lease in await small.claim("w2", 10)} == {"release", "sweep", "mine", "due"}
    await small.empty()
    stats = (await small.transitions.stats()).counters
    assert (stats["completed_messages"], stats["retry_count"], stats["dlq_messages"]) == (1, 3, 2)


# ---- join and prune


async def test_join_makes_the_groups_at_0_and_agrees_on_the_lease(unjoined: Queue):
    await unjoined.enqueue("before")
    await unjoined.transitions.join("w1", 30)
    assert (await unjoined.table())["meta"] == META
    for stream in unjoined.keys.streams.values():
        (group,) = await unjoined.redis.xinfo_groups(stream)
        assert (group["name"], group["last-delivered-id"], group["consumers"]) == (GROUP, "0-0", 1)
    assert [lease.id for lease in await unjoined.claim()] == ["before"]


async def test_joining_again_is_harmless(queue: Queue):
    lease = await queue.processing("a")
    before = await queue.table()
    await queue.transitions.join("w1", 30)
    await queue.transitions.join("w2", 30)
    assert await queue.table() == before
    assert await queue.complete(lease) == "completed"


async def test_another_lease_while_workers_live_is_refused_and_both_are_named(queue: Queue):
    before = await queue.table()
    with pytest.raises(ConfigurationError, match=r"lease=7.5 s .* lease of 30 s"):
        await queue.transitions.join("w2", 7.5)
    assert await queue.table() == before
    assert [c["name"] for c in await queue.redis.xinfo_consumers(queue.keys.streams["n"], GROUP)] == ["w1"]


async def test_another_lease_is_agreed_on_when_nobody_lives(queue: Queue):
    await queue.release(await queue.processing("a"))  # `returned` is nobody
    for stream in queue.keys.streams.values():
        await queue.redis.xgroup_delconsumer(stream, GROUP, "w1")
    await queue.transitions.join("w2", 7.5)
    assert (await queue.table())["meta"]["lease_ms"] == "7500"


async def test_a_queue_of_a_newer_engine_is_left_alone(queue: Queue):
    await queue.redis.hset(queue.keys.meta, "schema", "2")
    before = await queue.table()
    with pytest.raises(ConfigurationError, match="schema 2, this engine knows 1: upgrade"):
        await queue.transitions.join("w1", 30)
    assert await queue.table() == before


async def test_prune_forgets_who_holds_nothing_and_nobody_else(queue: Queue):
    """A consumer that is deleted takes its pending entries with it: they would be lost."""
    for consumer in ("w2", "idle", "leaving"):
        await queue.transitions.join(consumer, 30)
    await queue.processing("a", "w2")
    await queue.release(await queue.processing("b"))
    before = await queue.table()

    async def consumers() -> set[str]:
        return {c["name"] for c in await queue.redis.xinfo_consumers(queue.keys.streams["n"], GROUP)}

    assert await queue.transitions.prune("leaving", idle=1000) > 0
    assert await consumers() == {"w1", "w2", "idle", RETURNED}
    assert await queue.transitions.prune("w2", idle=1000) > 0, "it holds nothing of the other priorities"
    assert await queue.transitions.prune("", idle=0) > 0
    assert await consumers() == {"w2", RETURNED}
    assert await queue.table() == before


async def test_a_dead_letter_whose_body_ran_out_is_counted_as_lost(queue: Queue):
    """Its id would stay for ever. One that a script from outside is writing just now is left to it."""
    await queue.dead("kept")
    await queue.dead("ran out")
    await queue.redis.delete(queue.keys.message("ran out"))
    await queue.redis.zadd(queue.keys.dlq, {"kept": 1, "ran out": 2, "half done": await queue.now()})
    await queue.transitions.prune("", idle=1000)
    assert await queue.redis.zrange(queue.keys.dlq, 0, -1) == ["kept", "half done"]
    assert await queue.redis.zrange(queue.keys.lost, 0, -1) == ["ran out"]
    assert await queue.redis.hget(queue.keys.stats, "expired_messages") == "1"
