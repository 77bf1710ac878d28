"""Messages of one key: who counts as begun, what outsiders do to their order, and what looking after them costs."""

from __future__ import annotations

from typing import Any

import pytest

from streams_queue.answers import Failure, NewMessage, Refused
from streams_queue.keys import hash_of_key
from streams_queue.limits import Limits, Rate
from transitions.tables import NEVER, RETURNED, SUSPECTS, Queue

U1 = hash_of_key("user_id", b"u1")
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


async def calls(queue: Queue) -> int:
    return sum(row["calls"] for row in (await queue.redis.info("commandstats")).values())


async def test_an_old_producer_whose_clock_is_slow_does_not_run_beside_the_first(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.old("b", score=await queue.now() - 5, user_id="u1")
    await queue.full_pass()
    assert await everything(queue) == []
    await queue.complete(lease)
    assert await everything(queue) == ["b"]


async def test_one_that_somebody_moved_in_main_does_not_stop_its_key(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    (lease,) = await queue.claim("w1", 1)
    await queue.redis.zadd(queue.keys.main, {"b": await queue.now() + 5})
    assert await everything(queue) == []
    await queue.complete(lease)
    assert await everything(queue) in (["b"], ["c"])


async def test_a_paused_first_one_and_an_old_producers_lower_score(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.old("b", score=await queue.now() - 5, user_id="u1")
    await queue.full_pass()
    assert await everything(queue) == []
    await hold_up(queue, lease, "u1")
    await queue.redis.delete(queue.keys.pause(U1))
    await queue.redis.zadd(queue.keys.wake, {U1: 1.0})
    await queue.upkeep("w1")
    assert await everything(queue) == ["a"]


async def test_a_message_that_gets_another_key_leaves_its_former_ones_alone(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.transitions.update("a", [b"user_id", b"u2"], b"{}")
    assert await queue.complete(lease) == "completed"
    assert await everything(queue) == ["b"]


async def test_a_parked_message_that_gets_another_key_has_the_turn_of_that(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    assert await ids(queue) == ["a"]
    await queue.transitions.update("b", [b"user_id", b"u2"], b"{}")
    assert await everything(queue) == ["b"]
    assert not [key async for key in queue.redis.scan_iter(queue.keys.parked_of("*"))]


async def test_a_message_at_work_that_gets_another_key_counts_for_that(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", user_id="u1")
    (lease,) = await queue.claim("w1", 10)
    await queue.transitions.update("a", [b"user_id", b"u2"], b"{}")
    await queue.old("b", score=await queue.now() - 5, user_id="u2")
    await queue.full_pass()
    assert await everything(queue) == []
    await queue.complete(lease)
    assert await everything(queue) == ["b"]


async def test_what_a_lost_answer_brought_has_had_its_turn(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(1, per=60)))
    await queue.enqueue("a", user_id="u1")
    assert await ids(queue) == ["a"]
    adopted = await queue.transitions.adopt("w1", await queue.transitions.pending("w1"), 5)
    assert [delivery.lease.id for delivery in adopted.deliveries] == ["a"]


async def test_a_parked_message_that_somebody_gave_up_leaves_no_entry_behind_when_it_is_requeued(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", user_id="u1")
    assert await ids(queue) == ["a"]
    await queue.redis.zrem(queue.keys.main, "b")
    await queue.redis.zadd(queue.keys.dlq, {"b": await queue.now()})
    assert await queue.requeue("b") == "queued"
    assert (await queue.table())["stream"] == {"a": "w1", "b": NEVER}
    assert await queue.redis.xlen(queue.keys.streams["n"]) == 2


async def test_of_all_that_left_without_a_word_none_holds_up_the_next(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", "d", user_id="u1")
    await queue.redis.zrem(queue.keys.main, "a", "b", "c")
    await queue.redis.delete(*map(queue.keys.message, "abc"))
    assert await everything(queue) == ["d"]


async def test_looking_at_what_is_parked_finds_no_edits(queue: Queue):
    """Not even where it finds that it is their turn, and gives them new entries."""
    await queue.transitions.limit(Limits(key="user_id", concurrency_per_key=3))
    await queue.enqueue(*[f"x{n:02}" for n in range(20)])
    assert len(await ids(queue, "w2", 20)) == 20
    await queue.enqueue(*[f"m{n:02}" for n in range(20)], user_id="u1")
    leases = await queue.claim("w1", 40)
    assert len(leases) == 3
    await queue.redis.zrem(queue.keys.main, *[lease.id for lease in leases])
    await queue.redis.delete(*[queue.keys.message(lease.id) for lease in leases])
    await queue.full_pass()
    assert (await everything(queue)) == ["m03", "m04", "m05"]
    assert "outside_entry_lost" not in (await queue.table())["stats"]


async def test_a_round_does_not_look_at_what_is_parked(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(5, per=3600)))
    await queue.enqueue(*[f"m{n:04}" for n in range(500)], user_id="u1")
    assert len(await everything(queue)) == 5
    await queue.upkeep("w1")
    await queue.redis.config_resetstat()
    await queue.upkeep("w1")
    assert await calls(queue) < 2000


async def test_a_full_pass_wakes_no_more_of_a_key_than_may_begin(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(5, per=3600)))
    await queue.enqueue(*[f"m{n:04}" for n in range(500)], user_id="u1")
    assert len(await everything(queue)) == 5
    await queue.redis.delete(queue.keys.rate_of(U1))
    await queue.full_pass()
    assert await queue.redis.zcard(queue.keys.parked) == 490


async def test_a_full_pass_takes_few_commands_for_what_is_parked(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue(*[f"m{n:04}" for n in range(500)], user_id="u1")
    assert len(await everything(queue)) == 1
    await queue.redis.config_resetstat()
    await queue.full_pass()
    assert await calls(queue) < 5000


async def test_a_thousand_at_work_are_not_looked_through_for_each_that_waits(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", concurrency_per_key=300))
    for part in range(2):
        await queue.enqueue(*[f"m{part}-{n:04}" for n in range(300)], user_id="u1")
    assert len(await ids(queue, count=300)) == 300
    await queue.redis.config_resetstat()
    assert await ids(queue, count=300) == []
    assert (await queue.redis.info("commandstats"))["cmdstat_zmscore"]["calls"] < 10


async def test_many_keys_whose_time_comes_at_once_take_several_calls(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(100, per=3600)))
    for key in range(20):
        await queue.redis.set(queue.keys.pause(hash_of_key("user_id", b"k%d" % key)), "x", px=100_000)
        await queue.enqueue(*[f"m{key}-{n}" for n in range(100)], user_id=f"k{key}")
    assert await everything(queue) == []
    for key in range(20):
        hash = hash_of_key("user_id", b"k%d" % key)
        await queue.redis.delete(queue.keys.pause(hash))
        await queue.redis.zadd(queue.keys.wake, {hash: 1.0})
    parked = 2000
    steps: list[int] = []
    while parked:
        done = await (queue.transitions.promote() if len(steps) % 2 else queue.upkeep("w1"))
        left = await queue.redis.zcard(queue.keys.parked)
        assert done.more_due or not left
        steps.append(parked - left)
        parked = left
    assert max(steps) <= 520 and len(await everything(queue)) == 2000


async def test_all_that_is_parked_goes_on_when_its_limit_is_gone(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    for part in range(2):
        await queue.enqueue(*[f"m{part}-{n:04}" for n in range(300)], user_id="u1")
    assert len(await everything(queue)) == 1
    await queue.transitions.limit(Limits())
    while (await queue.upkeep("w1")).more_due:
        pass
    assert await queue.redis.zcard(queue.keys.parked) == 0
    assert len(await everything(queue)) == 599


async def test_a_spent_rate_is_not_waited_for_where_nothing_waits(queue: Queue):
    await queue.transitions.limit(Limits(work=Rate(1, per=60)))
    await queue.enqueue("a")
    assert await ids(queue) == ["a"]
    assert (await queue.claimed("w2", 10)).wait == 0
    await queue.enqueue("b")
    assert (await queue.claimed("w2", 10)).wait == pytest.approx(60, abs=1)


async def test_a_spent_rate_is_waited_for_by_a_suspect_too(queue: Queue):
    await queue.transitions.limit(Limits(work=Rate(1, per=60)))
    await queue.abandoned("a")
    await queue.sweep(max_deliveries=2)
    assert (await queue.table())["stream"] == {"a": SUSPECTS}
    assert (await queue.claimed("w2", 10)).wait == pytest.approx(60, abs=1)


async def test_the_end_of_a_pause_is_known_before(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id"))
    await queue.enqueue("a", user_id="u1")
    (lease,) = await queue.claim("w1")
    await hold_up(queue, lease, "u1", 100)
    assert (await queue.upkeep("w1")).next_due == pytest.approx(100, abs=1)
    assert (await queue.transitions.promote()).next_due == pytest.approx(100, abs=1)


async def test_a_pause_keeps_the_slot_and_the_users_index(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id"))
    await queue.enqueue("a", user_id="u1", unique="k1", ttl=1000, index_users=True)
    (lease,) = await queue.claim("w1")
    assert await hold_up(queue, lease, "u1", 5000) == "queued"
    ttl = (await queue.table())["ttl"]
    assert (ttl["dedup:k1"], ttl["user:u1"], ttl["msg:a"]) == (5500, 6000, 6000)


async def test_a_crash_is_one_though_the_lock_ends_a_moment_late(queue: Queue):
    lease = await queue.processing("a", "dead")
    await queue.age(lease, "dead", 30.0)
    await queue.redis.pexpire(queue.keys.lock("a"), 20)
    await queue.sweep()
    await queue.redis.delete(queue.keys.lock("a"))
    await queue.sweep()
    table = await queue.table()
    assert table["stream"] == {"a": RETURNED}
    assert table["msg:a"].get("_sq_crashes") == "1"
    assert "outside_unlocked" not in table["stats"]


async def test_what_had_begun_before_the_limit_counts(queue: Queue):
    await queue.enqueue("a", "b", user_id="u1")
    (lease,) = await queue.claim("w1", 1)
    await queue.transitions.limit(IN_ORDER)
    assert await everything(queue) == []
    await queue.complete(lease)
    assert await everything(queue) == ["b"]


# ---- which messages have the same key


async def test_none_is_no_key_and_its_text_is(queue: Queue):
    none, text = b'{"user_id":"n"}', b""
    await queue.transitions.limit(Limits(key="user_id", concurrency_per_key=1, accept_per_key=Rate(1, per=60)))
    messages = [
        NewMessage(f"{name}{n}", "normal", 0.0, None, None, [b"user_id", b"None", b"_sq_types", types])
        for name, types in (("none", none), ("text", text))
        for n in range(2)
    ]
    answers = await queue.transitions.enqueue(messages, dedup_expiry=500)
    assert [isinstance(answer, Refused) for answer in answers] == [False, False, False, True]
    assert await everything(queue) == ["none0", "none1", "text0"]


async def test_types_that_somebody_damaged_tell_nothing(queue: Queue):
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="None")
    for id, types in (("a", "{"), ("b", "[1]"), ("c", '{"user_id":7}')):
        await queue.redis.hset(queue.keys.message(id), "_sq_types", types)
    assert await everything(queue) == ["a"]


async def test_one_that_was_handed_back_does_not_run_beside_another_that_had_begun(queue: Queue):
    """Both ran when two of a key might; by now one may."""
    await queue.enqueue("a", "b", "c", user_id="u1")
    handed_back, at_work = await queue.claim("w1", 2)
    await queue.transitions.limit(IN_ORDER)
    await queue.release(handed_back)
    assert await everything(queue) == []
    await queue.complete(at_work)
    (again,) = await queue.claim("w1", 10)
    assert again.id == "a"
    await queue.complete(again)
    assert await everything(queue) == ["c"]


async def test_one_whose_body_ran_out_while_it_waited_for_the_rate_of_its_key_costs_nothing_of_it(queue: Queue):
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(1, per=3600)))
    await queue.enqueue("a", "b", "c", user_id="u1")
    assert await everything(queue) == ["a"]
    await queue.redis.delete(queue.keys.message("b"), queue.keys.rate_of(U1))
    await queue.redis.zadd(queue.keys.wake, {U1: 1.0})
    await queue.transitions.promote()
    assert await everything(queue) == ["c"]


async def test_one_that_the_list_of_its_key_still_names_costs_nothing_of_the_rate(queue: Queue):
    """It went on while no limit told keys apart, and so left the list of its key as it was."""
    await queue.transitions.limit(IN_ORDER)
    await queue.enqueue("a", "b", "c", user_id="u1")
    assert await everything(queue, "w1") == ["a"]
    await queue.transitions.limit(Limits())
    while (await queue.upkeep("w1")).more_due:
        pass
    assert await everything(queue) == ["b", "c"]
    await queue.transitions.limit(Limits(key="user_id", work_per_key=Rate(1, per=3600)))
    await queue.enqueue("d", user_id="u1")
    assert await everything(queue) == []
    await queue.transitions.promote()
    assert await everything(queue) == ["d"]
