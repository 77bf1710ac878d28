"""position, watch, stats, first_of_user, read, dead_letters: reads; and update, lock and unlock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys
from transitions.tables import DEAD_LETTER_TTL, LEASE, META, NEVER, RESULT_TTL, Queue, body


async def ahead(queue: Queue, *ids: str) -> list[int | None]:
    return [ahead for _, ahead in await queue.transitions.positions(ids)]


async def positions(queue: Queue, *ids: str) -> list[int | None]:
    return [position for position, _ in await queue.transitions.positions(ids)]


# ---- position: the documented rank


async def test_a_position_is_the_rank_in_main_those_in_flight_counted(queue: Queue):
    await queue.enqueue("a", "b", "c")
    await queue.claim()
    assert await positions(queue, "a", "b", "c", "unknown") == [1, 2, 3, None]


async def test_retries_stand_behind_main_and_scheduled_ones_behind_both(queue: Queue):
    await queue.retrying("r2", delay=200)
    await queue.retrying("r1", delay=100)
    await queue.enqueue("s2", delay=200)
    await queue.enqueue("s1", delay=100)
    await queue.enqueue("a", "b")
    assert await positions(queue, "a", "b", "r1", "r2", "s1", "s2") == [1, 2, 3, 4, 5, 6]
    assert await ahead(queue, "a", "b", "r1", "r2", "s1", "s2") == [0, 1, 2, 3, 4, 5]


async def test_a_dead_letter_and_a_finished_message_have_none(queue: Queue):
    await queue.dead("a")
    await queue.complete(await queue.processing("b"))
    assert await queue.transitions.positions(["a", "b"]) == [(None, None), (None, None)]


async def test_the_position_is_zrank_plus_one_for_outsiders_ids_too(queue: Queue):
    await queue.enqueue("b")
    await queue.old("a", score=5.0)
    await queue.redis.zadd(queue.keys.main, {"no body": 6.0})
    assert await positions(queue, "a", "no body", "b") == [1, 2, 3]


# ---- ahead: how many will be taken before it


async def test_what_is_in_flight_is_not_ahead(queue: Queue):
    await queue.enqueue("a", "b", "c", "d")
    await queue.claim(count=2)
    assert await ahead(queue, "a", "b", "c", "d") == [0, 0, 0, 1]


async def test_higher_priorities_are_ahead_lower_ones_are_not(queue: Queue):
    await queue.enqueue("l1", "l2", priority="low")
    await queue.enqueue("n1", "n2")
    await queue.enqueue("h1", "h2", priority="high")
    expected = ["h1", "h2", "n1", "n2", "l1", "l2"]
    assert await ahead(queue, *expected) == [0, 1, 2, 3, 4, 5]
    assert await positions(queue, *expected) == [5, 6, 3, 4, 1, 2], "the rank knows no priorities"
    await queue.claim(count=3)
    assert await ahead(queue, *expected) == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("taken", range(7))
async def test_ahead_counts_down_to_the_claim(queue: Queue, taken):
    """Whatever was taken so far: `ahead` claims later, it is this message's turn."""
    await queue.enqueue("l1", priority="low")
    await queue.enqueue("n1", "n2")
    await queue.enqueue("h1", priority="high")
    await queue.enqueue("n3", "n4")
    await queue.enqueue("l2", priority="low")
    await queue.claim(count=taken)
    waiting = await queue.redis.zrange(queue.keys.main, 0, -1)
    told = dict(zip(waiting, await ahead(queue, *waiting), strict=True))
    turns = [lease.id for lease in await queue.claim(count=7)]
    assert {id: told[id] for id in turns} == {id: n for n, id in enumerate(turns)}


async def test_a_message_handed_back_counts_as_waiting_again(queue: Queue):
    await queue.enqueue("a", "b", "c")
    a, b = await queue.claim(count=2)
    await queue.release(a)
    assert await ahead(queue, "a", "b", "c") == [0, 0, 1]
    assert (await queue.transitions.stats()).processing == 1
    await queue.complete(b)
    assert await ahead(queue, "a", "c") == [0, 1]


async def test_a_parked_message_counts_as_waiting(queue: Queue):
    await queue.enqueue("a", "b")
    await queue.redis.set(queue.keys.lock("a"), "operator", px=60_000)
    await queue.claim()
    await queue.claim()
    assert (await queue.transitions.stats()).processing == 1
    assert await ahead(queue, "a") == [0]


async def test_positions_need_nobody_to_have_joined(unjoined: Queue):
    await unjoined.enqueue("a", "b")
    assert await unjoined.transitions.positions(["a", "b"]) == [(1, 0), (2, 1)]


async def test_one_damaged_hash_hides_nobody_s_position(queue: Queue):
    await queue.enqueue("a", "b", "c")
    await queue.redis.delete(queue.keys.message("a"))
    await queue.redis.set(queue.keys.message("a"), "text", ex=60)
    await queue.redis.hset(queue.keys.message("b"), mapping={"_sq_entry": "?", "status": "\x00"})
    assert await queue.transitions.positions(["a", "b", "c"]) == [(1, 0), (2, 1), (3, 2)]


async def test_reading_positions_writes_nothing(queue: Queue):
    await queue.processing("a")
    before = await queue.table()
    await queue.transitions.positions(["a", "b"])
    assert await queue.table() == before


# ---- stats


async def test_stats_are_the_counts_of_one_moment(queue: Queue):
    await queue.complete(await queue.processing("done"))
    await queue.dead("dead")
    await queue.retrying("retry")
    await queue.enqueue("scheduled", delay=100)
    await queue.processing("processing", priority="high")
    await queue.enqueue("a", "b")
    await queue.transitions.pause(True)
    stats = await queue.transitions.stats()
    assert (stats.main, stats.processing, stats.retry, stats.scheduled, stats.dead, stats.lost) == (3, 1, 1, 1, 1, 0)
    assert stats.paused is True
    assert stats.counters == {
        "total_messages": 7, "completed_messages": 1, "dlq_messages": 1, "dead_rejected": 1, "retry_count": 1,
    }  # fmt: skip
    assert stats.died == {"rejected": 1}
    assert stats.workers == 1


async def test_the_oldest_that_waits_is_one_that_no_worker_holds(queue: Queue):
    assert (await queue.transitions.stats()).oldest_waiting is None
    await queue.enqueue("held")
    (held,) = await queue.claim()
    await asyncio.sleep(0.2)
    assert (await queue.transitions.stats()).oldest_waiting is None
    await queue.enqueue("waiting", "behind it", priority="high")
    await asyncio.sleep(0.2)
    await queue.enqueue("newer")
    assert 0.2 <= await oldest(queue) < 0.4
    await queue.release(held)
    assert await oldest(queue) >= 0.4, "what was handed back has its old place in line"
    await queue.claim(count=4)
    assert (await queue.transitions.stats()).oldest_waiting is None


async def test_the_oldest_waits_where_nobody_has_joined(unjoined: Queue):
    await unjoined.enqueue("a")
    await asyncio.sleep(0.1)
    assert await oldest(unjoined) >= 0.1
    assert (await unjoined.transitions.stats()).workers == 0


async def oldest(queue: Queue) -> float:
    age = (await queue.transitions.stats()).oldest_waiting
    assert age is not None
    return age


async def test_stats_of_nothing_at_all(unjoined: Queue):
    stats = await unjoined.transitions.stats()
    assert (stats.main, stats.processing, stats.counters, stats.paused) == (0, 0, {}, False)


@pytest.mark.parametrize("value", ["text", "", "-", "--5", "1.5", "9" * 5000, "²"])
async def test_a_counter_that_is_no_number_is_left_out_and_stops_nothing(queue: Queue, value):
    await queue.redis.hset(queue.keys.stats, mapping={"total_messages": value, "processed_requests": "-3"})
    lease = await queue.processing("a")
    assert await queue.complete(lease) == "completed"
    assert (await queue.transitions.stats()).counters == {"processed_requests": -3, "completed_messages": 1}
    assert await queue.redis.hget(queue.keys.stats, "total_messages") == value


async def test_statistics_of_another_type_are_no_statistics(queue: Queue):
    await queue.redis.set(queue.keys.stats, "text", ex=60)
    assert (await queue.transitions.stats()).counters == {}


# ---- watch


async def test_watch_answers_and_has_what_is_unfinished_told_of(queue: Queue):
    await queue.dead("dead", error="no")
    await queue.retrying("retry")
    await queue.complete(await queue.processing("done"), result=b"[1,\n2]")
    await queue.enqueue("scheduled", delay=100)
    await queue.processing("processing")
    await queue.enqueue("a")
    before = await queue.table()
    ids = ["dead", "retry", "done", "scheduled", "processing", "a", "unknown"]
    assert await queue.transitions.watch("channel", ids) == [
        ("error", b"no"),
        ("retry", b""),
        ("completed", b"[1,\n2]"),
        ("scheduled", b""),
        ("processing", b""),
        ("queued", b""),
        None,
    ]
    told = {f"msg:{id}": {**before[f"msg:{id}"], "_sq_listener": "channel"} for id in ids[1:2] + ids[3:6]}
    assert await queue.table() == {**before, **told}


async def test_a_hash_without_a_place_is_not_watched(queue: Queue):
    """Nothing will happen to it any more; what its marker says counts."""
    await queue.enqueue("a", "b", ttl=60)
    await queue.redis.zrem(queue.keys.main, "a", "b")
    await queue.redis.set(queue.keys.done("b"), "completed\n\n1", ex=60)
    before = await queue.table()
    assert await queue.transitions.watch("channel", ["a", "b"]) == [None, ("completed", b"1")]
    assert await queue.table() == before


@pytest.mark.parametrize("word", ["completed", "error", "removed", "a word of the caller's"])
async def test_the_status_that_a_caller_wrote_ends_nothing(queue: Queue, word):
    """`update_message` may write the field: it is believed only as far as it can be true."""
    await queue.retrying("retry")
    await queue.processing("processing")
    await queue.enqueue("scheduled", delay=100)
    await queue.enqueue("queued")
    ids = ["retry", "processing", "scheduled", "queued"]
    for id in ids:
        await queue.redis.hset(queue.keys.message(id), "status", word)
    assert await queue.transitions.watch("channel", ids) == [(id, b"") for id in ids]


async def test_what_has_a_place_but_no_body_has_expired(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.delete(queue.keys.message("a"))
    assert await queue.transitions.watch("channel", ["a"]) == [("expired", b"")]


async def test_each_channel_stands_once(queue: Queue):
    await queue.enqueue("a")
    for channel in ("one", "two", "one", "tw"):
        await queue.transitions.watch(channel, ["a"])
    assert (await queue.table())["msg:a"]["_sq_listener"] == "one two tw"


async def test_watching_shortens_no_life(queue: Queue):
    await queue.enqueue("a", ttl=60)
    await queue.transitions.watch("channel", ["a"])
    assert (await queue.table())["ttl"] == {"msg:a": 60}


async def test_at_maxmemory_watch_answers_still(small: Queue):
    await small.enqueue("a")
    await small.fill()
    assert await small.transitions.watch("channel", ["a"]) == [("queued", b"")]


@pytest.mark.parametrize("marker", ["", "text", "completed", "done\x00\n\n"])
async def test_a_damaged_marker_says_nothing(queue: Queue, marker):
    await queue.redis.set(queue.keys.done("a"), marker, ex=60)
    assert await queue.transitions.watch("channel", ["a"]) == [None]


# ---- first_of_user


async def test_the_first_message_of_a_user_in_main(queue: Queue):
    await queue.transitions.index_users()
    await queue.enqueue("other", user_id="u2", ttl=60)
    await queue.enqueue("a", "b", user_id="u1", ttl=60)
    assert await queue.transitions.first_of_user("u1") == "a"
    assert await queue.transitions.first_of_user("nobody") is None


async def test_it_follows_every_transition(queue: Queue):
    await queue.transitions.index_users()
    lease = await queue.processing("a", user_id="u1", ttl=60)
    await queue.enqueue("b", "c", user_id="u1", ttl=60)
    first = queue.transitions.first_of_user
    assert await first("u1") == "a", "the one being worked on included"
    await queue.retry(lease)
    assert await first("u1") == "b", "a retry stands in no line"
    await queue.make_due("a")
    await queue.transitions.promote()
    (lease,) = await queue.claim()
    await queue.complete(lease)
    assert await first("u1") == "c"
    (lease,) = await queue.claim()
    await queue.dead_letter(lease)
    assert await first("u1") == "a", "at the tail since its promotion"
    await queue.requeue("c")
    await queue.transitions.remove(["a"])
    assert await first("u1") == "c"


async def test_what_is_in_no_queue_any_more_is_forgotten(queue: Queue):
    await queue.transitions.index_users()
    await queue.enqueue("a", "b", user_id="u1", ttl=60)
    await queue.redis.zrem(queue.keys.main, "a")
    assert await queue.transitions.first_of_user("u1") == "b"
    assert (await queue.table())["user:u1"] == ["b"]


async def test_the_index_lives_as_long_as_the_last_of_its_messages(queue: Queue):
    await queue.transitions.index_users()
    for id, ttl in (("a", 60), ("b", 500), ("c", 100)):
        await queue.enqueue(id, user_id="u1", ttl=ttl)
    assert (await queue.table())["ttl"]["user:u1"] == 500
    await queue.enqueue("d", user_id="u1")
    await queue.enqueue("e", user_id="u1", ttl=60)
    assert "user:u1" not in (await queue.table())["ttl"]
    await queue.transitions.remove(["a", "b", "c", "d", "e"])


async def test_without_the_index_nobody_is_found(queue: Queue):
    await queue.enqueue("a", user_id="u1")
    assert await queue.transitions.first_of_user("u1") is None


async def test_an_index_of_another_type_stops_no_transition(queue: Queue):
    await queue.transitions.index_users()
    await queue.redis.set(queue.keys.user("u1"), "text", ex=60)
    lease = await queue.processing("a", user_id="u1")
    assert await queue.retry(lease) == "retry"
    with pytest.raises(ConfigurationError, match="WRONGTYPE"):
        await queue.transitions.first_of_user("u1")


# ---- read, dead_letters


async def test_read_gives_hashes_and_nothing_for_what_is_none(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.set(queue.keys.message("b"), "text", ex=60)
    found = await queue.transitions.read(["a", "b", "c"])
    assert [fields.get("text") for fields in found] == [b"text of a", None, None]


async def test_dead_letters_newest_first(queue: Queue):
    for id in ("a", "b", "c"):
        await queue.dead(id)
    assert [place.id for place in await queue.transitions.dead_letters(0, 2)] == ["c", "b"]
    assert [place.id for place in await queue.transitions.dead_letters(2, 2)] == ["a"]


# ---- update


async def update(queue: Queue, id: str, types: bytes = b"", **fields: str) -> bool:
    flat = [part.encode() for pair in fields.items() for part in pair]
    return await queue.transitions.update(id, flat, types)


async def test_update_writes_fields_and_lengthens_the_life_again(queue: Queue):
    await queue.enqueue("a", ttl=60)
    await queue.redis.expire(queue.keys.message("a"), 20)
    assert await update(queue, "a", b'{"number":"i"}', number="5", text="new") is True
    table = await queue.table()
    assert table["msg:a"] == body("a", "queued", _sq_ttl="60", number="5", text="new", _sq_types='{"number":"i"}')
    assert table["ttl"] == {"msg:a": 60}


async def test_update_shortens_no_life(queue: Queue):
    await queue.retrying("a", ttl=60, delay=500)
    await update(queue, "a", text="new")
    assert (await queue.table())["ttl"] == {"msg:a": 560}


async def test_a_field_that_becomes_text_loses_its_type(queue: Queue):
    await queue.enqueue("a")
    await update(queue, "a", b'{"x":"i","y":"b"}', x="5", y="True")
    await update(queue, "a", x="text")
    assert (await queue.table())["msg:a"]["_sq_types"] == '{"y":"b"}'
    await update(queue, "a", y="text")
    assert (await queue.table())["msg:a"]["_sq_types"] == ""


async def test_a_hash_of_an_old_producer_gets_no_types(queue: Queue):
    await queue.old("a")
    assert await update(queue, "a", b'{"x":"i"}', x="5") is True
    assert "_sq_types" not in (await queue.table())["msg:a"]


@pytest.mark.parametrize("types", ["5", "null", '"text"', "{", "[1]", '{"x": {"deep": 1}}'])
async def test_damaged_types_leave_no_update_half_done(queue: Queue, types):
    await queue.enqueue("a")
    await queue.redis.hset(queue.keys.message("a"), "_sq_types", types)
    assert await update(queue, "a", b'{"y":"i"}', y="5") is True
    hash = (await queue.table())["msg:a"]
    assert hash["y"] == "5"
    assert '"y":"i"' in hash["_sq_types"]


@pytest.mark.parametrize("damage", ["nothing", "a string", "no timestamp"])
async def test_what_is_no_message_is_not_updated(queue: Queue, damage):
    key = queue.keys.message("a")
    if damage == "a string":
        await queue.redis.set(key, "text", ex=60)
    elif damage == "no timestamp":
        await queue.redis.hset(key, "x", "y")
        await queue.redis.expire(key, 60)
    before = await queue.table()
    assert await update(queue, "a", text="new") is False
    assert await queue.table() == before


# ---- locks


async def test_a_lock_is_one_owner_s_until_it_is_freed(queue: Queue):
    t, key = queue.transitions, queue.keys.lock("a")
    assert await t.lock(key, "one", 60) is True
    assert await t.lock(key, "two", 60) is False
    assert await t.lock(key, "one", 60) is False, "it is not shared"
    assert await t.unlock(key, "two") is False
    assert await queue.table() == {"lock:a": "one", "meta": META, "ttl": {"lock:a": 60}}
    assert await t.unlock(key, "one") is True
    assert await t.unlock(key, "one") is True, "an absent lock counts as freed"
    assert await t.lock(key, "two", 60) is True


async def test_a_shared_lock_lasts_anew_for_everybody_of_its_name(queue: Queue):
    t, key = queue.transitions, queue.keys.global_lock
    assert await t.lock(key, "streams-queue", 30, shared=True) is True
    assert await t.lock(key, "streams-queue", 60, shared=True) is True
    assert (await queue.table())["ttl"] == {"lock:global_lock": 60}
    assert await t.lock(key, "processor", 60, shared=True) is False


async def test_a_lock_of_another_type_is_somebody_else_s_and_one_held_jointly_is_an_error(queue: Queue):
    key = queue.keys.lock("a")
    await queue.redis.rpush(key, "item")
    await queue.redis.expire(key, 60)
    assert await queue.transitions.lock(key, "one", 60) is False
    with pytest.raises(ConfigurationError, match=f"WRONGTYPE {key}"):
        await queue.transitions.lock(key, "one", 60, shared=True)
    assert await queue.transitions.unlock(key, "one") is False


async def test_at_maxmemory_locks_are_taken_and_kept(small: Queue):
    """Or the upkeep, which one worker at a time does under a lock, would stop just then."""
    await small.fill()
    for _ in range(2):
        assert await small.transitions.lock(small.keys.maintainer, "w1", 3, shared=True) is True
    assert await small.transitions.lock(small.keys.maintainer, "w2", 3, shared=True) is False


async def test_pause_and_resume(queue: Queue):
    await queue.transitions.pause(True)
    assert await queue.table() == {"meta": {**META, "paused": "1"}}
    await queue.transitions.pause(False)
    assert await queue.table() == {"meta": META}


async def test_prefixes_do_not_meet(queue: Queue):
    """A prefix may hold what Lua patterns and globs read as signs (the rest is refused)."""
    other = Queue(queue.transitions.connection, Keys("t.-{x}"), queue.redis)
    await other.transitions.join("w1", 30)
    await queue.enqueue("a", unique="k")
    await other.enqueue("b", unique="k")
    (lease,) = await other.claim(count=5)
    assert await other.complete(lease) == "completed"
    assert (await queue.table())["stream"] == {"a": NEVER}
    assert await other.enqueue("c", unique="k") == [("c", "queued", False)]


# ---- page and walk: places in the order of their scores


async def walked(queue: Queue, **options: Any) -> list[str]:
    found: list[str] = []
    async for page in queue.transitions.walk("dlq", **options):
        found += [place.id for place in page.places]
        assert len(found) <= 100, "it goes in circles"
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 500])
@pytest.mark.parametrize("newest_first", [False, True])
async def test_every_place_is_met_once_whatever_their_scores(queue: Queue, count, newest_first):
    ids = {"a": "-inf", "A": 1, "B": 2, "ä": 2, "b\xff": 2, "bb": 2, "b": 2, "c": 2.000001, "d": "inf", "e": "inf"}
    await queue.redis.zadd(queue.keys.dlq, ids)
    wanted = await queue.redis.zrange(queue.keys.dlq, 0, -1, desc=newest_first)
    assert await walked(queue, newest_first=newest_first, count=count) == wanted
    await queue.redis.delete(queue.keys.dlq)


@pytest.mark.parametrize("newest_first", [False, True])
async def test_a_walk_between_two_times_has_both(queue: Queue, newest_first):
    await queue.redis.zadd(queue.keys.dlq, {f"m{n}": n for n in range(10)})
    wanted = ["m3", "m4", "m5", "m6"]
    options = {"since": 3, "until": 6, "newest_first": newest_first}
    assert await walked(queue, count=3, **options) == (wanted[::-1] if newest_first else wanted)
    assert await walked(queue, count=4, **options) == (wanted[::-1] if newest_first else wanted)
    assert await walked(queue, since=20) == await walked(queue, until=-1) == []
    await queue.redis.delete(queue.keys.dlq)


async def test_those_that_leave_during_a_walk_hide_no_others(queue: Queue):
    await queue.redis.zadd(queue.keys.dlq, {f"m{n:02}": n // 7 for n in range(40)})
    seen = []
    async for page in queue.transitions.walk("dlq", count=3):
        seen += [place.id for place in page.places]
        await queue.redis.zrem(queue.keys.dlq, *[place.id for place in page.places])
    assert seen == [f"m{n:02}" for n in range(40)]


async def test_a_page_tells_the_servers_time(queue: Queue):
    await queue.enqueue("a", "b")
    (page,) = [page async for page in queue.transitions.walk("main")]
    assert [place.id for place in page.places] == ["a", "b"]
    assert page.now == pytest.approx(await queue.now(), abs=5)
    assert page.places[0].score == await queue.redis.zscore(queue.keys.main, "a")


# ---- examine: all that is known


async def test_all_that_is_known_of_messages(queue: Queue):
    await queue.processing("a")
    await queue.enqueue("s", delay=100)
    await queue.dead("d")
    await queue.complete(await queue.processing("c"), result=b'"done"')
    a, s, d, c, none = await queue.transitions.examine(["a", "s", "d", "c", "none"])
    assert a.fields["status"] == b"processing"
    assert (a.lock, list(a.scores)) == ("w1", ["main"])
    assert a.lock_ttl is not None and 20 < a.lock_ttl <= LEASE
    assert a.ttl is None
    assert s.scores == {"scheduled": pytest.approx(s.now + 100, abs=5)}
    assert list(d.scores) == ["dlq"]
    assert d.ttl == pytest.approx(DEAD_LETTER_TTL, abs=5)
    assert c.fields == {}
    assert c.marker.startswith(b"completed\n")
    assert c.marker_ttl == pytest.approx(RESULT_TTL, abs=5)
    assert none[1:] == ({}, None, "", None, b"", None, {}, None)


async def test_keys_of_other_types_are_no_message(queue: Queue):
    for key in (queue.keys.message("a"), queue.keys.lock("a"), queue.keys.done("a")):
        await queue.redis.sadd(key, "x")
    (found,) = await queue.transitions.examine(["a"])
    assert (found.fields, found.lock, found.marker) == ({}, "", b"")
    await queue.redis.delete(queue.keys.message("a"), queue.keys.lock("a"), queue.keys.done("a"))
