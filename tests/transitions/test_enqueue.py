"""enqueue: nothing -> queued, or scheduled where it is due later."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from streams_queue import transitions
from streams_queue.errors import QueueUnavailable
from transitions.tables import DEDUP_EXPIRY, LOCKED, META, NEVER, Queue, body, new


async def test_nothing_becomes_queued(queue: Queue):
    assert await queue.table() == {"meta": META}
    assert await queue.enqueue("a") == [("a", "queued", False)]
    assert await queue.table() == {
        "queue:main": ["a"],
        "stream": {"a": NEVER},
        "msg:a": body("a", "queued"),
        "stats": {"total_messages": 1},
        "meta": META,
    }


@pytest.mark.parametrize(("priority", "letter"), [("high", "h"), ("low", "l")])
async def test_a_priority_has_a_stream_and_a_line_of_its_own(queue: Queue, priority, letter):
    await queue.enqueue("a", priority=priority)
    assert await queue.table() == {
        "queue:main": ["a"],
        f"line:{priority}": ["a"],
        f"stream:{priority}": {"a": NEVER},
        "msg:a": body("a", "queued", f"{letter}*"),
        "stats": {"total_messages": 1},
        "meta": META,
    }


async def test_nothing_becomes_scheduled(queue: Queue):
    """The body lives until it is due and its ttl after that; so does the slot, with dedup_expiry."""
    assert await queue.enqueue("a", delay=100, ttl=60, unique="k") == [("a", "scheduled", False)]
    assert await queue.table() == {
        "queue:scheduled": {"a": "now+100"},
        "msg:a": body("a", "scheduled", "n", _sq_ttl="60", dedup_key="dedup:k"),
        "dedup:k": "a",
        "stats": {"total_messages": 1},
        "meta": META,
        "ttl": {"msg:a": 160, "dedup:k": 100 + DEDUP_EXPIRY},
    }


async def test_needs_nobody_to_have_joined(unjoined: Queue):
    await unjoined.enqueue("a")
    await unjoined.transitions.join("w1", 30)
    assert [lease.id for lease in await unjoined.claim()] == ["a"]


async def test_a_listener_and_the_user_stand_with_the_message(queue: Queue):
    message = new("a", ttl=60, listener="channel-1", user_id="u1")
    await queue.transitions.enqueue([message], dedup_expiry=DEDUP_EXPIRY, index_users=True)
    assert await queue.table() == {
        "queue:main": ["a"],
        "stream": {"a": NEVER},
        "msg:a": body("a", "queued", user_id="u1", _sq_listener="channel-1", _sq_ttl="60"),
        "user:u1": ["a"],
        "stats": {"total_messages": 1},
        "meta": {**META, "user_index": "1"},
        "ttl": {"msg:a": 60, "user:u1": 60},
    }


# ---- scores


async def test_500_messages_of_one_script_are_delivered_in_the_order_of_their_ranks(queue: Queue):
    ids = [f"{n * 7919 % 500}" for n in range(500)]
    await queue.enqueue(*ids)
    assert await queue.redis.zrange(queue.keys.main, 0, -1) == ids
    assert [lease.id for lease in await queue.claim(count=500)] == ids


async def test_scores_of_a_batch_are_a_microsecond_apart(queue: Queue):
    before = await queue.now()
    await queue.enqueue("a", "b", "c")
    scores = [score for _, score in await queue.redis.zrange(queue.keys.main, 0, -1, withscores=True)]
    assert before <= scores[0] <= await queue.now()
    assert [round((second - first) * 1e6) for first, second in pairwise(scores)] == [1, 1]


async def test_a_score_is_never_below_the_newest(queue: Queue):
    """A clock that was set back, or an outsider's score of some seconds ahead."""
    ahead = await queue.now() + 30
    await queue.redis.zadd(queue.keys.main, {"outsider": ahead})
    await queue.enqueue("a", "b")
    assert await queue.redis.zrange(queue.keys.main, 0, -1) == ["outsider", "a", "b"]
    assert await queue.redis.zscore(queue.keys.main, "a") == pytest.approx(ahead + 1e-6, abs=5e-7)


async def test_a_score_far_ahead_drags_nobody_along(queue: Queue):
    await queue.redis.zadd(queue.keys.main, {"milliseconds": 1000 * await queue.now(), "infinite": float("inf")})
    await queue.enqueue("a")
    assert await queue.redis.zscore(queue.keys.main, "a") <= await queue.now()


async def test_a_caller_s_timestamp_stays_in_the_hash_and_scores_nothing(queue: Queue):
    await queue.enqueue("a", timestamp="1000000000.5")
    assert (await queue.table())["msg:a"]["timestamp"] == "1e+09"
    assert await queue.redis.zscore(queue.keys.main, "a") > 1.6e9


# ---- what was there before


async def test_an_unfinished_message_is_not_doubled(queue: Queue):
    await queue.enqueue("a")
    before = await queue.table()
    assert await queue.enqueue("a", text="another body") == [("a", "queued", True)]
    assert await queue.table() == {**before, "stats": {"total_messages": 1, "duplicate_messages": 1}}


async def test_a_duplicate_has_the_status_of_the_one_that_was_there(queue: Queue):
    await queue.dead("dead")
    await queue.retrying("retry")
    await queue.complete(await queue.processing("done"))
    await queue.processing("processing")
    await queue.transitions.remove([*[e.id for e in await queue.enqueue("removed")]])
    await queue.enqueue("scheduled", delay=100)
    answers = await queue.enqueue("dead", "retry", "done", "processing", "removed", "scheduled")
    assert [(answer.status, answer.duplicate) for answer in answers] == [
        ("error", True),
        ("retry", True),
        ("completed", True),
        ("processing", True),
        ("removed", True),
        ("scheduled", True),
    ]
    assert await queue.claim() == [], "nothing runs: a dead letter waits until somebody requeues it"


async def test_a_finished_id_is_free_when_its_marker_is_gone(queue: Queue):
    await queue.complete(await queue.processing("a"))
    await queue.redis.delete(queue.keys.done("a"))
    assert await queue.enqueue("a") == [("a", "queued", False)]


async def test_a_reply_that_was_lost_makes_no_second_message(queue: Queue):
    """The same call again: every id is there, once, in its first order."""
    await queue.enqueue("a", "b", "c")
    before = await queue.table()
    assert all(answer.duplicate for answer in await queue.enqueue("a", "b", "c"))
    after = await queue.table()
    assert after | {"stats": None} == before | {"stats": None}


async def test_an_id_twice_in_a_batch_is_accepted_once(queue: Queue):
    batch = [new("a", text="first"), new("a", text="second"), new("b")]
    answers = await queue.transitions.enqueue(batch, dedup_expiry=DEDUP_EXPIRY)
    assert answers == [("a", "queued", False), ("a", "queued", True), ("b", "queued", False)]
    table = await queue.table()
    assert table["stream"] == {"a": NEVER, "b": NEVER}
    assert table["msg:a"]["text"] == "first"


async def test_an_orphan_hash_is_overwritten_completely(queue: Queue):
    """Bodies of one id never mix: somebody took the id out of main, its hash is still there."""
    await queue.retrying("a", ttl=60, unique="k", secret="of the first")
    await queue.redis.zrem(queue.keys.retry, "a")
    assert await queue.enqueue("a") == [("a", "queued", False)]
    table = await queue.table()
    assert table["msg:a"] == body("a", "queued")
    assert "msg:a" not in table["ttl"]


@pytest.mark.parametrize("damage", ["string", "list", "hash without timestamp"])
async def test_what_is_no_body_gives_way(queue: Queue, damage):
    key = queue.keys.message("a")
    match damage:
        case "string":
            await queue.redis.set(key, "text")
        case "list":
            await queue.redis.rpush(key, "item")
        case _:
            await queue.redis.hset(key, "user_id", "u1")
    assert await queue.enqueue("a") == [("a", "queued", False)]
    assert (await queue.table())["msg:a"] == body("a", "queued")


@pytest.mark.parametrize("where", ["queue:main", "queue:retry", "queue:scheduled", "queue:dlq"])
@pytest.mark.parametrize("delay", [0.0, 100.0])
async def test_a_place_whose_body_ran_out_is_taken_over(queue: Queue, where, delay):
    """Else the new message would stand in two places, and be requeued from the dead letters while it runs."""
    await queue.redis.zadd(f"{queue.keys.prefix}:{where}", {"a": 1})
    assert (await queue.enqueue("a", delay=delay))[0].duplicate is False
    table = await queue.table()
    places = {name: list(ids) for name, ids in table.items() if name.startswith("queue:")}
    assert places == {"queue:scheduled" if delay else "queue:main": ["a"]}


async def test_an_id_in_flight_that_is_enqueued_anew_waits_for_the_lock(queue: Queue):
    """Somebody removed its place; the old delivery runs still, and finishes nothing of the new message's."""
    lease = await queue.processing("a")
    await queue.redis.zrem(queue.keys.main, "a")
    await queue.enqueue("a")
    assert await queue.claim("w2") == []
    assert (await queue.table())["stream"] == {"a": LOCKED, "a (old)": "w1"}
    assert await queue.complete(lease) == "stale"


# ---- dedup slots


async def test_a_slot_makes_duplicates_of_other_ids(queue: Queue):
    await queue.enqueue("a", unique="k")
    assert await queue.enqueue("b", unique="k") == [("a", "queued", True)]
    assert await queue.enqueue("c", unique="k1") == [("c", "queued", False)]
    assert (await queue.table())["queue:main"] == ["a", "c"]


async def test_a_slot_counts_within_a_batch(queue: Queue):
    answers = await queue.enqueue("a", "b", "c", unique="k")
    assert answers == [("a", "queued", False), ("a", "queued", True), ("a", "queued", True)]


async def test_a_slot_is_freed_when_its_message_finishes(queue: Queue):
    await queue.complete(await queue.processing("a", unique="k"))
    assert await queue.enqueue("b", unique="k") == [("b", "queued", False)]


async def test_a_slot_whose_holder_has_neither_body_nor_place_is_taken_over(queue: Queue):
    await queue.redis.set(queue.keys.slot("k"), "ghost", ex=100)
    assert await queue.enqueue("b", unique="k") == [("b", "queued", False)]
    table = await queue.table()
    assert (table["dedup:k"], table["ttl"]["dedup:k"]) == ("b", DEDUP_EXPIRY)


@pytest.mark.parametrize("left", ["body", "place"])
async def test_a_slot_whose_holder_has_a_body_or_a_place_is_not(queue: Queue, left):
    await queue.enqueue("a", unique="k")
    if left == "body":
        await queue.redis.zrem(queue.keys.main, "a")
        await queue.redis.expire(queue.keys.message("a"), 60)
    else:
        await queue.redis.delete(queue.keys.message("a"))
    assert await queue.enqueue("b", unique="k") == [("a", "queued", True)]


async def test_a_slot_of_another_type_is_no_holder(queue: Queue):
    await queue.redis.rpush(queue.keys.slot("k"), "item")
    assert await queue.enqueue("a", unique="k") == [("a", "queued", False)]
    assert (await queue.table())["dedup:k"] == "a"


# ---- refused whole


async def test_statistics_of_another_type_fail_nothing(queue: Queue):
    await queue.redis.set(queue.keys.stats, "text", ex=60)
    assert await queue.enqueue("a", "b") == [("a", "queued", False), ("b", "queued", False)]


@pytest.mark.parametrize("extreme", [1e-9, 1e15, 1e300])
async def test_an_extreme_ttl_or_delay_leaves_no_half_message(queue: Queue, extreme):
    """EXPIRE refuses what is too large: in the middle of a script that would leave a place without a body."""
    await queue.enqueue("a", ttl=extreme)
    await queue.enqueue("b", delay=extreme, ttl=60, unique="k")
    table = await queue.table()
    assert table["msg:a"]["text"] == "text of a"
    assert table["msg:b"]["text"] == "text of b"
    assert {"msg:a", "msg:b", "dedup:k"} <= set(table["ttl"])


async def test_a_payload_of_20000_fields_is_stored_and_delivered_whole(queue: Queue):
    """Lua unpacks no more than 8,000 values at once."""
    fields = {f"field{n}": str(n) for n in range(20_000)}
    await queue.transitions.enqueue([new("a", **fields)], dedup_expiry=DEDUP_EXPIRY)  # type: ignore[arg-type]
    (delivery,) = (await queue.claimed()).deliveries
    assert fields.items() <= {name: raw.decode() for name, raw in delivery.fields.items()}.items()


async def test_at_maxmemory_a_batch_is_refused_whole(small: Queue):
    await small.enqueue("first")
    before = await small.table()
    await small.fill()
    for delay, unique in ((0.0, None), (100.0, None), (0.0, "k")):
        with pytest.raises(QueueUnavailable, match="maxmemory"):
            await small.enqueue("a", "b", delay=delay, unique=unique)
    assert await small.table() == before
    await small.empty()
    assert await small.enqueue("a") == [("a", "queued", False)]


async def test_a_call_has_no_more_arguments_than_every_server_takes(queue: Queue, monkeypatch):
    """Redis 6.2 drops the connection at 1,048,577: a batch of messages with many fields goes in more calls."""
    monkeypatch.setattr(transitions, "_BATCH_VALUES", 100)
    fields: dict[str, Any] = {f"f{n}": "" for n in range(20)}
    await queue.redis.config_resetstat()
    await queue.enqueue(*map(str, range(10)), **fields)
    assert len((await queue.claimed("w1", 10)).deliveries) == 10
    stats = await queue.redis.info("commandstats")
    calls = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))
    assert calls >= 5 + 1
