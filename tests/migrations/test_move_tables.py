"""Each Lua file of the migration as a table of all keys before and after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from migrations.steps import KEPT, Moving
from streams_queue.errors import ConfigurationError
from streams_queue_migrations.door import ENTER, NO_ENTRIES, START, TIDY
from transitions.tables import DEDUP_EXPIRY, META, NEVER, RETURNED, body

OLD = {"timestamp": "now", "status": "queued", "retry_count": "0"}
"""The hash of an old producer, but for its ``request_id``."""

ESCAPED: Any = {"data:status": "mine"}

MOVING = {"schema": "1", "migration": "under way", "migration_began": "now"}


def old(id: str, **more: str) -> dict[str, str]:
    return {"request_id": id, **OLD, **more}


def entered(id: str, **more: str) -> dict[str, str]:
    return old(id, _sq_entry="n*", _sq_ttl="3600", **more)


@pytest.fixture
async def prepared(moving: Moving) -> AsyncIterator[Moving]:
    """A queue whose move is under way."""
    await moving.prepare()
    yield moving


async def began(moving: Moving) -> None:
    """The meta hash shows when it began; tables show times as such where they know the field."""
    await moving.redis.hset(moving.keys.meta, "migration_began", "now")


# ---- prepare, conclude


async def test_prepare_makes_the_groups_at_0_and_notes_the_move(moving: Moving):
    await moving.old("a")
    assert await moving.prepare() is False
    await began(moving)
    assert await moving.table() == {
        "queue:main": ["a"], "msg:a": old("a"), "meta": MOVING, "ttl": {"msg:a": 3600},
    }  # fmt: skip
    for stream in moving.keys.streams.values():
        assert [(group["name"], group["last-delivered-id"]) for group in await moving.redis.xinfo_groups(stream)] == [
            ("workers", "0-0")
        ]


async def test_prepare_again_keeps_the_beginning_and_what_workers_agreed_on(moving: Moving):
    await moving.transitions.join("w1", 30.0)
    await moving.prepare(index_users=True)
    before = await moving.redis.hgetall(moving.keys.meta)
    assert await moving.prepare() is False
    assert await moving.redis.hgetall(moving.keys.meta) == before
    assert {**before, "migration_began": "now"} == {**META, **MOVING, "user_index": "1"}


async def test_conclude_and_then_prepare_once_more(prepared: Moving):
    await prepared.door.conclude(b"{}")
    meta = await prepared.redis.hgetall(prepared.keys.meta)
    assert float(meta.pop("migrated_at")) == pytest.approx(await prepared.now(), abs=10)
    assert meta == {"schema": "1", "migration": "done", "migration_report": "{}"}
    before = await prepared.redis.hgetall(prepared.keys.meta)
    assert await prepared.prepare() is True
    assert await prepared.redis.hgetall(prepared.keys.meta) == before, "a moved queue stays one"
    await prepared.door.conclude(b'{"a":1}')
    after = await prepared.redis.hgetall(prepared.keys.meta)
    assert after == {**before, "migration_report": '{"a":1}'}, "the day it was moved is the first"


# ---- retime


async def test_retime_leaves_what_is_a_time_and_brings_what_lies_ahead_to_now_in_order(prepared: Moving):
    now = await prepared.now()
    scores = {
        "minus-inf": float("-inf"), "negative": -5, "past": now - 100, "soon": now + 30, "hour": now + 3600,
        "ms": now * 1000, "ms too": now * 1000, "inf": float("inf"),
    }  # fmt: skip
    for id, score in scores.items():
        await prepared.old(id, score=score)
    assert await prepared.door.retime() == (False, 4)
    after = dict(await prepared.redis.zrange(prepared.keys.main, 0, -1, withscores=True))
    assert list(after) == list(scores), "in the same order"
    kept = list(scores)[:4]
    assert {id: after[id] for id in kept} == pytest.approx({id: scores[id] for id in kept})
    assert all(now + 30 <= after[id] < now + 40 for id in list(scores)[4:])
    assert await prepared.door.retime() == (False, 0)
    await prepared.enqueue("new")
    assert await prepared.redis.zrank(prepared.keys.main, "new") == len(scores), "what is accepted now comes behind"


# ---- enter


async def test_enter_gives_each_id_of_main_an_entry_in_order(prepared: Moving):
    now = await prepared.now()
    for id, score in {"c": now - 1, "a": now - 2, "b": now - 2}.items():
        await prepared.old(id, score=score, ttl=100)
    page = await prepared.enter()
    assert page == (True, 3, 3, 0, 0)
    assert await prepared.redis.zrange(prepared.keys.main, 0, -1) == ["a", "b", "c"]
    await began(prepared)
    table = await prepared.table()
    assert table == {
        "queue:main": ["a", "b", "c"],
        "stream": {"a": NEVER, "b": NEVER, "c": NEVER},
        **{f"msg:{id}": entered(id) for id in "abc"},
        "meta": MOVING,
        "ttl": {f"msg:{id}": 3600 for id in "abc"},
    }
    assert list(table["stream"]) == ["a", "b", "c"]
    again = await prepared.enter()
    assert (again.entered, again.ordered) == (0, 0)
    assert await prepared.redis.xlen(prepared.keys.streams["n"]) == 3


async def test_enter_queues_what_a_dead_worker_left_and_keeps_its_count(prepared: Moving):
    await prepared.old("a", status="processing", retry_count="2")
    await prepared.enter()
    assert (await prepared.table())["msg:a"] == entered("a", retry_count="2")


async def test_enter_notes_who_has_no_body(prepared: Moving):
    now = await prepared.now()
    await prepared.redis.zadd(prepared.keys.main, {"a": now - 3, "b": now - 2, "c": now - 1})
    await prepared.redis.hset(prepared.keys.message("b"), "request_id", "b")
    await prepared.redis.expire(prepared.keys.message("b"), 100)
    await prepared.redis.set(prepared.keys.message("c"), "text", ex=100)
    page = await prepared.enter()
    assert (page.ids, page.entered, page.bodiless) == (3, 0, 3)
    table = await prepared.table()
    assert table["bodiless"] == dict.fromkeys("abc", "now") and table["queue:main"] == ["a", "b", "c"]
    assert await prepared.redis.xlen(prepared.keys.streams["n"]) == 0


async def test_enter_puts_in_order_what_stands_out_of_it(prepared: Moving):
    """A new producer's message was there before the old one's turn came."""
    await prepared.enqueue("new")
    await prepared.old("first", score=await prepared.now() - 100)
    page = await prepared.enter()
    assert (page.entered, page.ordered) == (1, 1)
    table = await prepared.table()
    assert list(table["stream"]) == ["first", "new"] and table["queue:main"] == ["first", "new"]
    assert table["msg:new"] == body("new", "queued")
    assert (await prepared.enter()).ordered == 0


async def test_enter_keeps_each_priority_s_order_apart(prepared: Moving):
    await prepared.enqueue("n1", priority="normal")
    await prepared.enqueue("h1", priority="high")
    await prepared.enqueue("l1", priority="low")
    await prepared.enqueue("n2", priority="normal")
    before = await prepared.table()
    assert (await prepared.enter())[2:4] == (0, 0)
    assert await prepared.table() == before
    for stream in prepared.keys.streams.values():
        await prepared.redis.delete(stream)
    await prepared.redis.delete(*prepared.keys.lines.values())
    await prepared.prepare()
    assert (await prepared.enter())[2:4] == (4, 0)
    assert await prepared.table() == before


async def test_enter_leaves_alone_what_workers_hold_or_were_handed_back(prepared: Moving):
    await prepared.transitions.join("w1", 30.0)
    await prepared.processing("a")
    lease = await prepared.processing("b")
    await prepared.release(lease)
    await prepared.old("older", score=await prepared.now() - 100)
    page = await prepared.enter()
    assert (page.entered, page.ordered) == (1, 0)
    assert (await prepared.table())["stream"] == {"a": "w1", "b": RETURNED, "older": NEVER}


async def test_enter_gives_a_new_entry_to_what_died_with_its_consumer(prepared: Moving):
    await prepared.transitions.join("w1", 30.0)
    await prepared.processing("a", "w2")
    await prepared.redis.xgroup_delconsumer(prepared.keys.streams["n"], "workers", "w2")
    assert (await prepared.enter()).entered == 1
    table = await prepared.table()
    assert table["stream"] == {"a": NEVER}
    assert table["msg:a"] == body("a", "queued", _sq_deliveries="1")


async def test_an_entry_s_id_that_is_none_stops_nobody(prepared: Moving):
    for n, entry in enumerate((f"n{'9' * 30}-1", f"h1-{'9' * 30}", "n-1", "x1-1", "n1-", "")):
        await prepared.old(f"m{n}", _sq_entry=entry)
    found = (await prepared.door.look_at("main", START, NO_ENTRIES, samples=0, texts=True)).found
    assert found["no_entry"] == 6
    assert (await prepared.enter()).entered == 6
    assert set((await prepared.table())["stream"]) == {f"m{n}" for n in range(6) if n != 1}
    assert (await prepared.stripped("main")).prioritised == 1


async def test_enter_starts_anew_an_old_dead_letter_that_an_operator_requeued(prepared: Moving):
    slot = prepared.keys.slot("k")
    await prepared.old("a", dedup_key=slot, error="no", last_error="no", moved_to_dlq_at="1")
    assert (await prepared.enter()).entered == 1
    await began(prepared)
    table = await prepared.table()
    assert table["msg:a"] == entered("a", dedup_key="dedup:k")
    assert table["dedup:k"] == "a" and table["ttl"]["dedup:k"] == DEDUP_EXPIRY


async def test_enter_starts_anew_what_the_engine_knew_and_an_operator_requeued(prepared: Moving):
    await prepared.transitions.join("w1", 30.0)
    await prepared.dead("a", unique="k")
    await prepared.redis.hset(prepared.keys.message("a"), mapping={"retry_count": "0", "status": "queued"})
    await prepared.redis.zrem(prepared.keys.dlq, "a")
    await prepared.redis.zadd(prepared.keys.main, {"a": await prepared.now()})
    await prepared.enter()
    table = await prepared.table()
    assert table["msg:a"] == body("a", "queued", dedup_key="dedup:k", _sq_deliveries="1")
    assert table["dedup:k"] == "a" and table["ttl"]["dedup:k"] == DEDUP_EXPIRY
    assert "msg:a" not in table["ttl"]


async def test_enter_indexes_users_where_the_queue_asks_for_it(moving: Moving):
    await moving.prepare(index_users=True)
    now = await moving.now()
    await moving.old("b", score=now - 1, user_id="u1")
    await moving.old("a", score=now - 2, user_id="u1")
    await moving.old("c", score=now, user_id="u2", ttl=90_000)
    await moving.old("d", score=now)
    await moving.enter()
    table = await moving.table()
    assert (table["user:u1"], table["user:u2"]) == (["a", "b"], ["c"])
    assert table["ttl"]["user:u1"] == 3600
    assert table["ttl"]["user:u2"] == table["ttl"]["msg:c"] == 90_000, "as long as its messages"


async def test_enter_shortens_no_life(prepared: Moving):
    """The old code's ``default_ttl`` could be set; what was rolled back may have no end."""
    now, lives = await prepared.now(), {"short": 100, "documented": 3600, "day": 86_400, "endless": None}
    for n, (id, ttl) in enumerate(lives.items()):
        await prepared.old(id, score=now - 100 + n, ttl=ttl)
    await prepared.enter()
    expected = {"short": 3600, "documented": 3600, "day": 86_400, "endless": -1}
    for _ in ("as it was moved in", "handed back by a worker"):
        left = {id: await prepared.redis.ttl(prepared.keys.message(id)) for id in lives}
        assert left == pytest.approx(expected, abs=5)
        await prepared.transitions.join("w1", 30.0)
        for delivery in (await prepared.transitions.claim("w1", 10)).deliveries:
            await prepared.transitions.release("w1", [delivery.lease])
    await prepared.redis.delete(*prepared.keys.streams.values())
    await prepared.prepare()
    assert (await prepared.enter()).entered == 4
    left = {id: await prepared.redis.ttl(prepared.keys.message(id)) for id in lives}
    assert left == pytest.approx(expected, abs=5), "given entries once more"


async def test_enter_goes_on_at_its_cursor_whatever_left_behind_it(prepared: Moving):
    now, looked_at = await prepared.now(), 0
    for n in range(7):
        await prepared.old(f"{n}", score=now - 100 + n // 3)
    for call in range(10):
        ended, ids, *_ = await prepared.door._run(ENTER, (int(call == 0), 2, 3600, DEDUP_EXPIRY))
        looked_at += ids
        if ended:
            break
        if looked_at == 4:  # those of the first score are all behind it
            await prepared.redis.zrem(prepared.keys.main, "0")
            await prepared.redis.expire(prepared.keys.message("0"), 100)
    assert [fields["id"] for _, fields in await prepared.redis.xrange(prepared.keys.streams["n"])] == [*"0123456"]
    assert looked_at == 7
    assert not await prepared.redis.hexists(prepared.keys.meta, "migration_pass")
    assert await prepared.door._run(ENTER, (0, 2, 3600, DEDUP_EXPIRY)) == [1, 0, 0, 0, 0], "who comes after the end"


# ---- keep


async def test_keep_a_retry_where_it_stands_for_as_long_as_it_waits(prepared: Moving):
    await prepared.old("a", ttl=50, status="retry", retry_count="1", user_id="u1")
    await prepared.redis.zrem(prepared.keys.main, "a")
    await prepared.redis.zadd(prepared.keys.retry, {"a": await prepared.now() + 400})
    assert (await prepared.keep("retry"))[1:] == (1, 1, 0, 0)
    await began(prepared)
    assert await prepared.table() == {
        "queue:retry": {"a": "now+400"},
        "msg:a": old("a", status="retry", retry_count="1", user_id="u1", _sq_entry="n", _sq_ttl="3600"),
        "meta": MOVING,
        "ttl": {"msg:a": 4000},
    }
    assert (await prepared.keep("retry"))[1:] == (1, 0, 0, 0), "once"


@pytest.mark.parametrize(
    ("ttl", "left", "own"), [(50, 4000, "3600"), (3700, 4000, "3600"), (9000, 9000, "8600"), (None, -1, "")]
)
async def test_keep_shortens_no_retry_s_life(prepared: Moving, ttl: int | None, left: int, own: str):
    await prepared.old("a", ttl=ttl, status="retry")
    await prepared.redis.zrem(prepared.keys.main, "a")
    await prepared.redis.zadd(prepared.keys.retry, {"a": await prepared.now() + 400})
    assert (await prepared.keep("retry")).kept == 1
    assert await prepared.redis.ttl(prepared.keys.message("a")) == pytest.approx(left, abs=5)
    found = await prepared.redis.hget(prepared.keys.message("a"), "_sq_ttl")
    assert found == own or int(found) == pytest.approx(int(own), abs=5)
    assert (await prepared.keep("retry")).kept == 0


@pytest.mark.parametrize("due", [float("inf"), float("-inf"), 1.7e12, -1.0])
async def test_keep_a_retry_whose_time_is_none(prepared: Moving, due: float):
    await prepared.old("a", status="retry")
    await prepared.redis.zrem(prepared.keys.main, "a")
    await prepared.redis.zadd(prepared.keys.retry, {"a": due})
    assert (await prepared.keep("retry")).kept == 1
    assert await prepared.redis.ttl(prepared.keys.message("a")) >= 3599


async def test_keep_a_dead_letter_s_body_and_free_its_slot(prepared: Moving):
    slot = prepared.keys.slot("k")
    await prepared.old("a", ttl=50, status="error", error="gave up", dedup_key=slot)
    await prepared.redis.zrem(prepared.keys.main, "a")
    await prepared.redis.zadd(prepared.keys.dlq, {"a": 1000})
    await prepared.redis.set(slot, "a", ex=500)
    assert (await prepared.keep("dlq"))[1:] == (1, 1, 0, 0)
    await began(prepared)
    assert await prepared.table() == {
        "queue:dlq": {"a": "1000"},
        "msg:a": old("a", status="error", error="gave up", dedup_key="dedup:k", _sq_entry="n", _sq_reason="error"),
        "meta": MOVING,
        "ttl": {"msg:a": KEPT},
    }
    assert (await prepared.keep("dlq"))[1:] == (1, 0, 0, 0), "once"


async def test_keep_leaves_another_s_slot(prepared: Moving):
    slot = prepared.keys.slot("k")
    await prepared.old("a", status="error", dedup_key=slot)
    await prepared.redis.zrem(prepared.keys.main, "a")
    await prepared.redis.zadd(prepared.keys.dlq, {"a": 1000})
    await prepared.redis.set(slot, "b", ex=500)
    await prepared.keep("dlq")
    assert await prepared.redis.get(slot) == "b"


async def test_keep_leaves_to_the_engine_what_is_the_engine_s(prepared: Moving):
    await prepared.transitions.join("w1", 30.0)
    await prepared.dead("a")
    await prepared.retrying("b")
    await prepared.enqueue("c", delay=100)
    before = await prepared.table()
    for queue in ("retry", "scheduled", "dlq"):
        assert (await prepared.keep(queue)).kept == 0
    assert await prepared.table() == before


@pytest.mark.parametrize(
    ("places", "left", "stays"),
    [
        (("main", "retry"), ("retry",), "main"),
        (("main", "dlq"), ("dlq",), "main"),
        (("retry", "dlq"), ("dlq",), "retry"),
        (("retry", "scheduled"), ("scheduled",), "retry"),
        (("scheduled", "dlq"), ("dlq",), "scheduled"),
        (("main", "retry", "scheduled", "dlq"), ("retry", "scheduled", "dlq"), "main"),
    ],
)
async def test_keep_takes_out_second_places(prepared: Moving, places, left, stays):
    await prepared.old("a")
    await prepared.redis.zrem(prepared.keys.main, "a")
    for place in places:
        await prepared.redis.zadd(f"{prepared.keys.prefix}:queue:{place}", {"a": 1000})
    for queue in ("retry", "scheduled", "dlq"):
        assert (await prepared.keep(queue)).left == (queue in left)
    queues = {name for name in (await prepared.table()) if name.startswith("queue:")}
    assert queues == {f"queue:{stays}"}


async def test_keep_notes_who_has_no_body(prepared: Moving):
    await prepared.redis.zadd(prepared.keys.dlq, {"a": 1000})
    assert (await prepared.keep("dlq"))[1:] == (1, 0, 0, 1)
    table = await prepared.table()
    assert table["bodiless"] == {"a": "now"} and table["queue:dlq"] == {"a": "1000"}


# ---- doomed, set_aside


async def test_set_aside_who_had_no_body_for_a_while(prepared: Moving):
    now = await prepared.now()
    await prepared.redis.zadd(prepared.keys.main, {"a": now, "late": now + 1})
    await prepared.redis.zadd(prepared.keys.dlq, {"d": 1000})
    await prepared.enter()
    await prepared.keep("dlq")
    assert await prepared.door.doomed(grace=5.0) == (3, []), "it may come yet"
    await prepared.old("late")
    assert sorted((await prepared.door.doomed(grace=0))[1]) == [("a", "main"), ("d", "dlq"), ("late", "")]
    assert sorted(await prepared.put_aside()) == ["a", "d"]
    await began(prepared)
    assert await prepared.table() == {
        "queue:main": ["late"],
        "msg:late": old("late"),
        "lost": {"a": "now", "d": "now"},
        "done:a": "expired\n\n",
        "done:d": "expired\n\n",
        "stats": {"expired_messages": 2},
        "meta": MOVING,
        "ttl": {"done:a": 60, "done:d": 60, "msg:late": 3600},
    }
    assert await prepared.door.doomed(grace=0) == (0, [])


async def test_what_is_left_of_a_damaged_body_stays_for_a_while(prepared: Moving):
    await prepared.redis.zadd(prepared.keys.main, {"a": 1, "b": 2})
    await prepared.redis.hset(prepared.keys.message("a"), "message", "hi")
    await prepared.redis.rpush(prepared.keys.message("b"), "hi")
    await prepared.enter()
    await prepared.put_aside()
    table = await prepared.table()
    assert (table["msg:a"], table["msg:b"]) == ({"message": "hi"}, "a list")
    assert (table["ttl"]["msg:a"], table["ttl"]["msg:b"]) == (KEPT, KEPT)


async def test_set_aside_asks_again(prepared: Moving):
    """Between the two calls the body came, or the id went."""
    await prepared.redis.zadd(prepared.keys.main, {"came": 1, "went": 2})
    await prepared.enter()
    await prepared.old("came")
    await prepared.redis.zrem(prepared.keys.main, "went")
    assert await prepared.door.set_aside(["came", "went", "unknown"], kept_for=KEPT) == [False] * 3
    table = await prepared.table()
    assert table["queue:main"] == ["came"] and "lost" not in table and "bodiless" not in table


# ---- tidy


async def test_tidy_drops_entries_that_no_message_goes_by(prepared: Moving):
    await prepared.enqueue("a", "b", "gone")
    await prepared.redis.zrem(prepared.keys.main, "gone")
    await prepared.redis.expire(prepared.keys.message("gone"), 100)
    await prepared.redis.xadd(prepared.keys.streams["n"], {"id": "a"})
    await prepared.redis.xadd(prepared.keys.streams["n"], {"id": "unknown"})
    await prepared.redis.xadd(prepared.keys.streams["n"], {"other": "program"})
    assert await prepared.door.tidy("n", "-") == ("-", 6, 4)
    assert (await prepared.table())["stream"] == {"a": NEVER, "b": NEVER}
    assert await prepared.door.tidy("n", "-") == ("-", 2, 0)
    assert await prepared.door.tidy("h", "-") == ("-", 0, 0)


async def test_tidy_pages(prepared: Moving):
    await prepared.enqueue(*"abcde")
    await prepared.redis.zrem(prepared.keys.main, "b", "e")
    for id in "be":
        await prepared.redis.expire(prepared.keys.message(id), 100)
    after, dropped = b"-", 0
    for _ in range(5):
        after, _, more = await prepared.door._run(TIDY, ("n", after, 2))
        dropped += more
        if after == b"-":
            break
    assert after == b"-" and dropped == 2 and list((await prepared.table())["stream"]) == ["a", "c", "d"]


# ---- strays


async def test_strays_tells_bodies_without_a_place(prepared: Moving):
    await prepared.old("placed")
    for id, ttl in {"ends": 100, "stays": None}.items():
        await prepared.old(id, ttl=ttl)
        await prepared.redis.zrem(prepared.keys.main, id)
    assert await prepared.door.strays(["placed", "ends", "stays", "unknown"]) == [0, 1, 2, 0]
    await prepared.redis.delete(prepared.keys.message("stays"))


# ---- strip, dismantle


async def test_strip_makes_of_the_engine_s_messages_old_ones(prepared: Moving):
    await prepared.transitions.join("w1", 30.0)
    await prepared.dead("d")
    await prepared.retrying("r")
    await prepared.processing("p", unique="k")
    await prepared.enqueue("h", priority="high", ttl=500.0)
    await prepared.enqueue("s", delay=400)
    await prepared.enqueue("e", **ESCAPED)
    assert (await prepared.stripped("scheduled"))[1:] == (1, 0, 1, 0, 1)
    assert (await prepared.stripped("retry"))[1:] == (2, 0, 0, 0, 1)
    assert (await prepared.stripped("main"))[1:] == (3, 1, 0, 1, 3)
    assert (await prepared.stripped("dlq"))[1:] == (1, 0, 0, 0, 1)
    await prepared.door.dismantle()

    def plain(id: str, status: str, **more: str) -> dict[str, str]:
        return {name: text for name, text in body(id, status, **more).items() if not name.startswith("_sq_")}

    failed = {"last_error": "oops", "last_error_time": "now"}
    assert await prepared.table() == {
        "queue:main": ["p", "h", "e"],
        "queue:retry": {"r": "now+100", "s": "now+400"},
        "queue:dlq": {"d": "now"},
        "msg:p": plain("p", "queued", dedup_key="dedup:k"),
        "msg:h": plain("h", "queued"),
        "msg:e": plain("e", "queued", **ESCAPED),
        "msg:r": plain("r", "retry", retry_count="1", next_retry="now+100", **failed),
        "msg:s": plain("s", "retry", next_retry="now+400"),
        "msg:d": plain("d", "error", error="oops", moved_to_dlq_at="now"),
        "dedup:k": "p",
        "stats": {"total_messages": 6, "retry_count": 1, "dlq_messages": 1, "dead_rejected": 1},
        "ttl": {"dedup:k": DEDUP_EXPIRY, "msg:d": 1000, "msg:h": 500},
    }
    before = await prepared.table()
    for queue in ("scheduled", "retry", "main", "dlq"):
        await prepared.stripped(queue)
    await prepared.door.dismantle()
    assert await prepared.table() == before, "again changes nothing"


async def test_strip_leaves_a_lock_that_is_no_worker_s(prepared: Moving):
    await prepared.enqueue("a")
    await prepared.redis.set(prepared.keys.lock("a"), "an operator", ex=100)
    await prepared.stripped("main")
    assert await prepared.redis.get(prepared.keys.lock("a")) == "an operator"


async def test_strip_a_message_of_thousands_of_fields(prepared: Moving):
    many: Any = {f"f{n}": "x" for n in range(3000)}
    await prepared.enqueue("a", **many)
    await prepared.redis.hset(prepared.keys.message("a"), mapping={f"_sq_{n}": "x" for n in range(3000)})
    await prepared.stripped("main")
    assert await prepared.redis.hlen(prepared.keys.message("a")) == 3004


async def test_dismantle_deletes_what_is_the_engine_s_and_keeps_the_record_of_what_was_lost(prepared: Moving):
    await prepared.transitions.join("w1", 30.0)
    await prepared.enqueue("a", priority="high", index_users=True, user_id="u1")
    await prepared.redis.zadd(prepared.keys.lost, {"gone": 1})
    await prepared.redis.zadd(prepared.keys.bodiless, {"gone": 1})
    await prepared.redis.set(prepared.keys.maintainer, "w1", ex=100)
    await prepared.door.dismantle()
    assert set(await prepared.table()) == {"queue:main", "msg:a", "lost", "stats"}


async def test_dismantle_leaves_what_an_application_keeps_under_the_same_prefix(prepared: Moving):
    own = {f"{prepared.keys.prefix}:user:{name}" for name in ("42", "0" * 40, "a:queue:main")}
    await prepared.enqueue("a", index_users=True, user_id="u1")
    for key in own:
        await prepared.redis.set(key, "the application's", ex=100)
    await prepared.redis.zadd(f"{prepared.keys.prefix}:user:friends", {"u1": 1})
    await prepared.redis.expire(f"{prepared.keys.prefix}:user:friends", 100)
    await prepared.door.dismantle()
    left = set(await prepared.redis.keys(f"{prepared.keys.prefix}:user:*"))
    assert left == own | {f"{prepared.keys.prefix}:user:friends"}


# ---- keys of another type


CALLS: dict[str, Callable[[Moving], Awaitable[Any]]] = {
    "look_at": lambda moving: moving.door.look_at("main", START, NO_ENTRIES, samples=5, texts=True),
    "prepare": lambda moving: moving.prepare(index_users=True),
    "retime": lambda moving: moving.door.retime(),
    "enter": lambda moving: moving.enter(),
    "keep": lambda moving: moving.keep("dlq"),
    "doomed": lambda moving: moving.door.doomed(grace=0),
    "set_aside": lambda moving: moving.door.set_aside(["bodiless"], kept_for=1),
    "tidy": lambda moving: moving.door.tidy("n", "-"),
    "conclude": lambda moving: moving.door.conclude(b"{}"),
    "strip": lambda moving: moving.stripped("main"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_house_key_of_another_type_is_named_and_nothing_is_written(prepared: Moving, name: str):
    await prepared.old("a")
    await prepared.old("ahead", score=4e9)
    await prepared.redis.zadd(prepared.keys.main, {"bodiless": 1})
    await prepared.redis.zadd(prepared.keys.dlq, {"bodiless": 1})
    for key in prepared.keys.house:
        if key == prepared.keys.stats:
            continue
        saved = f"saved:{key}"
        if await prepared.redis.exists(key):
            await prepared.redis.rename(key, saved)
        await prepared.redis.set(key, "text")
        before = await prepared.table()
        with pytest.raises(ConfigurationError, match=f"WRONGTYPE {key} is a string, not a"):
            await CALLS[name](prepared)
        assert await prepared.table() == before
        await prepared.redis.delete(key)
        if await prepared.redis.exists(saved):
            await prepared.redis.rename(saved, key)
