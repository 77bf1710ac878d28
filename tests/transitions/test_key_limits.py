"""Limits at work: whose turn it is among the messages of one key, rates, and keys that are paused."""

from __future__ import annotations

from typing import Any

import pytest

from streams_queue.answers import Claimed, Failure
from streams_queue.keys import hash_of_key
from streams_queue.limits import Limits, Rate
from transitions.tables import LEASE_MS, META, NEVER, RETURNED, Queue, body

WEEK = 604800
U1 = hash_of_key("user_id", b"u1")
ORDERED = {**META, "limit_key": "user_id", "limit_concurrency_per_key": "1"}
IN_ORDER = Limits(key="user_id", concurrency_per_key=1)


async def ids(queue: Queue, consumer: str = "w1", count: int = 10) -> list[str]:
    return [lease.id for lease in await queue.claim(consumer, count)]


async def everything(queue: Queue, consumer: str = "w2") -> list[str]:
    """Claims until nothing is found."""
    found: list[str] = []
    while (claimed := await queue.claimed(consumer, 10)).looked_at:
        found += [delivery.lease.id for delivery in claimed.deliveries]
    return found


async def hold_up(queue: Queue, lease: Any, key: str, delay: float = 100) -> str:
    failure = Failure(lease, delay, "error", "slow down", key.encode())
    (answer,) = await queue.transitions.retry("w1", [failure], max_retries=0, dead_letter_ttl=1000, dedup_expiry=500)
    return answer


# ---- one at a time


async def test_the_second_of_a_key_is_parked(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    assert await ids(queue) == ["a"]
    assert await queue.table() == {
        "queue:main": ["a", "b"],
        "stream": {"a": "w1", "b": NEVER},
        "parked": ["b"],
        "parked:u1": ["b"],
        "key:u1": ["a", "b"],
        "msg:a": body("a", "processing", _sq_owner="w1", _sq_deliveries="1", user_id="u1"),
        "msg:b": body("b", "queued", user_id="u1"),
        "lock:a": "w1",
        "meta": ORDERED,
        "stats": {"total_messages": 2},
        "ttl": {"lock:a": 30, "parked:u1": WEEK, "key:u1": WEEK},
    }


@pytest.mark.parametrize("end", ["complete", "retry", "dead_letter", "remove", "taken out"])
async def test_the_next_has_its_turn_when_the_first_leaves(queue: Queue, end: str):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    if end == "remove":
        await queue.transitions.remove(["a"])
    elif end == "taken out":
        await queue.redis.zrem(queue.keys.main, "a")
        assert await queue.release(lease) == "gone"
    else:
        await getattr(queue, end)(lease)
    table = await queue.table()
    assert (table["stream"], table["parked"], table["key:u1"]) == ({"b": NEVER, "c": NEVER}, ["c"], ["b", "c"])
    assert await ids(queue) == ["b"]
    assert (await queue.table())["stream"] == {"b": "w1", "c": NEVER}


async def test_who_waited_for_its_turn_goes_before_the_backlog(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 2)
    await queue.enqueue("x", "y", user_id="u2")
    await queue.complete(lease)
    assert (await queue.table())["stream"] == {"b": RETURNED, "x": NEVER, "y": NEVER}
    assert await ids(queue) == ["b", "x"]


async def test_others_pass(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a1", "a2", user_id="u1")
    await queue.enqueue("b1", "b2", user_id="u2")
    await queue.enqueue("free", "also")
    assert await ids(queue) == ["a1", "b1", "free", "also"]


async def test_so_many_at_once(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", concurrency_per_key=2))
    await queue.enqueue("a", "b", "c", "d", user_id="u1")
    leases = await queue.claim("w1", 10)
    assert [lease.id for lease in leases] == ["a", "b"]
    await queue.complete(leases[1])
    await queue.complete(leases[0])
    assert sorted(await everything(queue)) == ["c", "d"]


async def test_what_was_handed_back_stays_the_first_of_its_key(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.release(lease)
    assert await everything(queue) == ["a"]


async def test_after_a_death_the_first_goes_on(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.run_out(lease)
    await queue.sweep()
    assert await everything(queue) == ["a"]


async def test_readers_do_not_turn_the_order_round(queue: Queue):
    """Two blocking reads brought one each, and the second is adopted first."""
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", user_id="u1")
    first = await queue.read_only("w1")
    await queue.enqueue("b", user_id="u1")
    second = await queue.read_only("w2")
    assert (await queue.transitions.adopt("w2", second, 1)).deliveries == []
    adopted = await queue.transitions.adopt("w1", first, 1)
    assert [delivery.lease.id for delivery in adopted.deliveries] == ["a"]


async def test_old_producers_messages_keep_their_order_too(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    now = await queue.now()
    await queue.old("b", score=now - 1, user_id="u1")
    await queue.old("a", score=now - 2, user_id="u1")
    await queue.full_pass()
    assert await everything(queue) == ["a"]


async def test_what_was_in_line_before_the_limit(queue: Queue):
    await queue.enqueue("a", "b", "c", user_id="u1")
    await queue.transitions.limit(IN_ORDER)
    assert await ids(queue) == ["a"]
    assert (await queue.table())["key:u1"] == ["a", "b", "c"]


async def test_who_left_main_without_a_word_holds_up_nobody(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.redis.delete(queue.keys.message("a"))
    assert await everything(queue) == ["b"]


async def test_a_scheduled_message_has_no_turn_before_it_is_due(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", user_id="u1", delay=100)
    await queue.enqueue("b", user_id="u1")
    assert await everything(queue) == ["b"]
    await queue.make_due("a")
    await queue.transitions.promote()
    assert (await queue.table())["key:u1"] == ["b", "a"]


async def test_a_requeued_dead_letter_takes_its_turn_at_the_end(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.dead("a", user_id="u1")
    await queue.enqueue("b", user_id="u1")
    await queue.requeue("a")
    assert (await queue.table())["key:u1"] == ["b", "a"]


@pytest.mark.parametrize("at_once", [1, 2])
async def test_parked_ones_are_looked_at_anew_when_the_limits_change(queue: Queue, at_once: int):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    await queue.claim("w1", 10)
    wider = Limits(key="user_id", concurrency_per_key=2) if at_once == 2 else Limits()
    await queue.transitions.limit(wider)
    while (await queue.upkeep("w1")).more_due:
        pass
    assert await everything(queue) == ["b", "c"][: 3 - at_once] if at_once == 1 else ["b"]
    assert "parked_cursor" not in (await queue.table())["meta"]


async def test_a_turn_that_nobody_called_is_found_by_the_full_pass(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.redis.delete(queue.keys.message("a"))
    assert await queue.complete(lease) == "stale"
    assert "b" in (await queue.table())["parked"]
    await queue.full_pass()
    assert await everything(queue) == ["b"]


async def test_a_parked_message_that_ran_out_leaves_nothing(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.redis.delete(queue.keys.message("b"))
    await queue.complete(lease)
    table = await queue.table()
    assert not {"stream", "parked", "parked:u1"} & set(table)


async def test_a_parked_message_whose_body_ran_out_expires(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    await queue.claim("w1", 10)
    await queue.redis.delete(queue.keys.message("b"))
    await queue.redis.zadd(queue.keys.bodiless, {"b": 1.0})
    await queue.full_pass()
    await queue.redis.zadd(queue.keys.bodiless, {"b": await queue.now() - 10})
    await queue.full_pass()
    table = await queue.table()
    assert (table["queue:main"], table["stream"]) == (["a"], {"a": "w1"})
    assert "parked" not in table
    assert table["stats"]["expired_messages"] == 1


async def test_a_parked_message_that_lost_its_entry_gets_a_new_one(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.delete_stream()
    await queue.transitions.join("w1", 30.0)
    await queue.full_pass()
    assert "parked" not in await queue.table()
    assert await queue.complete(lease) == "completed"
    assert await everything(queue) == ["b"]


async def test_a_parked_message_can_be_removed(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    assert await queue.transitions.remove(["b"]) == [True]
    table = await queue.table()
    assert (table["stream"], table["parked"], table["parked:u1"]) == ({"a": "w1", "c": NEVER}, ["c"], ["c"])
    await queue.complete(lease)
    assert await everything(queue) == ["c"]


async def test_parked_ones_are_found_when_another_field_tells_keys_apart(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1", chat="7")
    (lease,) = await queue.claim("w1", 10)
    await queue.transitions.limit(Limits(key="chat", concurrency_per_key=1))
    await queue.complete(lease)
    while (await queue.upkeep("w1")).more_due:
        pass
    (lease,) = await queue.claim("w2", 10)
    assert lease.id == "b"
    assert await queue.transitions.complete("w2", [(lease, b"")], result_ttl=1) == ["completed"]
    assert await everything(queue) == ["c"]


@pytest.mark.parametrize("lost", ["deleted", "a text"])
async def test_parked_ones_are_found_when_the_list_of_their_key_is_lost(queue: Queue, lost: str):
    """Somebody deleted it, or it ended after a week in which nobody came."""
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.redis.delete(queue.keys.parked_of(U1))
    if lost == "a text":
        await queue.redis.set(queue.keys.parked_of(U1), "oops", px=60_000)
    await queue.complete(lease)
    await queue.full_pass()
    assert await everything(queue) == ["b"]


async def test_a_parked_message_that_was_taken_out_and_is_on_no_list_leaves_nothing(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.redis.zrem(queue.keys.main, "b")
    await queue.redis.delete(queue.keys.message("b"), queue.keys.parked_of(U1))
    await queue.complete(lease)
    await queue.full_pass()
    assert not {"stream", "parked"} & set(await queue.table())


async def test_a_parked_message_whose_body_ran_out_can_be_removed(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    await queue.claim("w1", 10)
    await queue.redis.delete(queue.keys.message("b"))
    assert await queue.transitions.remove(["b"]) == [True]
    assert (await queue.table())["stream"] == {"a": "w1"}


async def test_a_parked_message_whose_body_ran_out_comes_again(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    await queue.claim("w1", 10)
    await queue.redis.delete(queue.keys.message("b"))
    await queue.enqueue("b", user_id="u1")
    assert await queue.redis.xlen(queue.keys.streams["n"]) == 2


@pytest.mark.parametrize("at_once", ["0", "-1", "0.5", "nan", "many"])
async def test_a_number_at_once_that_somebody_wrote_wrongly_is_none(queue: Queue, at_once: str):
    await queue.redis.hset(queue.keys.meta, mapping={"limit_key": "user_id", "limit_concurrency_per_key": at_once})
    await queue.enqueue("a", "b", user_id="u1")
    assert await ids(queue) == ["a", "b"]


async def test_a_parked_message_that_somebody_moved_leaves_no_entry_behind(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    await queue.claim("w1", 10)
    await queue.redis.zrem(queue.keys.main, "b")
    await queue.redis.zadd(queue.keys.retry, {"b": 1.0})
    await queue.transitions.promote()
    assert await queue.redis.xlen(queue.keys.streams["n"]) == 2


async def test_a_parked_message_that_was_taken_out_gets_an_end(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.redis.zrem(queue.keys.main, "b")
    await queue.redis.persist(queue.keys.message("b"))
    await queue.complete(lease)
    assert 0 < await queue.redis.ttl(queue.keys.message("b")) <= 3600
    assert not {"stream", "parked"} & set(table := await queue.table())
    assert table["stats"]["outside_taken_out"] == 1


async def test_a_key_of_before_that_is_due_wakes_its_messages(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(1, per=60)))
    await queue.enqueue("a", "b", user_id="u1", chat="7")
    (lease,) = await queue.claim("w1", 10)
    await queue.complete(lease)
    await queue.redis.hset(queue.keys.meta, mapping={"limit_key": "chat", "limit_concurrency_per_key": "1"})
    await queue.redis.hdel(queue.keys.meta, "limit_work_per_key")
    await queue.redis.zadd(queue.keys.wake, {U1: 1.0})
    await queue.transitions.promote()
    assert await everything(queue) == ["b"]


async def test_parked_ones_count_as_waiting(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    await queue.claim("w1", 10)
    stats = await queue.transitions.stats()
    assert (stats.main, stats.processing, stats.parked) == (3, 1, 2)
    assert stats.oldest_waiting is not None and stats.oldest_waiting < 10
    assert await queue.transitions.positions(["a", "b", "c"]) == [(1, 0), (2, 0), (3, 1)]


async def test_nothing_looks_at_what_is_parked(queue: Queue):
    """No sweep, no claim: a thousand of them cost as much as few."""
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue(*[f"m{n:04}" for n in range(500)], user_id="u1")
    assert await ids(queue, count=500) == ["m0000"]
    await queue.redis.config_resetstat()
    await queue.claimed("w2", 500)
    await queue.sweep()
    calls = {name: row["calls"] for name, row in (await queue.redis.info("commandstats")).items()}
    assert sum(calls.values()) < 100, calls


@pytest.mark.parametrize("kind", ["turns", "parked_of", "rate_of"])
async def test_a_text_in_the_place_of_what_is_kept_of_a_key(queue: Queue, kind: Any):
    await queue.transitions.limit(Limits(key="user_id", concurrency_per_key=1, work_per_key=Rate(100)))
    await queue.redis.set(getattr(queue.keys, kind)(U1), "oops", px=60_000)
    await queue.enqueue("a", user_id="u1")
    leases = await queue.claim("w1", 10)
    assert [lease.id for lease in leases] == ["a"]
    assert await queue.complete(leases[0]) == "completed"


# ---- rates


async def test_the_rate_of_the_queue(queue: Queue):
    await queue.transitions.limit(Limits(work=Rate(3, per=60)))
    await queue.enqueue(*"abcde")
    first = await queue.claimed("w1", 10)
    assert [delivery.lease.id for delivery in first.deliveries] == ["a", "b", "c"]
    assert first.wait == pytest.approx(20, abs=1)
    again = await queue.claimed("w2", 10)
    assert again == Claimed(False, False, 0, [], again.wait)
    assert again.wait == pytest.approx(20, abs=1)
    table = await queue.table()
    assert table["stream"] == {"a": "w1", "b": "w1", "c": "w1", "d": NEVER, "e": NEVER}
    assert table["ttl"]["rate"] == 60


async def test_what_a_read_brought_over_the_rate_goes_back(queue: Queue):
    await queue.transitions.limit(Limits(work=Rate(1, per=60)))
    await queue.enqueue("a", "b")
    await queue.claim("w1")
    entries = await queue.read_only("w2")
    adopted = await queue.transitions.adopt("w2", entries, 5)
    assert not adopted.deliveries
    assert adopted.wait == pytest.approx(60, abs=1)
    assert (await queue.table())["stream"] == {"a": "w1", "b": RETURNED}


async def test_a_claim_that_brings_less_spends_less(queue: Queue):
    await queue.transitions.limit(Limits(work=Rate(3, per=60)))
    await queue.enqueue("a")
    assert (await queue.claimed("w1", 10)).wait == 0
    await queue.enqueue("b", "c", "d")
    assert await ids(queue) == ["b", "c"]


async def test_the_rate_of_a_key(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(2, per=60)))
    await queue.enqueue("a", "b", "c", "d", user_id="u1")
    await queue.enqueue("x", user_id="u2")
    leases = await queue.claim("w1", 10)
    assert [lease.id for lease in leases] == ["a", "b", "x"]
    table = await queue.table()
    assert (table["parked:u1"], table["wake"]) == (["c", "d"], {"u1": "now+30"})
    for lease in leases:
        await queue.complete(lease)
    assert await everything(queue) == []  # finishing gives no new allowance
    await let_pass(queue, 30)
    await queue.upkeep("w1")
    assert await everything(queue) == ["c"]
    table = await queue.table()
    assert (table["parked:u1"], table["wake"]) == (["d"], {"u1": "now+30"})


async def test_nobody_overtakes_who_waits_for_the_rate(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(1, per=60)))
    await queue.enqueue("a", "b", user_id="u1")
    await queue.claim("w1", 10)
    await let_pass(queue, 60)
    await queue.enqueue("c", user_id="u1")
    assert await everything(queue) == []
    await queue.upkeep("w1")
    assert await everything(queue) == ["b"]


async def let_pass(queue: Queue, seconds: float) -> None:
    """As if this time had passed, for the rate of u1."""
    rate = queue.keys.rate_of(U1)
    full_at = float(await queue.redis.get(rate)) - seconds
    await queue.redis.set(rate, full_at, px=60_000)
    (hash,) = await queue.redis.zrange(queue.keys.wake, 0, -1)
    await queue.redis.zincrby(queue.keys.wake, -seconds, hash)


# ---- a key that is paused


async def test_a_key_is_paused_for_everyone_and_nothing_is_charged(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id"))
    await queue.enqueue("a", "b", user_id="u1")
    await queue.enqueue("x", user_id="u2")
    (lease,) = await queue.claim("w1")
    assert await hold_up(queue, lease, "u1") == "queued"
    assert await everything(queue) == ["x"]
    assert await queue.table() == {
        "queue:main": ["a", "b", "x"],
        "stream": {"a": NEVER, "b": NEVER, "x": "w2"},
        "parked": ["a", "b"],
        "parked:u1": ["a", "b"],
        "pause:u1": "w1",
        "wake": {"u1": "now+100"},
        "msg:a": body("a", "queued", _sq_deliveries="1", _sq_settled="n*/1", user_id="u1"),
        "msg:b": body("b", "queued", user_id="u1"),
        "msg:x": body("x", "processing", _sq_owner="w2", _sq_deliveries="1", user_id="u2"),
        "lock:x": "w2",
        "meta": {"lease_ms": LEASE_MS, "schema": "1", "limit_key": "user_id"},
        "stats": {"total_messages": 3, "paused_keys": 1},
        "ttl": {"lock:x": 30, "parked:u1": WEEK, "pause:u1": 100},
    }


async def test_when_the_pause_is_over_it_goes_first(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await hold_up(queue, lease, "u1")
    await queue.upkeep("w1")
    assert await everything(queue) == []
    await queue.redis.delete(queue.keys.pause(U1))
    await queue.redis.zadd(queue.keys.wake, {(await queue.redis.zrange(queue.keys.wake, 0, 0))[0]: 1.0})
    await queue.upkeep("w1")
    assert await everything(queue) == ["a"]


async def test_a_reply_that_was_lost(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id"))
    await queue.enqueue("a", user_id="u1")
    (lease,) = await queue.claim("w1")
    assert await hold_up(queue, lease, "u1") == "queued"
    assert await hold_up(queue, lease, "u1") == "queued"
    assert (await queue.table())["stats"]["paused_keys"] == 1


async def test_a_longer_pause_is_not_shortened(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id"))
    await queue.enqueue("a", "b", user_id="u1")
    first, second = await queue.claim("w1", 2)
    await hold_up(queue, first, "u1", 100)
    await hold_up(queue, second, "u1", 10)
    assert (await queue.table())["ttl"]["pause:u1"] == 100


@pytest.mark.parametrize("limits", [Limits(key="user_id"), Limits()])
async def test_a_key_of_others(queue: Queue, limits: Limits):
    """The message waits for itself, uncharged; the other key is paused, if the queue tells keys apart."""
    await queue.transitions.limit(limits)
    await queue.enqueue("a", user_id="u1")
    (lease,) = await queue.claim("w1")
    assert await hold_up(queue, lease, "u2") == "retry"
    table = await queue.table()
    assert table["queue:retry"] == {"a": "now+100"}
    assert table["msg:a"]["retry_count"] == "0"
    assert ("pause:u2" in table) == (limits.key is not None)
