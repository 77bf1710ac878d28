"""complete, retry, dead_letter: processing -> done, retry, dead letter; remove and requeue."""

from __future__ import annotations

import pytest

from streams_queue.answers import Failure
from transitions.tables import (
    DEAD_LETTER_TTL,
    DEDUP_EXPIRY,
    META,
    NEVER,
    RESULT_TTL,
    RETURNED,
    Queue,
    body,
    new,
    outside,
)

# ---- complete


async def test_processing_becomes_completed(queue: Queue):
    """Body, lock and slot go at once; a marker stays, with the token of the finish and the result."""
    await queue.enqueue("a", unique="k", ttl=60, priority="high", user_id="u1", index_users=True)
    (lease,) = await queue.claim()
    assert await queue.table() == {
        "queue:main": ["a"],
        "line:high": ["a"],
        "stream:high": {"a": "w1"},
        "msg:a": body(
            "a", "processing", "h*",
            user_id="u1", _sq_ttl="60", dedup_key="dedup:k", _sq_owner="w1", _sq_deliveries="1",
        ),
        "lock:a": "w1",
        "dedup:k": "a",
        "user:u1": ["a"],
        "stats": {"total_messages": 1},
        "meta": {**META, "user_index": "1"},
        "ttl": {"msg:a": 60, "lock:a": 30, "dedup:k": DEDUP_EXPIRY, "user:u1": 60},
    }  # fmt: skip
    assert await queue.complete(lease, result=b'{"answer": 42}') == "completed"
    assert await queue.table() == {
        "done:a": 'completed\nh*/1\n{"answer": 42}',
        "stats": {"total_messages": 1, "completed_messages": 1},
        "meta": {**META, "user_index": "1"},
        "ttl": {"done:a": RESULT_TTL},
    }
    assert await queue.redis.xlen(queue.keys.streams["h"]) == 0


async def test_without_a_result_the_marker_lasts_a_minute(queue: Queue):
    await queue.complete(await queue.processing("a"))
    assert (await queue.table())["ttl"] == {"done:a": 60}


async def test_each_of_a_batch_has_its_own_answer(queue: Queue):
    await queue.enqueue("a", "b", "c")
    a, b, c = await queue.claim(count=3)
    await queue.transitions.remove(["b"])
    answers = await queue.transitions.complete("w1", [(a, b"1"), (b, b"2"), (c, b"3")], result_ttl=RESULT_TTL)
    assert answers == ["completed", "stale", "completed"]
    assert (await queue.table())["stats"]["completed_messages"] == 2


async def test_a_slot_is_freed_only_where_it_is_one_and_this_message_s(queue: Queue):
    lease = await queue.processing("a", unique="k")
    foreign = f"{queue.keys.prefix}-other:dedup:x"
    await queue.redis.set(foreign, "a", px=60_000)
    await queue.redis.hset(queue.keys.message("a"), "dedup_key", foreign)
    await queue.complete(lease)
    assert await queue.redis.exists(foreign) == 1

    lease = await queue.processing("b", unique="k1")
    await queue.redis.set(queue.keys.slot("k1"), "another", px=60_000)
    await queue.complete(lease)
    assert (await queue.table())["dedup:k1"] == "another"


# ---- retry


async def test_processing_becomes_retry(queue: Queue):
    lease = await queue.processing("a", unique="k", ttl=60)
    assert await queue.retry(lease, delay=100, error="no") == "retry"
    assert await queue.table() == {
        "queue:retry": {"a": "now+100"},
        "msg:a": body(
            "a", "retry", "n", retry_count="1", next_retry="now+100", last_error="no", last_error_time="now",
            _sq_ttl="60", dedup_key="dedup:k", _sq_deliveries="1", _sq_settled="n*/1",
        ),
        "dedup:k": "a",
        "stats": {"total_messages": 1, "retry_count": 1},
        "meta": META,
        "ttl": {"msg:a": 160, "dedup:k": 100 + DEDUP_EXPIRY},
    }  # fmt: skip


async def test_retries_are_counted_and_past_the_limit_is_a_dead_letter(queue: Queue):
    answers = []
    lease = await queue.processing("a")
    for _ in range(3):
        answers.append(await queue.retry(lease, max_retries=2))
        if answers[-1] == "retry":
            await queue.make_due("a")
            await queue.transitions.promote()
            (lease,) = await queue.claim()
    assert answers == ["retry", "retry", "error"]
    assert await queue.table() == {
        "queue:dlq": {"a": "now"},
        "msg:a": body(
            "a", "error", "n", retry_count="2", next_retry="now+100", error="oops", last_error="oops",
            last_error_time="now", moved_to_dlq_at="now", _sq_reason="error", _sq_deliveries="3", _sq_settled="n*/3",
        ),
        "stats": {"total_messages": 1, "retry_count": 2, "dlq_messages": 1, "dead_error": 1},
        "meta": META,
        "ttl": {"msg:a": DEAD_LETTER_TTL},
    }  # fmt: skip


async def test_retry_keeps_the_priority(queue: Queue):
    await queue.retrying("a", priority="low")
    assert "line:low" not in await queue.table()
    await queue.make_due("a")
    await queue.transitions.promote()
    table = await queue.table()
    assert (table["stream:low"], table["line:low"]) == ({"a": NEVER}, ["a"])


async def test_retry_leaves_a_slot_alone_that_another_holds(queue: Queue):
    lease = await queue.processing("a", unique="k")
    await queue.redis.set(queue.keys.slot("k"), "another", ex=50)
    await queue.retry(lease)
    table = await queue.table()
    assert (table["dedup:k"], table["ttl"]["dedup:k"]) == ("another", 50)


async def test_retry_of_an_id_that_left_main_drops_it_and_keeps_its_hash_for_a_while(queue: Queue):
    lease = await queue.processing("a", priority="high")
    await queue.redis.zrem(queue.keys.main, "a")
    assert await queue.retry(lease) == "gone"
    assert await queue.table() == {
        "msg:a": body("a", "processing", "h", _sq_deliveries="1"),
        "stats": {"total_messages": 1, "outside_taken_out": 1},
        "meta": META,
        "ttl": {"msg:a": 3600},
    }


@pytest.mark.parametrize(("count", "answer"), [("many", "retry"), ("", "retry"), ("1e400", "error"), ("nan", "error")])
async def test_a_damaged_count_leaves_no_retry_half_done(queue: Queue, count, answer):
    await queue.enqueue("a", "b")
    a, b = await queue.claim(count=2)
    await queue.redis.hset(queue.keys.message("a"), mapping={"retry_count": count, "_sq_ttl": "-7"})
    assert await queue.retry_many([a, b]) == [answer, "retry"]
    table = await queue.table()
    assert "queue:main" not in table
    assert "a" in table["queue:retry" if answer == "retry" else "queue:dlq"]
    assert table["msg:a"]["status"] == answer
    if answer == "retry":
        assert table["msg:a"]["retry_count"] == "1"


# ---- orders from outside: no delivery is asked about


async def test_an_order_from_outside_needs_no_delivery(queue: Queue):
    await queue.enqueue("a", "b")
    assert await queue.retry(outside("a", "order-1")) == "retry"
    assert await queue.dead_letter(outside("b", "order-2")) == "error"
    table = await queue.table()
    assert (table["queue:retry"], table["queue:dlq"]) == ({"a": "now+100"}, {"b": "now"})
    assert "queue:main" not in table
    assert "stream" not in table


async def test_an_order_from_outside_takes_the_message_from_its_holder(queue: Queue):
    lease = await queue.processing("a")
    assert await queue.retry(outside("a")) == "retry"
    before = await queue.table()
    assert "lock:a" not in before
    assert await queue.complete(lease) == "stale"
    assert await queue.table() == before


async def test_an_order_for_what_is_unknown_changes_nothing(queue: Queue):
    before = await queue.table()
    assert await queue.retry(outside("a")) == "gone"
    assert await queue.dead_letter(outside("a")) == "gone"
    assert await queue.table() == before


async def test_an_order_sent_again_after_a_lost_reply_counts_once(queue: Queue):
    await queue.enqueue("a", "b")
    await queue.retry(outside("a", "order-1"))
    await queue.dead_letter(outside("b", "order-2"))
    before = await queue.table()
    assert await queue.retry(outside("a", "order-1")) == "retry"
    assert await queue.dead_letter(outside("b", "order-2")) == "error"
    assert await queue.table() == before


# ---- dead_letter


async def test_processing_becomes_a_dead_letter(queue: Queue):
    """The body stays as long as dead letters do; the slot is free, the user's index forgets it."""
    await queue.enqueue("a", unique="k", ttl=60, priority="low", user_id="u1", index_users=True)
    (lease,) = await queue.claim()
    assert await queue.dead_letter(lease, reason="timeout", error="too slow") == "error"
    assert await queue.table() == {
        "queue:dlq": {"a": "now"},
        "msg:a": body(
            "a", "error", "l", user_id="u1", error="too slow", moved_to_dlq_at="now",
            _sq_ttl="60", dedup_key="dedup:k", _sq_deliveries="1", _sq_reason="timeout", _sq_settled="l*/1",
        ),
        "stats": {"total_messages": 1, "dlq_messages": 1, "dead_timeout": 1},
        "meta": {**META, "user_index": "1"},
        "ttl": {"msg:a": DEAD_LETTER_TTL},
    }  # fmt: skip


async def test_an_extreme_dead_letter_ttl_is_accepted(queue: Queue):
    lease = await queue.processing("a")
    failure = Failure(lease, 0.0, "error", "oops")
    assert await queue.transitions.dead_letter("w1", [failure], dead_letter_ttl=10**30) == ["error"]
    assert await queue.redis.ttl(queue.keys.message("a")) > 0


# ---- requeue


async def test_a_dead_letter_becomes_queued_its_counts_anew(queue: Queue):
    await queue.enqueue("first")
    (lease,) = await queue.claim("w2")
    await queue.enqueue("a", unique="k", ttl=60, priority="high", user_id="u1", index_users=True)
    (dead,) = await queue.claim()
    await queue.retry(dead, max_retries=0)
    assert await queue.requeue("a") == "queued"
    assert await queue.table() == {
        "queue:main": ["first", "a"],
        "line:high": ["a"],
        "stream": {"first": "w2"},
        "stream:high": {"a": NEVER},
        "msg:first": body("first", "processing", _sq_owner="w2", _sq_deliveries="1"),
        "msg:a": body("a", "queued", "h*", user_id="u1", _sq_ttl="60", dedup_key="dedup:k", _sq_deliveries="1"),
        "lock:first": "w2",
        "dedup:k": "a",
        "user:u1": ["a"],
        "stats": {"total_messages": 2, "dlq_messages": 1, "dead_error": 1, "requeued_messages": 1},
        "meta": {**META, "user_index": "1"},
        "ttl": {"msg:a": 60, "lock:first": 30, "dedup:k": DEDUP_EXPIRY, "user:u1": 60},
    }
    assert await queue.complete(lease, "w2") == "completed"


async def test_a_requeued_message_takes_its_slot_only_if_that_is_free(queue: Queue):
    await queue.dead("a", unique="k")
    await queue.enqueue("b", unique="k")
    assert await queue.requeue("a") == "queued"
    assert (await queue.table())["dedup:k"] == "b"


async def test_a_requeued_message_without_ttl_does_not_expire(queue: Queue):
    await queue.dead("a")
    await queue.requeue("a")
    assert "ttl" not in await queue.table()


async def test_what_is_no_dead_letter_is_not_requeued(queue: Queue):
    await queue.enqueue("a")
    before = await queue.table()
    assert await queue.requeue("a") == "missing"
    assert await queue.requeue("unknown") == "missing"
    assert await queue.table() == before


async def test_a_dead_letter_without_a_body_is_expired_by_requeue(queue: Queue):
    await queue.dead("a")
    await queue.redis.delete(queue.keys.message("a"))
    assert await queue.requeue("a") == "expired"
    assert await queue.table() == {
        "lost": {"a": "now"},
        "done:a": "expired\n\n",
        "stats": {"total_messages": 1, "dlq_messages": 1, "dead_rejected": 1, "expired_messages": 1},
        "meta": META,
        "ttl": {"done:a": 60},
    }


# ---- remove


@pytest.mark.parametrize("state", ["queued", "scheduled", "processing", "handed back", "retry", "dead"])
async def test_anything_becomes_removed(queue: Queue, state):
    match state:
        case "queued":
            await queue.enqueue("a", priority="high", unique="k", ttl=60)
        case "scheduled":
            await queue.enqueue("a", priority="high", unique="k", ttl=60, delay=100)
        case "processing":
            await queue.processing("a", priority="high", unique="k", ttl=60)
        case "handed back":
            await queue.release(await queue.processing("a", priority="high", unique="k", ttl=60))
            assert (await queue.table())["stream:high"] == {"a": RETURNED}
        case "retry":
            await queue.retrying("a", priority="high", unique="k", ttl=60)
        case "dead":
            await queue.dead("a", priority="high", unique="k", ttl=60)
    stats = (await queue.table())["stats"]
    assert await queue.transitions.remove(["a"]) == [True]
    removed = {
        "done:a": "removed\n\n",
        "stats": {**stats, "removed_messages": 1},
        "meta": META,
        "ttl": {"done:a": 60},
    }
    assert await queue.table() == removed
    assert await queue.transitions.remove(["a", "unknown"]) == [False, False]
    assert await queue.table() == removed


async def test_a_place_without_a_body_is_removed_from_every_set(queue: Queue):
    await queue.enqueue("a", priority="high")
    await queue.redis.delete(queue.keys.message("a"))
    assert await queue.transitions.remove(["a"]) == [True]
    table = await queue.table()
    assert not {"queue:main", "line:high"} & set(table)
    assert await queue.claim() == []


async def test_only_dead_leaves_everything_else_alone(queue: Queue):
    await queue.dead("dead")
    await queue.enqueue("a")
    assert await queue.transitions.remove(["dead", "a", "unknown"], only_dead=True) == [True, False, False]
    table = await queue.table()
    assert table["queue:main"] == ["a"]
    assert "queue:dlq" not in table


async def test_a_removed_message_has_been_lost_by_its_holder(queue: Queue):
    lease = await queue.processing("a")
    await queue.transitions.remove(["a"])
    assert await queue.renew(lease) is False
    assert await queue.complete(lease) == "stale"


# ---- telling


async def test_every_transition_is_told_to_those_who_listen_and_to_nobody_else(queue: Queue):
    async with queue.redis.pubsub() as listener:
        await listener.psubscribe(f"{queue.keys.prefix}*")
        await listener.get_message(timeout=5)
        await queue.transitions.enqueue(
            [new("a", listener=f"{queue.keys.prefix}:events:x"), new("quiet")], dedup_expiry=DEDUP_EXPIRY
        )
        await queue.retry((await queue.claim(count=2))[0], error="no")
        await queue.make_due("a")
        await queue.transitions.promote()
        await queue.complete((await queue.claim())[0], result=b"1")
        told: list[str] = []
        while not told or not told[-1].startswith("a\ncompleted"):
            message = await listener.get_message(ignore_subscribe_messages=True, timeout=5)
            assert message is not None, told
            assert message["channel"] == f"{queue.keys.prefix}:events:x"
            told.append(message["data"])
    assert told == ["a\nprocessing\n", "a\nretry\nno", "a\nprocessing\n", "a\ncompleted\n1"]


# ---- what became of it meanwhile


@pytest.mark.parametrize("finish", ["retry", "dead_letter", "release"])
async def test_a_message_that_was_taken_out_while_it_ran_is_dropped_and_its_hash_kept_for_a_while(queue: Queue, finish):
    lease = await queue.processing("a")
    await queue.redis.zrem(queue.keys.main, "a")
    assert await getattr(queue, finish)(lease) == "gone"
    table = await queue.table()
    assert "stream" not in table and "queue:dlq" not in table and "queue:retry" not in table
    assert 0 < table["ttl"]["msg:a"] <= 3600


async def test_a_dead_letter_dies_once(queue: Queue):
    await queue.dead("a")
    before = await queue.table()
    assert await queue.dead_letter(outside("a")) == "error"
    assert await queue.retry(outside("a")) == "error"
    assert await queue.table() == before
